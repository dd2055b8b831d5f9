"""The collectives that wait for everybody, for any framework: arrays in, a handle out.

What they do is Horovod's: calls are matched by name, integers are averaged and scaled in float64
and cut off, roots are ranks of the world.
"""

from __future__ import annotations

import ast
import importlib
import numbers
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hvd_backup import errors
from hvd_backup.collectives.process_sets import ProcessSet, global_process_set, table_of
from hvd_backup.phrases import ranks_text
from hvd_backup.rounds.absence import Absence
from hvd_backup.world import runtime, wire
from hvd_backup.world.table import Operation
from hvd_backup.world.wire import Average, Channel, Message, ReduceOp, Sum, Typed

Array = npt.NDArray[Any]
Finish = Callable[[Any], Any]
Adasum = "Adasum"
"""`op` of Horovod's Adasum, which only an installed Horovod can compute."""
_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError, RecursionError)


class UnsupportedOperation(errors.Error, ValueError):
    """The call does not know that `op`. Where Horovod raises its HorovodInternalError for it."""


class Where(NamedTuple):
    """Among whom, and under which name."""

    process_set: ProcessSet = global_process_set
    name: str | None = None


HERE = Where()


def op_of(op: str | None, average: bool | None) -> str:
    """Horovod's `op`, from it and from the older `average`."""
    if op is not None:
        if average is not None:
            raise ValueError(
                "The op parameter supersedes average. Please provide only one of them."
            )
        return op
    if average is None:
        return Average
    warnings.warn(
        "Parameter `average` has been replaced with `op` and will be removed in v1.0",
        DeprecationWarning,
        stacklevel=3,
    )
    return Average if average else Sum


def allreduce(
    batch: Sequence[Typed], how: ReduceOp, where: Where = HERE, finish: Finish | None = None
) -> Operation:
    """Combine over all ranks; a list of fresh arrays. All of the batch are one call.

    Raises ValueError for an operation that there is not, or not for such a dtype.
    """
    _check_reduction("allreduce", batch, how, wire.OPERATIONS)
    spec = ([(part.dtype, part.array.shape) for part in batch], tuple(how))
    inside = ", ".join(map(str, batch))
    return _put_down(
        "allreduce",
        f"{inside}, {how}",
        lambda channel: wire.allreduce(channel, batch, how),
        where,
        finish,
        signature=spec,
    )


def reducescatter(
    batch: Sequence[Typed], how: ReduceOp, where: Where = HERE, finish: Finish | None = None
) -> Operation:
    """Combine over all ranks and share out the rows; a list of arrays.

    Raises UnsupportedOperation for other operations than Average and Sum, ValueError for a scalar.
    """
    if how.op not in (Average, Sum):
        raise UnsupportedOperation(
            f"Reducescatter currently only supports AVERAGE and SUM. (op={how.op!r}; allreduce "
            "knows the others.)"
        )
    _check_reduction("reducescatter", batch, how, (Average, Sum))
    _check_rows("reducescatter", "divide", batch)
    return _put_down(
        "reducescatter",
        f"{', '.join(map(str, batch))}, {how}",
        lambda channel: [wire.reducescatter(channel, part, how) for part in batch],
        where,
        finish,
    )


def allgather(
    batch: Sequence[Typed], where: Where = HERE, finish: Finish | None = None
) -> Operation:
    """All ranks' rows: a list of (array, how many rows each rank had)."""
    _check_rows("allgather", "concatenate", batch)
    return _put_down(
        "allgather",
        ", ".join(map(_any_length, batch)),
        lambda channel: wire.allgather(
            channel, [np.ascontiguousarray(part.array) for part in batch]
        ),
        where,
        finish,
    )


def broadcast(
    batch: Sequence[Typed], root_rank: int, where: Where = HERE, finish: Finish | None = None
) -> Operation:
    """`root_rank`'s arrays on every rank, fresh ones. The root is a rank of the world.

    Raises ValueError if there is no such rank in the world, or in the process set.
    """
    root = root_in(root_rank, where.process_set, "broadcast")

    def run(channel: Channel) -> list[Array]:
        results = [np.array(part.array, order="C", copy=True) for part in batch]
        for result in results:
            wire.broadcast(channel, result, root)
        return results

    inside = ", ".join(map(str, batch))
    return _put_down("broadcast", f"{inside}, root_rank={root_rank}", run, where, finish)


