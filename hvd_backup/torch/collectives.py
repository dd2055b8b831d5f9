"""Collectives on torch tensors (CPU), by way of their numpy views."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hvd_backup import collectives, runtime


def allreduce(tensor: torch.Tensor, op: str = collectives.Average) -> torch.Tensor:
    """Combine over all ranks, a fresh tensor; see ``hvd_backup.allreduce``."""
    # numpy has no bfloat16; float32 holds every bfloat16 sum at least as well
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    result = collectives.allreduce(wide.detach().numpy(), op)
    return torch.from_numpy(result).to(tensor.dtype)


def allreduce_(tensor: torch.Tensor, op: str = collectives.Average) -> torch.Tensor:
    """``allreduce``, in place."""
    with torch.no_grad():
        return tensor.copy_(allreduce(tensor, op))


def broadcast(tensor: torch.Tensor, root_rank: int = 0) -> torch.Tensor:
    """`root_rank`'s tensor, as a fresh tensor on every rank."""
    source = tensor.detach().contiguous()
    data = collectives.broadcast(source.reshape(-1).view(torch.uint8).numpy(), root_rank)
    return torch.from_numpy(data).view(tensor.dtype).reshape(tensor.shape)


def broadcast_(tensor: torch.Tensor, root_rank: int = 0) -> torch.Tensor:
    """``broadcast``, in place."""
    with torch.no_grad():
        return tensor.copy_(broadcast(tensor, root_rank))


def allgather(tensor: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks, concatenated along axis 0, whose length may differ."""
    source = tensor.detach().contiguous()
    if source.dim() == 0:
        raise ValueError("allgather needs at least one axis to concatenate along")
    rows = source.reshape(source.shape[0], -1) if source.numel() else source
    width = source[0].numel() if source.shape[0] else int(torch.tensor(source.shape[1:]).prod())
    flat = rows.reshape(source.shape[0], width).view(torch.uint8)
    data = collectives.allgather(flat.numpy())
    return torch.from_numpy(data).view(tensor.dtype).reshape(-1, *tensor.shape[1:])


def broadcast_parameters(
    params: Mapping[str, Any] | Iterable[tuple[str, torch.Tensor]], root_rank: int = 0
) -> None:
    """Give every rank `root_rank`'s values, in place.

    `params` is a ``model.state_dict()`` or ``model.named_parameters()``. Raises Mismatch, on every
    rank, when names, shapes or dtypes differ; TypeError for an entry that is not a tensor.
    """
    entries = list(params.items() if isinstance(params, Mapping) else params)
    for name, tensor in entries:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"broadcast_parameters: {name!r} is {type(tensor).__name__}, no tensor")
    runtime.current().meet(
        "broadcast_parameters("
        + ", ".join(f"{name}: {_kind(t)}" for name, t in entries)
        + f", root_rank={root_rank})",
        [(name, tuple(t.shape), str(t.dtype)) for name, t in entries],
    )
    for _, tensor in entries:
        broadcast_(tensor, root_rank)


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int = 0) -> None:
    """Give every rank `root_rank`'s optimizer state and hyperparameters."""
    mine = optimizer.state_dict() if runtime.rank() == root_rank else None
    state = collectives.broadcast_object(mine, root_rank)
    if runtime.rank() != root_rank and state is not None:
        optimizer.load_state_dict(state)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
