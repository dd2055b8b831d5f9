"""Collectives on the host that TensorFlow's are made of: numpy in, numpy out.

"All ranks" are those of the process set in `where`.

TensorFlow's bfloat16 arrays are of a dtype that numpy does not know: their bits travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_backup import operations
from hvd_backup.operations import HERE, Where
from hvd_backup.wire import Reduction, Typed

Array = npt.NDArray[Any]


def allreduce(arrays: Sequence[Array], how: Reduction, where: Where = HERE) -> list[Array]:
    """Each array combined over all ranks; those of one dtype in one message."""
    call = operations.allreduce([_typed(array) for array in arrays], how, where)
    return _as(arrays, operations.complete(call))


def allgather(array: Array, where: Where = HERE) -> tuple[Array, npt.NDArray[np.int64]]:
    """All ranks' rows, and how many each has."""
    rows, lengths = operations.complete(operations.allgather([_typed(array)], where))[0]
    return _as([array], [rows])[0], np.array(lengths, np.int64)


def broadcast(arrays: Sequence[Array], root_rank: int, where: Where = HERE) -> list[Array]:
    """`root_rank`'s arrays. Raises Mismatch if shapes or dtypes differ."""
    call = operations.broadcast([_typed(array) for array in arrays], root_rank, where)
    return _as(arrays, operations.complete(call))


def reducescatter(array: Array, how: Reduction, where: Where = HERE) -> Array:
    """This rank's rows of the combination; the first ranks have one more if it does not divide."""
    call = operations.reducescatter([_typed(array)], how, where)
    return _as([array], operations.complete(call))[0]


def alltoall(
    array: Array, splits: Array, where: Where = HERE
) -> tuple[Array, npt.NDArray[np.int32]]:
    """The rows that every rank has for this one, and how many each had.

    `splits` says how many rows go to each rank; empty: as many to all. Raises ValueError for
    splits that cannot be.
    """
    call = operations.alltoall(_typed(array), splits.tolist(), where)
    rows, lengths = operations.complete(call)
    return _as([array], [rows])[0], np.array(lengths, np.int32)


def _typed(array: Array) -> Typed:
    name = array.dtype.name
    return Typed(array.view(np.uint16) if name == "bfloat16" else array, name)


def _as(arrays: Sequence[Array], results: Sequence[Array]) -> list[Array]:
    """The results in the arrays' own dtypes."""
    return [
        result.view(array.dtype) if result.dtype != array.dtype else result
        for array, result in zip(arrays, results, strict=True)
    ]