def alltoall(
    part: Typed,
    splits: Sequence[int] | None,
    where: Where = HERE,
    finish: Finish | None = None,
) -> Operation:
    """`splits[r]` of this rank's rows go to rank r: (all that came, how many from each).

    Without splits every rank gets as many. Raises ValueError for splits that cannot be.
    """
    _check_rows("alltoall", "divide", [part])
    size = len(table_of(where.process_set, "alltoall").ranks)
    sent = splits_of(part.array.shape[0], splits, size)
    return _put_down(
        "alltoall",
        _any_length(part),
        lambda channel: wire.alltoall(channel, part.array, sent),
        where,
        finish,
    )


def splits_of(rows: int, splits: Sequence[int] | None, size: int) -> list[int]:
    """The splits, or equal ones. Raises ValueError, in Horovod's words, for what cannot be."""
    numbers = f"{rows} rows, {size} ranks"
    if splits is None or not len(splits):
        if rows % size:
            raise ValueError(
                "splits not provided, but first dimension of tensor is not an even multiple of the "
                f"number of workers. ({numbers})"
            )
        return [rows // size] * size
    counts = [int(count) for count in splits]
    if len(counts) != size:
        raise ValueError(
            f"Number of entries in splits does not equal number of workers. ({len(counts)} "
            f"entries, {size} ranks)"
        )
    if min(counts) < 0:
        raise ValueError(f"splits={counts}: none can be negative")
    if sum(counts) > rows:
        raise ValueError(
            "Sum of splits entries is greater than the first dimension of tensor. "
            f"({sum(counts)} > {rows})"
        )
    return counts


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Wait until all ranks of the set are here."""
    complete(_put_down("barrier", "", lambda _: None, Where(process_set), None))


def join() -> int:
    """Say that this rank has no more data, and wait until all ranks have said so.

    Meanwhile it takes part in their all-reduces, with zeros, and abstains in their rounds. When all
    have joined, the models and optimizers that went through rounds are equal on all ranks again:
    as on the rank that went furthest. The rank that came last. The others' other calls raise
    Mismatch on them.
    """
    world = runtime.current()
    with world.one_at_a_time:
        return world.table.join(_all_reduce_zeros, Absence(world))


def _all_reduce_zeros(signature: str, channel: Channel) -> None:
    """What a rank that has joined does in an all-reduce of that signature."""
    shapes, how = ast.literal_eval(signature)
    batch = [
        Typed(np.zeros(shape, np.uint16 if dtype == "bfloat16" else dtype), dtype)
        for dtype, shape in shapes
    ]
    wire.allreduce(channel, batch, ReduceOp(*how))


def complete(operation: Operation, timeout: float | None = None) -> Any:
    """Wait until it is done; its result. Raises Mismatch, RoundTimeout, PeerFailed."""
    assert operation.table is not None
    with runtime.current().one_at_a_time:
        return operation.table.complete(operation, timeout)


def poll(operation: Operation) -> bool:
    """Whether it is done. If not, this rank meets the others once, for which it may wait."""
    assert operation.table is not None
    with runtime.current().one_at_a_time:
        return operation.table.look(operation)


# ---- objects ------------------------------------------------------------------------------------


def broadcast_object(obj: Any, root_rank: int, where: Where = HERE) -> Any:
    """`root_rank`'s object, on every rank; Error, on every rank, if it does not pickle."""
    root = root_in(root_rank, where.process_set, "broadcast_object")

    def run(channel: Channel) -> Message:
        mine = pickled(obj) if channel.comm.rank == root else None
        return wire.broadcast_message(channel, mine, root)

    call = _put_down("broadcast_object", f"root_rank={root_rank}", run, where, None)
    return _unpickled([complete(call)], [root_rank])[0]


def allgather_object(obj: Any, where: Where = HERE) -> list[Any]:
    """The objects of all ranks, in order of rank; Error, on every rank, if one does not pickle."""

    def run(channel: Channel) -> list[Message]:
        return wire.gather_messages(channel, pickled(obj))

    call = _put_down("allgather_object", "", run, where, None)
    ranks = table_of(where.process_set, "allgather_object").ranks
    return _unpickled(complete(call), ranks)


def pickled(obj: object) -> Message:
    """The pickle, or why there is no pickle, so that the others need not wait for it."""
    try:
        return Message(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))
    except _UNPICKLABLE as error:
        problem = f"{type(obj).__name__} cannot be pickled: {error}"
    # Functions and classes that are made in a function, say: as Horovod.
    try:
        cloudpickle = importlib.import_module("cloudpickle")
    except ImportError:
        return Message(b"", f"{problem} (cloudpickle may do it: pip install cloudpickle)")
    try:
        return Message(cloudpickle.dumps(obj))
    except _UNPICKLABLE:
        return Message(b"", problem)


