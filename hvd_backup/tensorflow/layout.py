"""Where the gradients of a list of variables lie in flat buffers. Pure: numpy and plain data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hvd_backup import errors
from hvd_backup.rounds.layout import ALIGN, FlatLayout, MarkLayout

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GradientSpec:
    """How one variable's gradient travels: dtype by name, shape, dense or as a table.

    A table has the variable's shape; its rows, those of axis 0, are told besides.
    """

    dtype: str
    shape: tuple[int, ...]
    sparse: bool = False

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __str__(self) -> str:
        return f"{'sparse ' if self.sparse else ''}{self.dtype}{list(self.shape)}"


# One per variable; None: no gradient of it can travel.
GradientSpecs = Sequence[GradientSpec | None]
Kind = bool | None  # of a gradient: sparse, dense or, with None, not there


def agree(names: Sequence[str], everybody: Sequence[GradientSpecs]) -> None:
    """Raises Mismatch, on every rank alike, when the ranks' gradients travel in other specs."""
    for i, of_variable in enumerate(zip(*everybody, strict=True)):
        if len(set(of_variable)) > 1:
            told = ", ".join(
                f"rank {rank}: {spec or 'none'}" for rank, spec in enumerate(of_variable)
            )
            raise errors.Mismatch(
                f"the ranks disagree on the gradient of variable {i}, {names[i]}: {told}"
            )


def is_table(kinds: Sequence[Kind], shape: tuple[int, ...], by_rows: bool) -> bool:
    """Whether a variable's gradients are exchanged with their rows told, and come back sparse.

    From all ranks' first gradients of it. So if some are sparse and none is dense; and, with
    `by_rows`, also if nobody has one as yet: if sparse ones come, their rows must be counted.
    """
    if any(kind is False for kind in kinds):
        return False
    return any(kinds) or (by_rows and len(shape) > 0)


class Layout:
    """One flat buffer per dtype, dense gradients first, then tables of sparse ones.

    A last buffer of float32 has a number per variable (had it a gradient?) and one per row of each
    table (was the row touched?). Their means are positive exactly if some contributor's was.
    """

    def __init__(self, specs: GradientSpecs) -> None:
        self.specs = list(specs)
        flat_layout = FlatLayout()
        self._offsets: dict[int, int] = {}  # variable -> elements
        dense = [i for i, spec in enumerate(specs) if spec is not None and not spec.sparse]
        tables = [i for i, spec in enumerate(specs) if spec is not None and spec.sparse]
        self._place(dense, flat_layout)
        self.dense_counts = [count for _, count in flat_layout.flats]
        self._place(tables, flat_layout)
        self._dtypes = [dtype for dtype, _ in flat_layout.flats]
        self.dense_counts += [0] * (len(self._dtypes) - len(self.dense_counts))
        self._memory = [Memory() for _ in self._dtypes]
        rows = [spec.shape[0] if spec is not None and spec.sparse else 0 for spec in specs]
        self._marks = MarkLayout(rows)
        self.flats = [*flat_layout.flats, ("float32", self._marks.count)]

    def _spec(self, i: int) -> GradientSpec:
        spec = self.specs[i]
        assert spec is not None
        return spec

    def _place(self, variables: list[int], flat_layout: FlatLayout) -> None:
        for i in variables:
            spec = self._spec(i)
            self._offsets[i] = flat_layout.add(spec.dtype, spec.size).offset

    def gradients(self, flats: Sequence[Bytes]) -> list[Array | None]:
        """Views of the buffers, one per variable, with its shape; None where none can travel."""
        views: list[Array | None] = [None] * len(self.specs)
        for i, offset in self._offsets.items():
            spec = self._spec(i)
            flat = flats[self._dtypes.index(spec.dtype)].view(dtype_of(spec.dtype))
            views[i] = flat[offset : offset + spec.size].reshape(spec.shape)
        return views

    def dense_copies(self, flats: Sequence[Bytes]) -> list[Array | None]:
        """The dense gradients as views of memory of their own, which TensorFlow takes as it is."""
        fresh: list[Bytes] = []
        for i, count in enumerate(self.dense_counts):
            nbytes = count * dtype_of(self._dtypes[i]).itemsize
            copy = self._memory[i].take(nbytes)
            copy[:] = flats[i][:nbytes]
            fresh.append(copy)
        views: list[Array | None] = [None] * len(self.specs)
        for i, offset in self._offsets.items():
            spec = self._spec(i)
            if not spec.sparse:
                typed = fresh[self._dtypes.index(spec.dtype)].view(dtype_of(spec.dtype))
                views[i] = typed[offset : offset + spec.size].reshape(spec.shape)
        return views

    def present(self, flats: Sequence[Bytes]) -> npt.NDArray[np.float32]:
        """View: a number per variable, 1 in a contribution if it has a gradient."""
        return self._marks.of_kind(flats[-1])

    def touched(self, flats: Sequence[Bytes]) -> dict[int, npt.NDArray[np.float32]]:
        """Views: for each sparse variable a number per row, 1 in a contribution if it has it."""
        views = self._marks.of_rows(flats[-1])
        return {
            i: view if view is not None else np.empty(0, np.float32)
            for i, view in enumerate(views)
            if (spec := self.specs[i]) is not None and spec.sparse
        }


class Memory:
    """Aligned blocks of one size, used again once no view of them is left, TensorFlow's included.

    The first touch of new memory takes longer than the copy into it.
    """

    def __init__(self) -> None:
        self._owners: list[Bytes] = []

    def take(self, nbytes: int) -> Bytes:
        """A block that nobody else has."""
        for i in range(len(self._owners)):
            if _references(self._owners, i) == _ALONE:
                return _aligned_part(self._owners[i], nbytes)
        self._owners.append(np.empty(nbytes + ALIGN, np.uint8))
        del self._owners[:-_SPARE]  # who keeps results keeps their memory; we need not
        return _aligned_part(self._owners[-1], nbytes)


def _references(owners: list[Bytes], i: int) -> int:
    return sys.getrefcount(owners[i])  # numpy's views refer to their memory's owner


_SPARE = 3
_ALONE = _references([np.empty(0, np.uint8)], 0)


def _aligned_part(memory: Bytes, nbytes: int) -> Bytes:
    first = -memory.ctypes.data % ALIGN
    return memory[first : first + nbytes]


def dtype_of(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name; bfloat16 comes from ml_dtypes, which TensorFlow brings."""
    if name == "bfloat16":
        import ml_dtypes

        return cast("np.dtype[Any]", np.dtype(ml_dtypes.bfloat16))
    return np.dtype(name)
