"""How much a model's metrics saw in an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from hvd_backup.tensorflow.keras.averages import Array, Part, Path, Seen, numbers


class Counted(NamedTuple):
    """A metric's result, and how many samples it is the mean of (None: it is no mean)."""

    result: Array | None
    samples: float | None


class Pass:
    """One pass over data, in training or validation: the state of the metrics at its end."""

    def __init__(self) -> None:
        self.batches = 0
        self._seen = Seen()
        self._metrics: dict[str, Counted] = {}
        self._complete = False

    def add(self, batches: int) -> None:
        self.batches += batches
        self._complete = False

    def complete(self, model: Any, skipped: int = 0) -> None:
        """Look at the metrics, unless it was done since the last batch: they may be reset now."""
        if self._complete:
            return
        batches = max(self.batches - skipped, 0)
        samples = _samples(getattr(model, "_loss_tracker", None))
        # A train_step of the user's may leave the model's loss alone.
        self._seen = Seen(batches, None if samples == 0 < batches else samples)
        self._metrics = dict(_counted(model)) if model is not None else {}
        self._complete = True

    def has(self, name: str, value: Array | None) -> bool:
        """Whether a value of the logs is the result of the metric of that name."""
        return name in self._metrics and _same(value, self._metrics[name].result)

    def part(self, name: str, value: Array | None) -> Part:
        """A value of the logs, with what its weight is made of."""
        samples = self._metrics[name].samples if self.has(name, value) else None
        return Part(value, samples, self._seen)


class Epoch:
    """What this rank saw in an epoch."""

    def __init__(self, skipped_before: int = 0) -> None:
        self.skipped_before = skipped_before
        self.training = Pass()
        self.validation: Pass | None = None

    def part(self, path: Path, value: Any) -> Part:
        """A value of the logs, with what its weight is made of."""
        array, name = numbers(value), path[-1]
        if self.validation is None or self.training.has(name, array):
            return self.training.part(name, array)
        inner = name.removeprefix("val_")
        validated = path[0].startswith("val_") or self.validation.has(inner, array)
        return (self.validation if validated else self.training).part(inner, array)


def _counted(model: Any) -> Iterator[tuple[str, Counted]]:
    """The model's metrics under their names in the logs; the later one of a name is the log's."""
    for metric in model.metrics:
        inner = getattr(metric, "metrics", None)
        if inner is not None:  # of compile(metrics=…), a list of metrics
            if getattr(metric, "built", True):
                yield from _named(inner, metric.result())
        elif isinstance(result := metric.result(), Mapping):
            for name, value in result.items():
                yield name, Counted(numbers(value), _samples(metric))
        else:
            yield metric.name, Counted(numbers(result), _samples(metric))


def _named(metrics: list[Any], results: Mapping[str, Any]) -> Iterator[tuple[str, Counted]]:
    if len(metrics) != len(results):
        return
    for metric, (name, value) in zip(metrics, results.items(), strict=True):
        if isinstance(value, Mapping):
            for inner, part in value.items():
                yield inner, Counted(numbers(part), _samples(metric))
        else:
            yield name, Counted(numbers(value), _samples(metric))


def _samples(metric: Any) -> float | None:
    """How many it is the mean of, weighted if they are."""
    if not isinstance(metric, keras.metrics.Mean):
        return None
    count = np.asarray(metric.count)
    return float(count) if count.ndim == 0 else None


def _same(mine: Array | None, its: Array | None) -> bool:
    return (
        mine is not None
        and its is not None
        and mine.shape == its.shape
        and np.allclose(mine, its, rtol=1e-5, atol=0, equal_nan=True)
    )