def _unpickled(everybody: Sequence[Message], ranks: Sequence[int]) -> list[Any]:
    for rank, (_, problem) in zip(ranks, everybody, strict=True):
        if problem:
            raise errors.Error(f"rank {rank}: {problem}")
    return [pickle.loads(data) for data, _ in everybody]


# ---- what all have in common --------------------------------------------------------------------


def any_call(
    kind: str,
    inside: str,
    run: Callable[[Channel], Any],
    where: Where = HERE,
    signature: Any = None,
) -> Operation:
    """Some other call that all ranks make: ``kind(inside)`` in words. ``run`` does it."""
    return _put_down(kind, inside, run, where, None, signature)


def _put_down(
    kind: str,
    inside: str,
    run: Callable[[Channel], Any],
    where: Where,
    finish: Finish | None,
    signature: Any = None,
) -> Operation:
    table = table_of(where.process_set, kind)
    if where.name:
        inside = f"{inside}, name={where.name!r}" if inside else f"name={where.name!r}"
    body = run if finish is None else lambda channel: finish(run(channel))
    # As in Horovod: an all-reduce and a broadcast may have one name.
    name = f"{kind}.{where.name}" if where.name else None
    operation = Operation(kind, f"{kind}({inside})", body, name=name, signature=signature)
    with runtime.current().one_at_a_time:
        return table.add(operation)


def root_in(root_rank: int, process_set: ProcessSet, kind: str) -> int:
    """The root's rank in the set. Raises ValueError if there is no such rank."""
    size = runtime.size()
    if isinstance(root_rank, bool) or not isinstance(root_rank, numbers.Integral):
        raise TypeError(f"{kind}: root_rank must be an int, not {root_rank!r}")
    if not 0 <= root_rank < size:
        raise ValueError(f"root_rank={root_rank} is not in a world of {size} ranks")
    ranks = table_of(process_set, kind).ranks
    if root_rank not in ranks:
        raise ValueError(
            f"root_rank={root_rank} is not in the process set of {ranks_text(ranks)}; a root is "
            "given by its rank in the world"
        )
    return ranks.index(root_rank)


def _check_reduction(
    kind: str, batch: Sequence[Typed], how: ReduceOp, known: Sequence[str]
) -> None:
    if how.op not in known:
        raise ValueError(f"op={how.op!r}: use one of {', '.join(known)}")
    if not batch:
        raise ValueError(f"{kind} of an empty list: there is nothing to combine")
    for part in batch:
        if not wire.can_reduce(part.dtype, how.op):
            raise ValueError(
                f"{kind}: {part.dtype} cannot be combined by {how.op}; convert it to an integer or "
                "floating dtype"
            )


def _check_rows(kind: str, verb: str, batch: Sequence[Typed]) -> None:
    if not batch:
        raise ValueError(f"{kind} of an empty list: there is nothing to {verb}")
    if any(part.array.ndim == 0 for part in batch):
        raise ValueError(f"{kind} needs at least one axis to {verb} along")


def _any_length(part: Typed) -> str:
    shape = ", ".join(["any", *map(str, part.array.shape[1:])])
    return f"{part.dtype}[{shape}]"
