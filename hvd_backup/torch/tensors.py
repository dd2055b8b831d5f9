"""Tensors as arrays, and back. Those of other devices travel by copies on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hvd_backup.world.wire import Typed

# Same bytes, and known to numpy.
_BITS = {torch.bfloat16: torch.int16}
_REDUCED = {
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
}
_MOVED = _REDUCED | {torch.bool, torch.complex64, torch.complex128}


def check_tensors(call: str, tensors: Sequence[object], *, reduced: bool) -> None:
    """Raises TypeError for what is no tensor, ValueError for what the call does not take."""
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{call} takes a torch tensor, not {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise ValueError(
                f"{call}: tensors of layout {tensor.layout} are not supported; use "
                "sparse_allreduce_async, or to_dense()"
            )
        if tensor.dtype not in (_REDUCED if reduced else _MOVED):
            raise ValueError(f"Tensor type {tensor.type()} is not supported.")


def typed(tensor: torch.Tensor) -> Typed:
    """The tensor as an array: a view if it is contiguous and on the host, else a copy."""
    host = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    name = str(host.dtype).removeprefix("torch.")
    if host.dtype in _BITS:
        return Typed(_numpy(host.view(_BITS[host.dtype])).view(np.uint16), name)
    return Typed(_numpy(host), name)


def _numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def tensor_of(array: npt.NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    """A tensor with the array's bits and shape, and the dtype and device of `like`."""
    if like.dtype in _BITS:
        host = torch.from_numpy(array.view(np.int16)).view(like.dtype)
    else:
        host = torch.from_numpy(array)
    return host.to(like.device)
