"""The bits of tensors of any kind, to be copied from rank to rank: nothing is computed with them.

A tensor travels as one or several dense `pieces`, which share its memory: a ``state_dict()`` has
aliases of a module's buffers, so that only what is written to their memory reaches the module.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Bits = npt.NDArray[np.uint8]

_COMPRESSED = {  # layout -> the methods that give its indices
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
_LAYOUTS = {torch.strided, torch.sparse_coo, *_COMPRESSED}
_PACKED = {torch.quint4x2, torch.quint2x4}  # several values in a byte


def why_not(value: object) -> str:
    """Why it cannot be sent, in words that follow its name; empty if it can."""
    if not isinstance(value, torch.Tensor):
        return f"is {type(value).__name__}, no tensor"
    if isinstance(value, UninitializedParameter | UninitializedBuffer):
        return "has no values yet: run the lazy module's first forward pass before"
    if value.is_meta:
        return "is on the meta device, where nothing has values: call to_empty() and fill it before"
    if is_traceable_wrapper_subclass(value):
        return f"is a {type(value).__name__}, whose values lie in other tensors: send those"
    if value.is_nested or value.layout not in _LAYOUTS or value.dtype in _PACKED:
        kind = "nested" if value.is_nested else f"{value.layout}, {value.dtype}"
        return f"is a tensor of a kind that cannot be written to in place ({kind})"
    return ""


def form(tensor: torch.Tensor) -> str:
    """All that must be the same on two ranks for one's bits to have the same meaning there."""
    text = f"{_short(tensor.dtype)}{list(tensor.shape)}"
    if tensor.layout == torch.strided and not tensor.is_quantized:
        return text
    if tensor.is_quantized:
        return f"{text} {_quantizer(tensor)}"
    text += f" {_short(tensor.layout)}"
    if tensor.layout == torch.sparse_coo:
        return text + f" of {tensor._nnz()} values{', coalesced' * tensor.is_coalesced()}"  # noqa: SLF001
    return text + f" of {list(tensor.values().shape)} values"


def _short(name: object) -> str:
    return str(name).removeprefix("torch.")


def _quantizer(tensor: torch.Tensor) -> str:
    if tensor.qscheme() == torch.per_tensor_affine:
        return f"of scale {tensor.q_scale()}, zero point {tensor.q_zero_point()}"
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    digest = hashlib.blake2b(read(scales).tobytes() + read(zeros).tobytes(), digest_size=8)
    return f"of scales per channel {tensor.q_per_channel_axis()} ({digest.hexdigest()})"


def pieces(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Dense tensors that share its memory, and are all of it."""
    tensor = tensor.detach()
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # noqa: SLF001 (it need not be coalesced)
    return [*(getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]), tensor.values()]


def read(piece: torch.Tensor) -> Bits:
    """The bytes of a dense tensor, in the order of its elements; its own memory if they lie so."""
    whole = piece.detach().int_repr() if piece.is_quantized else piece.detach()
    whole = whole.resolve_conj().resolve_neg().cpu().contiguous()
    bits: Bits = whole.reshape(-1).view(torch.uint8).numpy()
    return bits


def size(piece: torch.Tensor) -> int:
    """How many bytes ``read`` gives."""
    return piece.numel() * piece.element_size()


def write(piece: torch.Tensor, bits: Bits) -> None:
    """Let a dense tensor have these bytes, which ``read`` gave of one of the same form."""
    if not bits.size:
        return
    host = torch.from_numpy(bits)
    if not piece.is_quantized:
        assign(piece, host.view(piece.dtype).reshape(piece.shape))
        return
    stored = piece.detach().int_repr().dtype
    assign(piece, _quantized(host.view(stored).reshape(piece.shape), piece))


def _quantized(stored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The quantized tensor with these integers and the scale of `like`."""
    stored = stored.to(like.device)
    if like.qscheme() == torch.per_tensor_affine:
        return torch._make_per_tensor_quantized_tensor(  # noqa: SLF001
            stored, like.q_scale(), like.q_zero_point()
        )
    return torch._make_per_channel_quantized_tensor(  # noqa: SLF001
        stored,
        like.q_per_channel_scales(),
        like.q_per_channel_zero_points(),
        like.q_per_channel_axis(),
    )


def assign(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """``tensor.copy_(values)``, without a gradient, for strided tensors that torch refuses, too.

    Those are tensors of which several elements share memory (``expand``, ``unfold``) and those that
    were made in ``torch.inference_mode()``. Raises ValueError for values that differ where elements
    share memory.
    """
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        if not _shares_memory_within(tensor):
            tensor.copy_(values)
            return
        values = values.to(tensor.device).to(tensor.dtype)
        _scatter(tensor.detach(), values)
        if not np.array_equal(read(tensor), read(values)):
            raise ValueError(
                f"elements of a tensor {form(tensor)} share memory, but are to have different "
                "values; make it contiguous"
            )


def _shares_memory_within(tensor: torch.Tensor) -> bool:
    """Whether two of its elements may lie at one address; not if it is a permuted or sliced one."""
    reach = 0
    for step, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1 and tensor.numel():
            if step <= reach:
                return True
            reach += (n - 1) * step
    return False


def _scatter(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Write each element's bytes to its place in memory: torch moves bytes of every dtype."""
    if tensor.is_conj():
        tensor, values = tensor.conj(), values.conj().resolve_conj()
    if tensor.is_neg():
        tensor, values = tensor._neg_view(), values.neg()  # noqa: SLF001
    where = torch.zeros((), dtype=torch.int64)
    for n, step in zip(tensor.shape, tensor.stride(), strict=True):
        where = where.unsqueeze(-1) + torch.arange(n) * step
    memory = tensor.as_strided((int(where.max()) + 1,), (1,)).view(torch.uint8)
    each = tensor.element_size()
    source = values.contiguous().reshape(-1).view(torch.uint8).reshape(-1, each)
    memory.reshape(-1, each)[where.reshape(-1).to(tensor.device)] = source
