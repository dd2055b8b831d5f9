"""The MPI calls that move data: numpy arrays in, numpy arrays out.

All of them are here, few and simple, so that another communicator with mpi4py's names can stand in:
Allreduce, Allgatherv, Alltoallv, Bcast. A caller has made sure that all ranks are here with the
same arguments.

A dtype is numpy's name, or "bfloat16", whose array holds the bits as uint16.

MPI counts in ints, up to 2 GiB. What is larger travels in pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

Average, Sum, Min, Max, Product = "Average", "Sum", "Min", "Max", "Product"
"""Horovod's `op`: the mean, sum, minimum, maximum or product over the ranks, by element."""
_MPI_NAMES = {Average: "SUM", Sum: "SUM", Min: "MIN", Max: "MAX", Product: "PROD"}
OPERATIONS = tuple(_MPI_NAMES)

# Bytes of the largest piece that one MPI call moves on one rank. The same on all ranks.
LARGEST = 1 << 30

# numpy's kinds of dtypes that can be added, and that can be compared.
_ADDABLE, _ORDERED = "iufc", "iuf"


class Typed(NamedTuple):
    """An array and the dtype that its bits stand for."""

    array: Array
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.array.shape)}"


class ReduceOp(NamedTuple):
    """How arrays are combined: op(before * array), times after; an average is divided, too."""

    op: str = Average
    before: float = 1.0
    after: float = 1.0

    def __str__(self) -> str:
        text = f"op={self.op}"
        if self.before != 1.0:
            text += f", prescale_factor={self.before}"
        return text if self.after == 1.0 else f"{text}, postscale_factor={self.after}"


class Channel(NamedTuple):
    """A communicator and the module that its operations are from."""

    comm: Any
    mpi: Any


class Message(NamedTuple):
    """Bytes, or the reason why a rank has none to send."""

    data: Any  # bytes, or a uint8 array
    problem: str = ""


def can_reduce(dtype: str, op: str) -> bool:
    """Whether arrays of that dtype can be combined so."""
    if dtype == "bfloat16":
        return True
    return np.dtype(dtype).kind in (_ORDERED if op in (Min, Max) else _ADDABLE)


def same_everywhere(channel: Channel, text: bytes) -> bool:
    """Whether all ranks hold the same text. The same answer on every rank."""
    digest = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), np.int64)
    mine = np.concatenate([digest, ~digest])
    most = np.empty_like(mine)
    channel.comm.Allreduce(mine, most, op=channel.mpi.MAX)
    return bool((most[:2] == ~most[2:]).all())  # the largest is the smallest


def allreduce(channel: Channel, batch: Sequence[Typed], how: ReduceOp) -> list[Array]:
    """Combine over all ranks, fresh arrays; those of one dtype travel together."""
    if len(batch) == 1:
        return [_allreduce(channel, batch[0], how)]
    results: list[Array] = [part.array for part in batch]
    for dtype in sorted({part.dtype for part in batch}):
        where = [i for i, part in enumerate(batch) if part.dtype == dtype]
        flat = np.concatenate([batch[i].array.reshape(-1) for i in where])
        total = _allreduce(channel, Typed(flat, dtype), how)
        first = 0
        for i in where:
            array = batch[i].array
            results[i] = total[first : first + array.size].reshape(array.shape)
            first += array.size
    return results


def _allreduce(channel: Channel, part: Typed, how: ReduceOp) -> Array:
    flat = Typed(np.ascontiguousarray(part.array).reshape(-1), part.dtype)
    work = _prescaled(flat, how.before)
    result = np.empty_like(work)
    op = getattr(channel.mpi, _MPI_NAMES[how.op])
    for piece in _pieces(work.size, work.itemsize):
        channel.comm.Allreduce(work[piece], result[piece], op=op)
    total = _finished(result, part.dtype, how, channel.comm.size)
    return total.reshape(part.array.shape)


