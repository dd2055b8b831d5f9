"""The dtype in which gradients travel: Horovod's ``Compression``.

Each element of a mean is still added up in float32 (float64 for float64), whatever it travels in.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Compresses(Protocol):
    """What DistributedOptimizer takes as `compression`: a class or object with these two methods.

    What travels is averaged, so the mean of compressed gradients must be, more or less, the
    compressed mean. A rank that skipped a round decompresses with the `ctx` of its last
    ``compress``, or that of zeros.
    """

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Prepare a gradient for its way to the other ranks.

        Args:
            tensor: The gradient, of the parameter's shape and dtype.

        Returns:
            A dense tensor of dtype float16, bfloat16, float32 or float64, always of the same shape
            and dtype for one parameter; and a context for ``decompress``.
        """

    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Turn what came back into a gradient.

        Args:
            tensor: The mean, of the shape and dtype that ``compress`` gave.
            ctx: The context that ``compress`` gave.

        Returns:
            A tensor of the parameter's shape and dtype.
        """


class Compressor:
    """Base of compressors: two static methods. Horovod's ``Compressor``."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Prepare a tensor for its way to the other ranks.

        Args:
            tensor: Of any shape and dtype.

        Returns:
            The tensor that travels, dense, of any shape and floating dtype; and a context for
            ``decompress``.

        Raises:
            NotImplementedError: A subclass has to do it.
        """
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Turn what came back into a tensor like the original.

        Args:
            tensor: Of the shape and dtype that ``compress`` gave.
            ctx: The context that ``compress`` gave.

        Returns:
            A tensor of the original's shape and dtype.

        Raises:
            NotImplementedError: A subclass has to do it.
        """
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
    """float32 and float64 travel as float16: values beyond 65504 are inf. Other dtypes stay."""

    dtype = torch.float16
    """The dtype that travels."""


class BF16Compressor(_Cast):
    """float32 and float64 travel as bfloat16: float32's range, 8 bits of precision.

    Not in Horovod.
    """

    dtype = torch.bfloat16
    """The dtype that travels."""


class Compression:
    """The compressors. Horovod's ``Compression``, and bf16.

    Attributes:
        none: Tensors travel as they are.
        fp16: float32 and float64 travel as float16.
        bf16: float32 and float64 travel as bfloat16.
    """

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
