"""What backward() adds to which gradient, and how often since the last round."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.utils.weak import TensorWeakRef

# Frames of these are on the stack while autograd runs what a call of theirs asked for.
_CALLS = {torch.autograd.backward.__code__, torch.autograd.grad.__code__}
# And a frame of this one while it runs the backward() of a Python function.
_FUNCTION = BackwardCFunction.apply.__code__


class Passes:
    """Counts backward passes per parameter, and refuses more than `most`, as Horovod does.

    Setting ``p.grad`` to None begins anew. A ``backward()`` within a backward pass, as of reentrant
    activation checkpointing, is a part of that pass: it may add to one gradient many times.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: dict[int, int] = {}
        self._given: dict[int, TensorWeakRef] = {}
        self._task = -1  # autograd's number of the call that the last gradient came from
        self._nested = False

    def any(self) -> bool:
        """Whether there was a backward pass."""
        return bool(self._counts)

    def clear(self) -> None:
        """A round is over."""
        self._counts.clear()
        self._given.clear()

    def given(self, param: torch.Tensor, *, contributes: bool) -> torch.Tensor | None:
        """The tensor that was ``p.grad`` before the first pass, so that autograd added to it.

        Without a pass ``p.grad`` itself, unless this rank contributes it: then it was put there by
        hand, as this step's gradient.
        """
        if not contributes and id(param) not in self._counts:
            return param.grad
        reference = self._given.get(id(param))
        tensor: torch.Tensor | None = None if reference is None else reference()
        return tensor

    def before(self, param: torch.Tensor) -> None:
        """Autograd is about to add to this parameter's gradient."""
        if param.grad is None:
            self._counts.pop(id(param), None)
            self._given.pop(id(param), None)
        elif id(param) not in self._counts:
            self._given[id(param)] = TensorWeakRef(param.grad)

    def after(self, param: torch.Tensor, name: Callable[[torch.Tensor], str]) -> None:
        """It has. Raises AssertionError if that is one pass too many."""
        task: int = torch._C._current_graph_task_id()  # noqa: SLF001 (no public name)
        if task != self._task:
            self._task, self._nested = task, _is_nested()
        passes = self._counts.get(id(param), 0) + (0 if self._nested else 1)
        if passes > self.most:
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before call to "
                "step(). Increase backward_passes_per_step to accumulate gradients locally. "
                f"(backward_passes_per_step={self.most}, parameter {name(param)!r}; to discard a "
                "gradient instead, call model.zero_grad())"
            )
        self._counts[id(param)] = passes


class Watched(weakref.ReferenceType[Any]):
    """Somebody whose ``before_pass(param)`` and ``after_pass(param)`` the hooks call.

    Weak: torch's hooks are no part of the cycles that Python collects.
    """

    def watch(self, param: torch.Tensor) -> list[Any]:
        """The handles of the hooks of one parameter."""
        weak = TensorWeakRef(param)

        def before(_: torch.Tensor) -> None:
            owner, of = self(), weak()
            if owner is not None and of is not None:
                owner.before_pass(of)

        def after(of: torch.Tensor) -> None:
            if (owner := self()) is not None:
                owner.after_pass(of)

        before.__torch_unserializable__ = True  # type: ignore[attr-defined]
        plain: Any = param
        return [
            plain.register_hook(before),
            plain.register_post_accumulate_grad_hook(after),
        ]


@torch.compiler.disable  # type: ignore[untyped-decorator]
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
