"""GradScaler: what overflowed is judged on the agreed gradient, so that all ranks skip alike."""

from __future__ import annotations

import types
import warnings
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler, OptState

_KEY = "_step_supports_amp_scaling"  # torch's name for "this optimizer asks the scaler itself"
_SCHEDULERS = "_wrapped_by_lr_sched"


class Steps(Protocol):
    """What the scaler needs of an optimizer that runs rounds."""

    def exchange_unless_done(self) -> float:
        """One round, unless synchronize() was called for this step; the round's weight."""

    def skip_step(self) -> None:
        """The step that belongs to the round will not be made."""

    def skip_synchronize(self) -> Any: ...


class ScaledStep:
    """``optimizer.step``, which a GradScaler gives itself as ``grad_scaler``.

    A scaler by itself looks at this rank's gradient and leaves out ``step()`` if that overflowed,
    while the other ranks step. An optimizer that takes ``grad_scaler`` decides by itself (torch's
    contract for optimizers with scale handling of their own).
    """

    def __init__(self, optimizer: Any, rounds: Steps) -> None:
        inner = optimizer.step

        def step(
            self: Any, *args: Any, grad_scaler: GradScaler | None = None, **kwargs: Any
        ) -> Any:
            if grad_scaler is None:
                return inner(*args, **kwargs)
            return _step(self, inner, rounds, grad_scaler, args, kwargs)

        if hasattr(inner, _SCHEDULERS):  # one made before looks whether its wrapper is there still
            setattr(step, _SCHEDULERS, True)
        self._optimizer = optimizer
        self._had = {
            key: optimizer.__dict__[key] for key in ("step", _KEY) if key in vars(optimizer)
        }
        # A method of the instance: schedulers take it apart as they would the class's.
        self._step = types.MethodType(step, optimizer)
        optimizer.step = self._step
        setattr(optimizer, _KEY, True)
        warnings.filterwarnings(
            "ignore", "GradScaler is going to stop passing itself", FutureWarning
        )

    def remove(self) -> None:
        """The optimizer's step is what it was, unless somebody has wrapped ours meanwhile."""
        vars(self._optimizer).pop(_KEY, None)
        if self._optimizer.step is self._step:
            del self._optimizer.step
        else:
            self._had.pop("step", None)
        vars(self._optimizer).update(self._had)


def _step(
    optimizer: Any,
    inner: Any,
    rounds: Steps,
    scaler: GradScaler,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    weight = rounds.exchange_unless_done()
    # Torch has no public name for these; ShardedGradScaler of its FSDP uses them, too.
    private: Any = scaler
    if private._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:  # noqa: SLF001
        scaler.unscale_(optimizer)
    else:  # unscaled before the exchange, or after it and clipped since
        private._check_inf_per_device(optimizer)  # noqa: SLF001
    found = private._found_inf_per_device(optimizer)  # noqa: SLF001
    if weight == 0 or not found:  # all abstained, or nobody had a gradient: update() needs a word
        found[torch.device("cpu")] = torch.tensor(float(weight == 0))
    if any(bool(one) for one in found.values()):
        rounds.skip_step()
        return None
    with rounds.skip_synchronize():
        return inner(*args, **kwargs)
