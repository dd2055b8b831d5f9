"""How often backward() has added to each gradient since the last round."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Passes:
    """Counts backward passes per parameter, and refuses more than `most`, as Horovod does."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[int, int] = {}

    def any(self) -> bool:
        """Whether there was a backward pass."""
        return bool(self._counts)

    def clear(self) -> None:
        """A round is over."""
        self._counts.clear()

    def count(self, param: torch.Tensor, name: Callable[[torch.Tensor], str]) -> None:
        """One more for this parameter. Raises AssertionError if that is one too many."""
        passes = self._counts.get(id(param), 0) + 1
        if passes > self._most:
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before call to "
                "step(). Increase backward_passes_per_step to accumulate gradients locally. "
                f"(backward_passes_per_step={self._most}, parameter {name(param)!r})"
            )
        self._counts[id(param)] = passes