def reducescatter(channel: Channel, part: Typed, how: ReduceOp) -> Array:
    """This rank's rows of the combined array: as equal shares as can be, the first ones larger.

    Added in ascending order of rank, in float32 or wider.
    """
    source, size, rank = part.array, channel.comm.size, channel.comm.rank
    shares = shares_of(source.shape[0], size)
    most = shares[0] * _row_bytes(source)
    received = _exchange_rows(channel, source, shares, [shares[rank]] * size, most)
    pieces = received.reshape(size, shares[rank], *source.shape[1:])
    total = _prescaled(Typed(pieces[0], part.dtype), how.before).copy()
    for piece in pieces[1:]:
        total += _prescaled(Typed(piece, part.dtype), how.before)
    return _finished(total, part.dtype, how, size)


def shares_of(rows: int, size: int) -> list[int]:
    """How many of `rows` rows each rank gets."""
    share, rest = divmod(rows, size)
    return [share + (rank < rest) for rank in range(size)]


def allgather(channel: Channel, batch: Sequence[Array]) -> list[tuple[Array, list[int]]]:
    """Per array: all ranks' rows, one rank's after another's, and how many each rank had."""
    size = channel.comm.size
    mine = np.array([array.shape[0] for array in batch], np.int64)
    lengths = np.empty((size, len(batch)), np.int64)
    channel.comm.Allgatherv(mine, (lengths, [len(batch)] * size))
    return [
        (_gather_rows(channel, array, rows), rows)
        for array, rows in zip(batch, lengths.T.tolist(), strict=True)
    ]


def _gather_rows(channel: Channel, source: Array, rows: list[int]) -> Array:
    result = np.empty((sum(rows), *source.shape[1:]), source.dtype)
    row = _row_bytes(source)
    if result.nbytes <= LARGEST:
        channel.comm.Allgatherv(_bytes(source), (_bytes(result), [row * n for n in rows]))
        return result
    first = 0
    for rank, n in enumerate(rows):
        theirs = result[first : first + n]
        if rank == channel.comm.rank:
            theirs[...] = source
        broadcast(channel, theirs, rank)
        first += n
    return result


def alltoall(channel: Channel, source: Array, splits: Sequence[int]) -> tuple[Array, list[int]]:
    """`splits[r]` rows go to rank r. All that came, in order of rank, and how many from each."""
    size = channel.comm.size
    sent = np.array(splits, np.int64)
    received = np.empty(size, np.int64)
    ones = [1] * size
    channel.comm.Alltoallv((sent, ones), (received, ones))
    counts = received.tolist()
    largest = np.array([max(splits, default=0) * _row_bytes(source)], np.int64)
    most = np.empty_like(largest)
    channel.comm.Allreduce(largest, most, op=channel.mpi.MAX)
    rows = _exchange_rows(channel, source[: sum(splits)], splits, counts, int(most[0]))
    return rows, counts


