"""Collectives on numpy arrays and Python objects."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from hvd_backup import errors, runtime
from hvd_backup.exchange import Exchange
from hvd_backup.reports import Round

Array = npt.NDArray[Any]
T = TypeVar("T")

Average, Sum, Min, Max, Product = "Average", "Sum", "Min", "Max", "Product"

# Plans (slots, window) of the last so many kinds of partial_allreduce are kept. All ranks make the
# same calls, so they forget the same ones.
_PLANS = 16
_FLOATS = ("float16", "float32", "float64")


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


def allreduce(array: Array, op: str = Average) -> Array:
    """Combine `array` over all ranks; every rank waits for every other. A fresh array.

    `op` is Average, Sum, Min, Max or Product. Raises Mismatch, on every rank, when shapes, dtypes
    or ops differ, and TypeError for the average of integers.
    """
    from mpi4py import MPI

    operations = {Average: MPI.SUM, Sum: MPI.SUM, Min: MPI.MIN, Max: MPI.MAX, Product: MPI.PROD}
    if op not in operations:
        raise ValueError(f"op={op!r}: use one of {', '.join(operations)}")
    source = np.asarray(array, order="C")
    if op == Average and not np.issubdtype(source.dtype, np.inexact):
        raise TypeError(f"the average of {source.dtype} is no {source.dtype}; use op=hb.Sum")
    half = source.dtype == np.float16  # MPI has no such type
    work = source.astype(np.float32) if half else source
    runtime.current().meet(f"allreduce({_kind(source)}, op={op})")
    result = np.empty_like(work)
    runtime.current().comm.Allreduce(work, result, op=operations[op])
    if op == Average:
        result /= runtime.size()
    return result.astype(np.float16) if half else result


def broadcast(array: Array, root_rank: int = 0) -> Array:
    """The array of `root_rank`, as a fresh array on every rank.

    Raises Mismatch, on every rank, when shapes, dtypes or roots differ.
    """
    check_root(root_rank)
    result = np.array(array, order="C", copy=True)
    runtime.current().meet(f"broadcast({_kind(result)}, root_rank={root_rank})")
    send_bytes(result.reshape(-1).view(np.uint8), root_rank)
    return result


def send_bytes(data: npt.NDArray[np.uint8], root_rank: int) -> None:
    """`root_rank`'s bytes to every rank, in place: every dtype goes, float16 included."""
    runtime.current().comm.Bcast(data, root=root_rank)


def allgather(array: Array) -> Array:
    """The arrays of all ranks, concatenated along axis 0, whose length may differ between ranks.

    Raises Mismatch, on every rank, when dtypes or the other axes differ; ValueError for a scalar.
    """
    source = np.ascontiguousarray(array)
    if np.ndim(array) == 0:
        raise ValueError("allgather needs at least one axis to concatenate along")
    shape = ", ".join(["any", *map(str, source.shape[1:])])
    runtime.current().meet(f"allgather({source.dtype}[{shape}])")
    return gather_rows(source)


def gather_rows(source: Array) -> Array:
    """All ranks' rows, one rank's after another's."""
    comm = runtime.current().comm
    lengths = comm.allgather(source.shape[0])
    result = np.empty((sum(lengths), *source.shape[1:]), source.dtype)
    row = int(np.prod(source.shape[1:], dtype=np.int64)) * source.dtype.itemsize
    counts = [length * row for length in lengths]
    comm.Allgatherv(source.reshape(-1).view(np.uint8), (result.reshape(-1).view(np.uint8), counts))
    return result


def barrier() -> None:
    """Wait until all ranks are here."""
    runtime.current().meet("barrier()")


def broadcast_object(obj: T | None = None, root_rank: int = 0, name: str | None = None) -> T:
    """`root_rank`'s object, on every rank; Error, on every rank, if it does not pickle."""
    check_root(root_rank)
    runtime.current().meet(f"broadcast_object(root_rank={root_rank})")
    mine = _pickled(obj) if runtime.rank() == root_rank else None
    sent: _Pickled = runtime.current().comm.bcast(mine, root=root_rank)
    return cast("T", _unpickled([sent], root_rank)[0])


def allgather_object(obj: T, name: str | None = None) -> list[T]:
    """The objects of all ranks, in order of rank; Error, on every rank, if one does not pickle."""
    runtime.current().meet("allgather_object()")
    return cast("list[T]", _unpickled(runtime.current().comm.allgather(_pickled(obj))))


# The pickle, or why there is none: the others are told, instead of waiting for it.
_Pickled: TypeAlias = tuple[bytes, str]


def _pickled(obj: object) -> _Pickled:
    try:
        return pickle.dumps(obj, pickle.HIGHEST_PROTOCOL), ""
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        return b"", f"{type(obj).__name__} cannot be pickled: {error}"


def _unpickled(everybody: list[_Pickled], first_rank: int = 0) -> list[Any]:
    for rank, (_, problem) in enumerate(everybody, first_rank):
        if problem:
            raise errors.Error(f"rank {rank}: {problem}")
    return [pickle.loads(data) for data, _ in everybody]


def check_root(root_rank: int) -> None:
    """Raises ValueError if there is no such rank."""
    size = runtime.size()
    if not 0 <= root_rank < size:
        raise ValueError(f"root_rank={root_rank} is not in a world of {size} ranks")


def _kind(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"
