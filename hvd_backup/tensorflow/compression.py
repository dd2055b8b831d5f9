"""What becomes of a tensor on its way to the other ranks."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class Compressor:
    """Interface: two static methods that are called in the program, eagerly or in a graph."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """The tensor that travels, and what ``decompress`` needs to know."""
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
        """A tensor of the original's kind from one that came back."""
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
    """float32 and float64 travel as float16; sums are float32 all the same."""

    dtype = tf.float16


class BF16Compressor(_Cast):
    """float32 and float64 travel as bfloat16."""

    dtype = tf.bfloat16


class Compression:
    """The compressors there are; a user's own is a class with the same two methods."""

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor
