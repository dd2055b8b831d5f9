"""Collectives on the host that TensorFlow's are made of: numpy in, numpy out.

"All ranks" are those of the process set in `where`.

TensorFlow's bfloat16 arrays are of a dtype that numpy does not know: their bits travel. Strings are
arrays of bytes objects: their lengths travel first, in an array of the same shape, then the bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_backup.collectives import operations
from hvd_backup.collectives.operations import HERE, Where
from hvd_backup.world import runtime
from hvd_backup.world.wire import ReduceOp, Typed

Array = npt.NDArray[Any]


def allreduce(arrays: Sequence[Array], how: ReduceOp, where: Where = HERE) -> list[Array]:
    """Each array combined over all ranks; those of one dtype in one message.

    Raises ValueError for strings.
    """
    _refuse_strings("allreduce", arrays)
    call = operations.allreduce([_typed(array) for array in arrays], how, where)
    return _as(arrays, operations.complete(call))


def allgather(array: Array, where: Where = HERE) -> tuple[Array, npt.NDArray[np.int64]]:
    """All ranks' rows, and how many each has."""
    rows, counts = operations.complete(operations.allgather([_typed(array)], where))[0]
    if _is_text(array):
        call = operations.allgather([_bytes_of([array])], where)
        (result,) = _texts([rows], operations.complete(call)[0][0])
    else:
        (result,) = _as([array], [rows])
    return result, np.array(counts, np.int64)


def broadcast(arrays: Sequence[Array], root_rank: int, where: Where = HERE) -> list[Array]:
    """`root_rank`'s arrays. Raises Mismatch if shapes or dtypes differ."""
    call = operations.broadcast([_typed(array) for array in arrays], root_rank, where)
    results = _as(arrays, operations.complete(call))
    texts = [i for i, array in enumerate(arrays) if _is_text(array)]
    if texts:
        content = _bytes_of([arrays[i] for i in texts])
        lengths = [results[i] for i in texts]
        if runtime.rank() != root_rank:
            content = Typed(np.empty(sum(int(n.sum()) for n in lengths), np.uint8), "uint8")
        (sent,) = operations.complete(operations.broadcast([content], root_rank, where))
        for i, result in zip(texts, _texts(lengths, sent), strict=True):
            results[i] = result
    return results


def reducescatter(array: Array, how: ReduceOp, where: Where = HERE) -> Array:
    """This rank's rows of the combination; the first ranks have one more if it does not divide.

    Raises ValueError for strings.
    """
    _refuse_strings("reducescatter", [array])
    call = operations.reducescatter([_typed(array)], how, where)
    return _as([array], operations.complete(call))[0]


def alltoall(
    array: Array, splits: Array, where: Where = HERE
) -> tuple[Array, npt.NDArray[np.int32]]:
    """The rows that every rank has for this one, and how many each had.

    `splits` says how many rows go to each rank; empty: as many to all. Raises ValueError for
    splits that cannot be.
    """
    lengths = _typed(array)
    call = operations.alltoall(lengths, splits.tolist(), where)
    rows, counts = operations.complete(call)
    if _is_text(array):
        sent = operations.splits_of(len(array), splits.tolist(), len(counts))
        ends = np.cumsum([0, *sent])
        parts = [int(lengths.array[a:b].sum()) for a, b in itertools.pairwise(ends)]
        # StatusBoard that no rank is sent stay at the end.
        call = operations.alltoall(_bytes_of([array]), parts, where)
        (result,) = _texts([rows], operations.complete(call)[0])
    else:
        (result,) = _as([array], [rows])
    return result, np.array(counts, np.int32)


def _typed(array: Array) -> Typed:
    name = array.dtype.name
    if _is_text(array):
        lengths = [len(text) for text in array.reshape(-1)]
        return Typed(np.array(lengths, np.int64).reshape(array.shape), "string")
    return Typed(array.view(np.uint16) if name == "bfloat16" else array, name)


def _as(arrays: Sequence[Array], results: Sequence[Array]) -> list[Array]:
    """The results in the arrays' own dtypes; of strings their lengths, as they came."""
    return [
        result.view(array.dtype) if result.dtype != array.dtype and not _is_text(array) else result
        for array, result in zip(arrays, results, strict=True)
    ]


# ---- strings ------------------------------------------------------------------------------------


def _is_text(array: Array) -> bool:
    return array.dtype.kind == "O"


def _bytes_of(arrays: Sequence[Array]) -> Typed:
    """All their bytes, one string's after another's."""
    content = b"".join(text for array in arrays for text in array.reshape(-1))
    return Typed(np.frombuffer(content, np.uint8), "uint8")


def _texts(lengths: Sequence[Array], content: Array) -> list[Array]:
    """Arrays of strings of these lengths, whose bytes are the content."""
    data, first = content.tobytes(), 0
    results = []
    for counts in lengths:
        flat = np.empty(counts.size, object)
        for i, count in enumerate(counts.reshape(-1).tolist()):
            flat[i] = data[first : first + count]
            first += count
        results.append(flat.reshape(counts.shape))
    return results


def _refuse_strings(kind: str, arrays: Sequence[Array]) -> None:
    if any(map(_is_text, arrays)):
        raise ValueError(f"{kind}: strings cannot be combined; allgather and broadcast send them")
