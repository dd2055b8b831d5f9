"""The average of an epoch's logs over ranks, each of which saw its own number of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Array = npt.NDArray[Any]
Path = tuple[str, ...]
"""Where a value stands in the logs: its key, and the keys of the dicts in it."""


class Seen(NamedTuple):
    """What a rank computed in an epoch, in training or in validation."""

    batches: int = 0
    samples: float | None = None
    """None: the model's loss does not count them."""


class Part(NamedTuple):
    """One rank's value of a metric, and by how much it counts."""

    value: Array | None
    """None: it cannot be averaged."""
    samples: float | None
    """How many the metric's own mean is over; None for a metric that is not a mean."""
    seen: Seen


class Averages(NamedTuple):
    """The same on every rank."""

    means: dict[Path, Array]
    refused: dict[Path, int]
    """What cannot be averaged, with the first rank that has it."""


def average(everybody: Sequence[Mapping[Path, Part]]) -> Averages:
    """The weighted mean of each value over the ranks that have it; `everybody` by rank.

    The weight is the number of samples that the metric saw, where all those ranks know it. Else it
    is the number of samples of the rank's epoch, else that of its batches. A rank that saw none
    counts nothing. If nobody saw any, all count alike.
    """
    result = Averages({}, {})
    paths = dict.fromkeys(path for parts in everybody for path in parts)
    dicts = {path[:i] for path in paths for i in range(1, len(path))}
    for path in paths:
        there = [parts[path] for parts in everybody if path in parts]
        values = [part.value for part in there if part.value is not None]
        mixed = path in dicts or any(path[:i] in paths for i in range(1, len(path)))
        if mixed or len(values) < len(there) or len({value.shape for value in values}) > 1:
            result.refused[path] = next(r for r, parts in enumerate(everybody) if path in parts)
        else:
            result.means[path] = _mean(values, _weights(there))
    return result


def _mean(values: Sequence[Array], weights: Sequence[float]) -> Array:
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0]
    pairs = pairs or [(value, 1.0) for value in values]
    first = pairs[0][0]
    if all(np.array_equal(value, first) for value, _ in pairs):
        return first  # without a rounding error: a learning rate, say
    total = sum(weight for _, weight in pairs)
    return np.asarray(sum(value * (weight / total) for value, weight in pairs))


def _weights(parts: Sequence[Part]) -> list[float]:
    for found in ([part.samples for part in parts], [part.seen.samples for part in parts]):
        known = [weight for weight in found if weight is not None and 0 <= weight < np.inf]
        if len(known) == len(found):
            return known
    return [float(part.seen.batches) for part in parts]


# ---- logs ---------------------------------------------------------------------------------------


def leaves(logs: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All values in the logs that are not dicts."""
    for key, value in logs.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def numbers(value: Any) -> Array | None:
    """The value in float64 or complex128; None if it is not made of numbers."""
    try:
        array = np.asarray(value)
        if array.dtype.kind in "OUSMm":
            return None
        return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    except (TypeError, ValueError):  # what numpy says of everything that is not an array
        return None


def put(logs: dict[str, Any], path: Path, mean: Array) -> None:
    """Put the mean in its place, as a value of the kind that was there."""
    *parents, key = path
    for parent in parents:
        if not isinstance(logs.get(parent), dict):
            logs[parent] = dict(logs.get(parent) or {})
        logs = logs[parent]
    logs[key] = _like(logs.get(key), mean)


def _like(old: Any, mean: Array) -> Any:
    if mean.ndim == 0:
        return mean.item()
    if isinstance(old, list | tuple):
        return type(old)(mean.tolist())
    if old is None:
        return mean
    dtype = tf.as_dtype(old.dtype)
    if not (dtype.is_floating or dtype.is_complex):
        dtype = tf.as_dtype(mean.dtype)  # the mean of integers
    array = mean.astype(dtype.as_numpy_dtype)
    return tf.convert_to_tensor(array) if tf.is_tensor(old) else array
