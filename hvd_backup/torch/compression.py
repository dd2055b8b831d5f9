"""The dtype in which gradients travel: Horovod's ``Compression``.

Each element of a mean is still added up in float32 (float64 for float64), whatever it travels in.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Compresses(Protocol):
    """What DistributedOptimizer takes as `compression`: a class or an object with these two.

    ``compress`` gives a dense tensor of float16, bfloat16, float32 or float64, always of one dtype
    and shape for one parameter, and what ``decompress`` needs besides. ``decompress`` gives a
    tensor of the parameter's shape. What travels is averaged, so a mean of what was compressed must
    be what a mean compresses to, more or less. A rank that skipped a round decompresses with what
    its last ``compress`` gave, or that of zeros.
    """

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]: ...
    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor: ...


class Compressor:
    """Base of compressors: static ``compress(tensor)`` and ``decompress(tensor, ctx)``."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """What travels, and what ``decompress`` needs besides."""
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """What ``compress`` was given, as far as it can be told."""
        raise NotImplementedError


class NoneCompressor(Compressor):
    """Gradients travel as they are, and without a copy."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return tensor, None

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        return tensor


class _Cast(Compressor):
    """Wider floating dtypes travel as `dtype`.

    Integers, bool and complex numbers travel as they are: a half cannot hold them.
    """

    dtype: torch.dtype

    @classmethod
    def compress(cls, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        wide = tensor.dtype.is_floating_point and tensor.dtype.itemsize > cls.dtype.itemsize
        return (tensor.to(cls.dtype) if wide else tensor), tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        return tensor.to(ctx)


class FP16Compressor(_Cast):
    """float32 and float64 travel as float16: beyond 65504 they are inf."""

    dtype = torch.float16


class BF16Compressor(_Cast):
    """float32 and float64 travel as bfloat16: float32's range, 8 bits of precision.

    Not in Horovod.
    """

    dtype = torch.bfloat16


class Compression:
    """The compressors that are there."""

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor


def probe(compression: Compresses, name: str, param: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """What a gradient of zeros compresses to. Raises TypeError for what cannot be exchanged."""
    answer = compression.compress(torch.zeros_like(param, memory_format=torch.contiguous_format))
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(f"{title(compression)}.compress returns (tensor, ctx), not {answer!r:.80}")
    sent, ctx = answer
    if not isinstance(sent, torch.Tensor) or sent.layout != torch.strided:
        raise TypeError(
            f"{title(compression)} makes {type(sent).__name__} of parameter {name!r}; only dense "
            "tensors can be averaged"
        )
    return sent, ctx


def title(compression: Compresses) -> str:
    """Its name, for an error."""
    named = compression if isinstance(compression, type) else type(compression)
    return named.__name__
