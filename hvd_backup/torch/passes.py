"""How often backward() has added to each gradient since the last round."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.autograd.function import BackwardCFunction

# Frames of these are on the stack while autograd runs what a call of theirs asked for.
_CALLS = {torch.autograd.backward.__code__, torch.autograd.grad.__code__}
# And a frame of this one while it runs the backward() of a Python function.
_FUNCTION = BackwardCFunction.apply.__code__


class Passes:
    """Counts backward passes per parameter, and refuses more than `most`, as Horovod does.

    A ``backward()`` within a backward pass, as of reentrant activation checkpointing, is a part of
    that pass: it may add to the same gradient many times.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[int, int] = {}
        self._task = -1  # autograd's number of the call that the last gradient came from
        self._nested = False

    def any(self) -> bool:
        """Whether there was a backward pass."""
        return bool(self._counts)

    def clear(self) -> None:
        """A round is over."""
        self._counts.clear()

    def count(self, param: torch.Tensor, name: Callable[[torch.Tensor], str]) -> None:
        """One more for this parameter. Raises AssertionError if that is one too many."""
        task: int = torch._C._current_graph_task_id()  # noqa: SLF001 (no public name)
        if task != self._task:
            self._task, self._nested = task, _is_nested()
        passes = self._counts.get(id(param), 0) + (0 if self._nested else 1)
        if passes > self._most:
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before call to "
                "step(). Increase backward_passes_per_step to accumulate gradients locally. "
                f"(backward_passes_per_step={self._most}, parameter {name(param)!r})"
            )
        self._counts[id(param)] = passes


def _is_nested() -> bool:
    """Whether the call of backward() whose hook asks came from within a backward pass."""
    calls = 0
    frame = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        calls += frame.f_code in _CALLS
        if calls > 1 or frame.f_code is _FUNCTION:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