def _exchange_rows(
    channel: Channel, source: Array, sent: Sequence[int], received: Sequence[int], most: int
) -> Array:
    """`most` is the same on all ranks: bytes that the largest share between any two ranks has."""
    source = np.ascontiguousarray(source)
    result = np.empty((sum(received), *source.shape[1:]), source.dtype)
    row = _row_bytes(source)
    to, from_ = [row * n for n in sent], [row * n for n in received]
    share = max(1, LARGEST // channel.comm.size)
    if most <= share:
        channel.comm.Alltoallv((_bytes(source), to), (_bytes(result), from_))
        return result
    for first in range(0, most, share):
        outgoing = _parts(_bytes(source), to, first, share)
        incoming = _parts(_bytes(result), from_, first, share)
        packed = np.concatenate(outgoing)
        landed = np.empty(sum(part.size for part in incoming), np.uint8)
        channel.comm.Alltoallv(
            (packed, [part.size for part in outgoing]), (landed, [part.size for part in incoming])
        )
        cuts = np.cumsum([part.size for part in incoming])[:-1]
        for part, piece in zip(incoming, np.split(landed, cuts), strict=True):
            part[...] = piece
    return result


def _parts(flat: Array, counts: Sequence[int], first: int, share: int) -> list[Array]:
    """Of each rank's `counts` bytes, which lie one after another: `share` ones from `first` on."""
    ends = np.cumsum(counts).tolist()
    starts = [end - count for end, count in zip(ends, counts, strict=True)]
    return [
        flat[min(start + first, end) : min(start + first + share, end)]
        for start, end in zip(starts, ends, strict=True)
    ]


def broadcast(channel: Channel, array: Array, root: int) -> None:
    """The root's bytes to every rank, in place: every dtype goes. `array` is contiguous."""
    flat = _bytes(array)
    for piece in _pieces(flat.size, 1):
        channel.comm.Bcast(flat[piece], root=root)


def broadcast_message(channel: Channel, message: Message | None, root: int) -> Message:
    """The root's message, on every rank; the others' are not looked at."""
    mine = _head(message, LARGEST) if message is not None and channel.comm.rank == root else None
    return _whole(channel, channel.comm.bcast(mine, root=root), message, root)


def gather_messages(channel: Channel, message: Message) -> list[Message]:
    """All ranks' messages, in order of rank."""
    heads = channel.comm.allgather(_head(message, LARGEST // channel.comm.size))
    return [_whole(channel, head, message, rank) for rank, head in enumerate(heads)]


class _Head(NamedTuple):
    """What all ranks are told of a message at first: all of it, if it is not `large`."""

    message: Message
    large: int = 0  # its bytes


def _head(message: Message, most: int) -> _Head:
    if len(message.data) <= most:
        return _Head(message)
    return _Head(Message(b"", message.problem), len(message.data))


def _whole(channel: Channel, head: _Head, mine: Message | None, root: int) -> Message:
    if not head.large:
        return head.message
    if channel.comm.rank == root and mine is not None:
        broadcast(channel, np.frombuffer(mine.data, np.uint8), root)
        return mine
    data = np.empty(head.large, np.uint8)
    broadcast(channel, data, root)
    return Message(data, head.message.problem)


def _pieces(count: int, itemsize: int) -> list[slice]:
    """Slices of `count` items, of `LARGEST` bytes at most each; one slice if there are no items."""
    step = max(1, LARGEST // itemsize)
    return [slice(first, first + step) for first in range(0, max(count, 1), step)]


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _row_bytes(array: Array) -> int:
    return int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize


def _widened(part: Typed) -> Array:
    """The array in a dtype that MPI adds, and that loses nothing: MPI has no halves."""
    if part.dtype == "bfloat16":
        return (part.array.astype(np.uint32) << 16).view(np.float32)
    return part.array.astype(np.float32) if part.dtype == "float16" else part.array


def _narrowed(array: Array, dtype: str) -> Array:
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # to inf, as in torch
            return array.astype(dtype, copy=False)
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    rounded[np.isnan(array.reshape(-1))] = 0x7FC0
    return rounded.astype(np.uint16).reshape(array.shape)


def _prescaled(part: Typed, factor: float) -> Array:
    """What is added up. Halves are scaled in float32 and rounded to halves again, as in Horovod."""
    scaled = _scaled(_widened(part), factor)
    if factor == 1.0 or part.dtype not in ("float16", "bfloat16"):
        return scaled
    return _widened(Typed(_narrowed(scaled, part.dtype), part.dtype))


def _scaled(array: Array, factor: float) -> Array:
    """Of integers: in float64, then cut off, as in Horovod."""
    if factor == 1.0:
        return array
    if array.dtype.kind in "iu":
        return (array.astype(np.float64) * factor).astype(array.dtype)
    with np.errstate(over="ignore"):  # to inf, as in torch
        scaled: Array = array * array.dtype.type(factor)
    return scaled


def _finished(total: Array, dtype: str, how: ReduceOp, size: int) -> Array:
    """The combined array as it is given back."""
    if how.op == Average:
        if total.dtype.kind in "iu":
            total = (total.astype(np.float64) / size * how.after).astype(total.dtype)
            return total.astype(dtype, copy=False)
        total /= total.dtype.type(size)
    return _narrowed(_scaled(total, how.after), dtype)
