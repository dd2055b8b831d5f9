"""Where tensors lie in the flat buffers of a contribution, and marks go with them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ALIGN = 64  # bytes; vector loads, and TensorFlow takes numpy memory that is so aligned as it is

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Bytes of an element, by the dtypes that a contribution may have."""


class Place(NamedTuple):
    """Where a tensor begins."""

    flat: int
    """Which flat buffer."""
    offset: int
    """Elements from its start."""


class FlatLayout:
    """Tensors one after another, in one flat buffer per dtype, each at a multiple of 64 bytes."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    @property
    def flats(self) -> list[tuple[str, int]]:
        """dtype and number of elements of each buffer, in the order in which dtypes came."""
        return list(self._counts.items())

    def add(self, dtype: str, count: int) -> Place:
        """The place of one more tensor, of `count` elements."""
        offset = self._counts.get(dtype, 0)
        per_line = ALIGN // ITEMSIZE[dtype]
        self._counts[dtype] = -(-(offset + count) // per_line) * per_line
        return Place(list(self._counts).index(dtype), offset)


class MarkLayout:
    """A buffer of float32 that tells what of a contribution is there.

    First come `kinds` numbers per tensor, one kind after another. Then comes one number per row of
    every tensor: `rows[i]` of them for tensor i, or none. A contributor writes 1 for what it has.
    The mean is positive exactly where some contributor has written 1. So the round itself tells all
    ranks which tensors, kinds and rows are present.
    """

    def __init__(self, rows: Sequence[int], kinds: int = 1) -> None:
        self._tensors = len(rows)
        self._kinds = kinds
        self._rows = list(rows)

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return self._kinds * self._tensors + sum(self._rows)

    def of_kind(self, flat: npt.NDArray[np.uint8], kind: int = 0) -> npt.NDArray[np.float32]:
        """A view of the buffer: a number per tensor."""
        first = kind * self._tensors
        return flat.view(np.float32)[first : first + self._tensors]

    def of_rows(self, flat: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32] | None]:
        """Views of the buffer: per tensor a number for each row, None if it has none."""
        words = flat.view(np.float32)
        views: list[npt.NDArray[np.float32] | None] = []
        at = self._kinds * self._tensors
        for length in self._rows:
            views.append(words[at : at + length] if length else None)
            at += length
        return views
