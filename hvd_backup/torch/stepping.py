"""``optimizer.step``: each call is one round, whatever the class's own step() does."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler

_AMP = "_step_supports_amp_scaling"  # torch's name for "this optimizer asks the scaler itself"
_SCHEDULERS = "_wrapped_by_lr_sched"
_Step = Callable[..., Any]


class Steps(Protocol):
    """What makes a round of a step."""

    def step(
        self,
        inner: _Step,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        grad_scaler: GradScaler | None,
    ) -> Any:
        """The optimizer's own step is `inner`."""

    def check_within_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise RuntimeError if `optimizer` steps outside of ``step``."""


class Stepping:
    """The attribute ``step`` of one optimizer, the outermost of those that make its steps.

    Torch's step hooks do not serve: a ``step()`` that calls ``super().step()`` runs them twice if
    an optimizer of the parent class was made before, and one that stands for another optimizer's
    runs them never. They guard instead: a step that goes past the attribute raises.

    Also the place where a GradScaler hands itself over. By itself it looks at this rank's gradient
    and leaves out ``step()`` if that overflowed, while the other ranks step. An optimizer whose
    step takes ``grad_scaler`` decides by itself (torch's contract for optimizers with scale
    handling of their own).
    """

    def __init__(self, optimizer: Any, rounds: Steps) -> None:
        inner = optimizer.step

        def step(
            self: Any, *args: Any, grad_scaler: GradScaler | None = None, **kwargs: Any
        ) -> Any:
            return rounds.step(inner, args, kwargs, grad_scaler)

        if hasattr(inner, _SCHEDULERS):  # one made before looks whether its wrapper is there still
            setattr(step, _SCHEDULERS, True)
        attributes = vars(optimizer)
        self._optimizer = optimizer
        self._guards: list[Any] = []
        self._had = {key: attributes[key] for key in ("step", _AMP) if key in attributes}
        # A method of the instance: schedulers take it apart as they would the class's. And
        # torch.compile leaves it alone: a round waits for other processes.
        not_compiled: Any = torch.compiler.disable(step)  # type: ignore[no-untyped-call]
        self._step = types.MethodType(not_compiled, optimizer)
        attributes["step"] = self._step
        attributes[_AMP] = True
        attributes["__deepcopy__"] = self._deepcopy
        if optimizer.step is not self._step:
            self.remove()
            raise TypeError(
                f"{type(optimizer).__name__} decides by itself what its attribute `step` is, so "
                f"that its steps could not be made rounds; {_instead(optimizer)}"
            )
        self._guards += [
            one.register_step_pre_hook(lambda one, _, __: rounds.check_within_step(one))
            for one in _with_inner(optimizer)
            if hasattr(one, "_optimizer_step_pre_hooks")
        ]

    def remove(self) -> None:
        """The optimizer's step is what it was, unless somebody has wrapped ours meanwhile."""
        attributes = vars(self._optimizer)
        for name in (_AMP, "__deepcopy__"):
            attributes.pop(name, None)
        if attributes.get("step") is self._step:
            del attributes["step"]
        else:
            self._had.pop("step", None)
        attributes.update(self._had)
        self.remove_guards()

    def _deepcopy(self, memo: dict[int, Any]) -> Any:
        """The optimizer's own copy, which is a local optimizer."""
        warnings.warn(
            "the copy of a DistributedOptimizer is a local one, whose steps exchange nothing: wrap "
            "the copy in DistributedOptimizer, on every rank, to train with it",
            stacklevel=3,
        )
        attributes = vars(self._optimizer)
        mine = attributes.pop("__deepcopy__")
        try:
            return copy.deepcopy(self._optimizer, memo)
        finally:
            attributes["__deepcopy__"] = mine

    def remove_guards(self) -> None:
        """Steps past the attribute are nobody's business any more."""
        for guard in self._guards:
            guard.remove()


def check_can_be_extended(optimizer: Any) -> None:
    """Raise TypeError for what is no torch optimizer, or hands its attributes on to another."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"DistributedOptimizer takes a torch optimizer, not {optimizer!r:.200}; "
            f"{_instead(optimizer)}"
        )
    probe = object()
    optimizer._hvd_backup = probe  # type: ignore[attr-defined]  # noqa: SLF001
    own = vars(optimizer).get("_hvd_backup") is probe
    for one in _with_inner(optimizer):
        vars(one).pop("_hvd_backup", None)
    if not own:
        raise TypeError(
            f"{type(optimizer).__name__} hands its attributes on to another object, so that its "
            f"steps could not be made rounds; {_instead(optimizer)}"
        )


def inside(optimizer: Any, other: object) -> bool:
    """Whether `other` is `optimizer`, or one that it makes its steps with."""
    return any(one is other for one in _with_inner(optimizer))


def _with_inner(optimizer: Any) -> Iterator[torch.optim.Optimizer]:
    """`optimizer`, then the optimizers that it holds and shares parameters with."""
    mine = {id(param) for param in _params_of(optimizer)}
    todo, seen = [optimizer], {id(optimizer)}
    while todo:
        one = todo.pop()
        yield one
        for held in _held_by(one):
            if id(held) not in seen and any(id(param) in mine for param in _params_of(held)):
                seen.add(id(held))
                todo.append(held)


def _held_by(optimizer: object) -> Iterator[torch.optim.Optimizer]:
    """The optimizers that are attributes of it, or in a list or dictionary that is."""
    for value in list(vars(optimizer).values()):
        several = value.values() if isinstance(value, dict) else value
        for one in several if isinstance(value, list | tuple | dict) else (value,):
            if isinstance(one, torch.optim.Optimizer):
                yield one


def _params_of(optimizer: Any) -> Iterator[torch.Tensor]:
    for group in getattr(optimizer, "param_groups", ()):
        yield from group["params"]


def _instead(optimizer: Any) -> str:
    name = type(optimizer).__name__
    return (
        "wrap each torch optimizer inside it instead: optimizer = "
        f"{name}(hvd.DistributedOptimizer(inner_optimizer, …), …)"
    )
