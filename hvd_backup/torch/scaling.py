"""GradScaler: what overflowed is judged on the agreed gradient, so that all ranks skip alike."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler, OptState


def all_finite(optimizer: Any, scaler: GradScaler, weight: float) -> bool:
    """Whether to step: the agreed gradient, unscaled after it, is finite and of some `weight`."""
    # Torch has no public name for these; ShardedGradScaler of its FSDP uses them, too.
    private: Any = scaler
    if private._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:  # noqa: SLF001
        scaler.unscale_(optimizer)
    else:  # unscaled before the exchange, or after it and clipped since
        private._check_inf_per_device(optimizer)  # noqa: SLF001
    found = private._found_inf_per_device(optimizer)  # noqa: SLF001
    if weight == 0 or not found:  # all abstained, or nobody had a gradient: update() needs a word
        found[torch.device("cpu")] = torch.tensor(float(weight == 0))
    return not any(bool(one) for one in found.values())


def ignore_the_scalers_warning() -> None:
    """Torch warns of what a DistributedOptimizer asks of it on purpose."""
    warnings.filterwarnings("ignore", "GradScaler is going to stop passing itself", FutureWarning)
