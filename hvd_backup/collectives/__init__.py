"""Collectives on numpy arrays and Python objects."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

import numpy as np
import numpy.typing as npt

from hvd_backup.collectives import operations
from hvd_backup.collectives.operations import Where
from hvd_backup.collectives.process_sets import ProcessSet, global_process_set
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.rounds.reports import Round
from hvd_backup.world import runtime
from hvd_backup.world.wire import Average, ReduceOp, Typed

Array = npt.NDArray[Any]
T = TypeVar("T")
P = ParamSpec("P")

# Plans (slots, window) of the last so many kinds of partial_allreduce are kept. All ranks make the
# same calls, so they forget the same ones.
_PLANS = 16
_FLOATS = ("float16", "float32", "float64")


def one_at_a_time(function: Callable[P, T]) -> Callable[P, T]:
    """Threads of a process take turns; that they do so alike on all ranks is up to the caller."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with runtime.current().one_at_a_time:
            return function(*args, **kwargs)

    return call


class PartialMean(NamedTuple):
    """What one ``partial_allreduce`` of an array gives."""

    value: Array
    round: Round


class PartialMeans(NamedTuple):
    """What one ``partial_allreduce`` of a list of arrays gives."""

    value: list[Array]
    round: Round


@overload
def partial_allreduce(
    arrays: Array,
    *,
    backup_workers: int | None = ...,
    weight: float = ...,
    name: str | None = ...,
    grace: float | None = ...,
    window: int | None = ...,
    timeout: float | None = ...,
) -> PartialMean: ...


@overload
def partial_allreduce(
    arrays: Sequence[Array],
    *,
    backup_workers: int | None = ...,
    weight: float = ...,
    name: str | None = ...,
    grace: float | None = ...,
    window: int | None = ...,
    timeout: float | None = ...,
) -> PartialMeans: ...


@one_at_a_time
def partial_allreduce(
    arrays: Array | Sequence[Array],
    *,
    backup_workers: int | None = None,
    weight: float = 1.0,
    name: str | None = None,
    grace: float | None = None,
    window: int | None = None,
    timeout: float | None = None,
) -> PartialMean | PartialMeans:
    """Average over the first R - b ranks to come; every rank gets the same bits.

    `arrays` is a C-contiguous numpy array of float16, float32 or float64, or a list of them (one
    contribution: all are in the round, or none). The value has the same shapes and dtypes in fresh
    arrays: sum of weight times array over the contributors, divided by the sum of their weights.
    A late rank contributes nothing and gets the result of the round it was late for.

    `backup_workers` is b (default: HVD_BACKUP_WORKERS, else 0); `grace` seconds keep the round open
    after its quorum; `window` results are kept for late ranks; `timeout` is in seconds. Calls with
    one `name`, shape, dtype and options form one sequence of rounds.

    Raises ValueError or TypeError for arguments that cannot be; Mismatch when ranks disagree;
    RoundTimeout, which names the missing ranks; PeerFailed.
    """
    single = isinstance(arrays, np.ndarray)
    if not isinstance(arrays, np.ndarray | list | tuple):
        what = type(arrays).__name__
        raise TypeError(f"partial_allreduce takes a numpy array or a list of them, not {what}")
    batch = [arrays] if isinstance(arrays, np.ndarray) else list(arrays)
    label = _describe(batch, name)
    options = (backup_workers, grace, window, timeout)
    plan = _plan(label, batch, options)
    if single and batch[0].size:
        value = np.empty_like(batch[0])
        return PartialMean(value, plan.allreduce(batch[0], value, weight))
    values, round_ = _exchange(plan, batch, weight)
    return PartialMean(values[0], round_) if single else PartialMeans(values, round_)


def _describe(batch: list[Array], name: str | None) -> str:
    """The contribution in words; raises what is wrong with it."""
    if not batch:
        raise ValueError("partial_allreduce of an empty list: there is nothing to average")
    for i, array in enumerate(batch):
        which = f"partial_allreduce: array {i} of {len(batch)}"
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{which} is {type(array).__name__}, not a numpy array")
        if array.dtype.name not in _FLOATS or not array.dtype.isnative:
            raise TypeError(
                f"{which} has dtype {array.dtype}, which cannot be averaged; "
                f"convert it to one of {', '.join(_FLOATS)}"
            )
        if not array.flags.c_contiguous:
            raise ValueError(f"{which} is not contiguous; pass np.ascontiguousarray(array)")
    inside = ", ".join(f"{array.dtype.name}{list(array.shape)}" for array in batch)
    return f"partial_allreduce({inside}{f', name={name!r}' if name else ''})"


def _plan(label: str, batch: list[Array], options: tuple[Any, ...]) -> Exchange:
    world = runtime.current()
    key = (label, options)
    plan: Exchange | None = world.plans.pop(key, None)
    if plan is None:
        backup_workers, grace, window, timeout = options
        plan = Exchange(
            [
                (dtype, sum(a.size for a in batch if a.dtype.name == dtype))
                for dtype in _kinds(batch)
            ],
            backup_workers=backup_workers,
            grace=grace,
            window=window,
            timeout=timeout,
            name=label,
        )
        plan.allow_absence(None)
    world.plans[key] = plan  # last in the dict: used last
    if len(world.plans) > _PLANS:
        world.plans.pop(next(iter(world.plans))).close()
    return plan


