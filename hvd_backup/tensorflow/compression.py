"""What becomes of a tensor on its way to the other ranks."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class Compressor:
    """Base of compressors: two static methods, called in the program, eagerly or in a graph."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """Prepare a tensor for its way to the other ranks.

        Args:
            tensor: Of any shape and dtype.

        Returns:
            The tensor that travels, of any shape and floating dtype; and a context for
            ``decompress``.

        Raises:
            NotImplementedError: A subclass has to do it.
        """
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
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
    """Tensors travel as they are."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        return tensor, None

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
        return tensor


class _Cast(Compressor):
    dtype: Any

    @classmethod
    def compress(cls, tensor: Any) -> tuple[Any, Any]:
        wide = tensor.dtype.is_floating and tensor.dtype.size > cls.dtype.size
        return (tf.cast(tensor, cls.dtype) if wide else tensor), tensor.dtype

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
        return tf.cast(tensor, ctx)


class FP16Compressor(_Cast):
    """float32 and float64 travel as float16. Sums are made in float32. Other dtypes stay."""

    dtype = tf.float16
    """The dtype that travels."""


class BF16Compressor(_Cast):
    """float32 and float64 travel as bfloat16. Sums are made in float32. Not in Horovod."""

    dtype = tf.bfloat16
    """The dtype that travels."""


class Compression:
    """Horovod's ``Compression``, and bf16. A compressor of your own has the same two methods.

    Attributes:
        none: Tensors travel as they are.
        fp16: float32 and float64 travel as float16.
        bf16: float32 and float64 travel as bfloat16.
    """

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor
