"""Collectives on torch tensors (CPU), by way of their numpy views."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hvd_backup import collectives, runtime


def allreduce(tensor: torch.Tensor, op: str = collectives.Average) -> torch.Tensor:
    """Combine over all ranks, a fresh tensor; see ``hvd_backup.allreduce``."""
    _check_tensor("allreduce", tensor)
    # numpy has no bfloat16; float32 holds every bfloat16 sum at least as well
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    result = collectives.allreduce(wide.detach().numpy(), op)
    return torch.from_numpy(result).to(tensor.dtype)


def allreduce_(tensor: torch.Tensor, op: str = collectives.Average) -> torch.Tensor:
    """``allreduce``, in place."""
    with torch.no_grad():
        result = allreduce(tensor, op)
        return tensor.copy_(result)


def broadcast(tensor: torch.Tensor, root_rank: int = 0) -> torch.Tensor:
    """`root_rank`'s tensor, as a fresh tensor on every rank."""
    _check_tensor("broadcast", tensor)
    collectives.check_root(root_rank)
    runtime.current().meet(f"broadcast({_kind(tensor)}, root_rank={root_rank})")
    return _broadcast(tensor, root_rank)


def broadcast_(tensor: torch.Tensor, root_rank: int = 0) -> torch.Tensor:
    """``broadcast``, in place."""
    with torch.no_grad():
        result = broadcast(tensor, root_rank)
        return tensor.copy_(result)


def allgather(tensor: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks, concatenated along axis 0, whose length may differ."""
    _check_tensor("allgather", tensor)
    if tensor.dim() == 0:
        raise ValueError("allgather needs at least one axis to concatenate along")
    rest = tensor.shape[1:]
    runtime.current().meet(f"allgather({_kind(tensor[:0])} of any length)")
    data = collectives.gather_rows(_bytes(tensor, tensor.shape[0], rest.numel()))
    return _typed(data, tensor.dtype, (data.shape[0], *rest))


def broadcast_parameters(
    params: Mapping[str, Any] | Iterable[tuple[str, torch.Tensor]], root_rank: int = 0
) -> None:
    """Give every rank `root_rank`'s values, in place.

    `params` is a ``model.state_dict()`` or ``model.named_parameters()``. Raises Mismatch, on every
    rank, when names, shapes or dtypes differ; TypeError for an entry that is not a tensor.
    """
    collectives.check_root(root_rank)
    if isinstance(params, torch.nn.Module):
        raise TypeError("broadcast_parameters takes model.state_dict(), not the model")
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
    with torch.no_grad():
        for _, tensor in entries:
            tensor.copy_(_broadcast(tensor, root_rank))


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int = 0) -> None:
    """Give every rank `root_rank`'s optimizer state and hyperparameters."""
    mine = optimizer.state_dict() if runtime.rank() == root_rank else None
    state = collectives.broadcast_object(mine, root_rank)
    if runtime.rank() != root_rank and state is not None:
        optimizer.load_state_dict(state)


def _check_tensor(call: str, tensor: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{call} takes a torch tensor, not {type(tensor).__name__}")


def _broadcast(tensor: torch.Tensor, root_rank: int) -> torch.Tensor:
    data = _bytes(tensor, 1, tensor.numel()).copy()
    collectives.send_bytes(data, root_rank)
    return _typed(data, tensor.dtype, tensor.shape)


def _bytes(tensor: torch.Tensor, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    if not tensor.numel():  # torch cannot view it as another type
        return np.empty((rows, columns * tensor.element_size()), np.uint8)
    table = tensor.detach().contiguous().reshape(rows, columns)
    data: npt.NDArray[np.uint8] = table.view(torch.uint8).numpy()
    return data


def _typed(data: npt.NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not data.size:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(data).view(dtype).reshape(shape)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