def _kinds(batch: list[Array]) -> list[str]:
    return sorted({array.dtype.name for array in batch})


def _exchange(plan: Exchange, batch: list[Array], weight: float) -> tuple[list[Array], Round]:
    for part, array in zip(_parts(plan.slots, batch), batch, strict=True):
        part[...] = array
    plan.arrive(weight)
    round_ = plan.wait()
    return [part.copy() for part in _parts(plan.results, batch)], round_


def _parts(flats: list[npt.NDArray[np.uint8]], batch: list[Array]) -> list[Array]:
    """Views of the flat buffers, shaped as the arrays of the batch."""
    typed = {kind: flat.view(kind) for kind, flat in zip(_kinds(batch), flats, strict=True)}
    used = dict.fromkeys(typed, 0)
    parts = []
    for array in batch:
        kind = array.dtype.name
        first, used[kind] = used[kind], used[kind] + array.size
        parts.append(typed[kind][first : used[kind]].reshape(array.shape))
    return parts


def allreduce(
    array: Array,
    op: str = Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Array:
    """Combine `array` over all ranks; every rank waits for every other. A fresh array.

    `op` is Average, Sum, Min, Max or Product; the factors scale what goes in and what comes out.
    Raises Mismatch, on every rank, when shapes, dtypes, ops or factors differ, and TypeError for
    the average of integers.
    """
    source = np.asarray(array, order="C")
    if op == Average and not np.issubdtype(source.dtype, np.inexact):
        raise TypeError(f"the average of {source.dtype} is no {source.dtype}; use op=hb.Sum")
    how = ReduceOp(op, prescale_factor, postscale_factor)
    call = operations.allreduce([_typed(source)], how, Where(process_set, name))
    result: Array = operations.complete(call)[0]
    return result


def reducescatter(
    array: Array,
    op: str = Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Array:
    """Combine `array` over all ranks and share out its rows: a fresh array of this rank's share.

    If the rows cannot be shared equally, the first ranks get one more. `op` is Average or Sum.
    Raises as ``allreduce`` does, and ValueError for a scalar.
    """
    source = np.asarray(array, order="C")
    if op == Average and not np.issubdtype(source.dtype, np.inexact):
        raise TypeError(f"the average of {source.dtype} is no {source.dtype}; use op=hb.Sum")
    how = ReduceOp(op, prescale_factor, postscale_factor)
    call = operations.reducescatter([_typed(source)], how, Where(process_set, name))
    result: Array = operations.complete(call)[0]
    return result


def broadcast(
    array: Array,
    root_rank: int = 0,
    *,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Array:
    """The array of `root_rank`, a rank of the world, as a fresh array on every rank.

    Raises Mismatch, on every rank, when shapes, dtypes or roots differ.
    """
    source = np.asarray(array)
    call = operations.broadcast([_typed(source)], root_rank, Where(process_set, name))
    result: Array = operations.complete(call)[0]
    return result


def allgather(
    array: Array,
    *,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Array:
    """The arrays of all ranks, concatenated along axis 0, whose length may differ between ranks.

    Raises Mismatch, on every rank, when dtypes or the other axes differ; ValueError for a scalar.
    """
    call = operations.allgather([_typed(np.asarray(array))], Where(process_set, name))
    result: Array = operations.complete(call)[0][0]
    return result


def alltoall(
    array: Array,
    splits: Sequence[int] | None = None,
    *,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> tuple[Array, list[int]]:
    """`splits[r]` rows of `array` go to rank r; without splits every rank gets as many.

    All rows that came, in order of rank, and how many came from each. Raises Mismatch, on every
    rank, when dtypes or the other axes differ; ValueError for splits that cannot be.
    """
    call = operations.alltoall(_typed(np.asarray(array)), splits, Where(process_set, name))
    result: tuple[Array, list[int]] = operations.complete(call)
    return result


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Wait until all ranks, of the set, are here."""
    operations.barrier(process_set)


def broadcast_object(
    obj: T | None = None,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> T:
    """`root_rank`'s object, on every rank; Error, on every rank, if it does not pickle."""
    result: T = operations.broadcast_object(obj, root_rank, Where(process_set, name))
    return result


def allgather_object(
    obj: T, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[T]:
    """The objects of all ranks, in order of rank; Error, on every rank, if one does not pickle."""
    return operations.allgather_object(obj, Where(process_set, name))


def join() -> int:
    """This rank has no more data: take part in what the others do until all have joined.

    In ``allreduce`` it does so with zeros, which an average counts; in ``partial_allreduce`` it
    abstains. The rank that came last, which is the one with the most rounds if there were any.
    Other calls raise Mismatch on the ranks that have not joined; the first ``partial_allreduce`` of
    a name and shape does so on all.
    """
    return operations.join()


def check_root(root_rank: int) -> None:
    """Raises ValueError if there is no such rank."""
    size = runtime.size()
    if not 0 <= root_rank < size:
        raise ValueError(f"root_rank={root_rank} is not in a world of {size} ranks")


def _typed(array: Array) -> Typed:
    return Typed(array, array.dtype.name if array.dtype.isnative else str(array.dtype))
