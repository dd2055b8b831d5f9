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

# How many plans (slots, window) of partial_allreduce are kept: those that were used last. All ranks
# make the same calls, so they forget the same ones.
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
    """The result of one ``partial_allreduce`` of an array.

    Attributes:
        value: The mean over the contributors, a fresh array of the input's shape and dtype.
        round: The ``Round``: which ranks contributed, and when.
    """

    value: Array
    round: Round


class PartialMeans(NamedTuple):
    """The result of one ``partial_allreduce`` of a list of arrays.

    Attributes:
        value: The means over the contributors, fresh arrays of the inputs' shapes and dtypes.
        round: The ``Round``: which ranks contributed, and when.
    """

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
    """Average over the first R - b of R ranks to arrive; every rank gets the same bits.

    The result is the sum of weight times array over the contributors, divided by the sum of their
    weights. A late rank does not contribute. It gets the result of the round that it was late for.
    Calls with the same `name`, shapes, dtypes and options form one sequence of rounds, and every
    rank goes through each of them.

    The algorithm is that of Chen, Pan, Monga, Bengio, Jozefowicz, "Revisiting Distributed
    Synchronous SGD" (2016).

    Args:
        arrays: An array of any shape and dtype float16, float32 or float64, C-contiguous, or a list
            of such arrays. A list is one contribution: a round has all of its arrays, or none.
        backup_workers: b, how many ranks a round does not wait for. None: HVD_BACKUP_WORKERS, else
            0.
        weight: How much this rank's arrays count: between 1e-30 and 1e30, or 0 to abstain.
        name: Tells sequences of rounds apart.
        grace: Seconds that a round stays open after its quorum. None: HVD_BACKUP_GRACE, else 0.
        window: How many results are kept for late ranks, 1 to 4096, and so how many rounds a rank
            can fall behind before the others wait for it. None: HVD_BACKUP_WINDOW, else by size.
        timeout: Seconds that one wait may take. None: HVD_BACKUP_TIMEOUT, else 600.

    Returns:
        A ``PartialMean``, or for a list a ``PartialMeans``: fresh arrays of the shapes and dtypes
        that were given, and the ``Round``. If all contributors abstained, the arrays are zeros.

    Raises:
        TypeError: `arrays` are not numpy arrays of these dtypes, or an option is of the wrong type.
        ValueError: An array is not contiguous, the list is empty, or an option is out of range.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, names or options differ; on every rank.
        RoundTimeout: The wait took longer than `timeout`; the text names the missing ranks.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import numpy as np
        >>> import hvd_backup as hb
        >>> hb.init()
        >>> mean, round_ = hb.partial_allreduce(np.array([1.0, 2.0]), backup_workers=0)
        >>> mean
        array([1., 2.])
        >>> len(round_.contributors) == hb.size()  # all, as there are no backup workers
        True
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
    """Combine an array over all ranks. Every rank waits for every other.

    Args:
        array: Of any shape and an integer, floating or complex dtype; shape and dtype are equal on
            all ranks.
        op: Average, Sum, Min, Max or Product. Min and Max take no complex numbers.
        name: Matches the ranks' calls. Calls without a name are counted.
        prescale_factor: Multiplies each rank's array before it is combined.
        postscale_factor: Multiplies the result. Integers are scaled in float64 and cut off.
        process_set: The ranks that take part; default: all.

    Returns:
        A fresh array of the same shape and dtype. float16 is added up in float32.

    Raises:
        TypeError: `op` is Average and the dtype is not floating or complex.
        ValueError: `op` does not exist or cannot combine the dtype, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import numpy as np
        >>> import hvd_backup as hb
        >>> hb.init()
        >>> hb.allreduce(np.array([1.0, 3.0]))
        array([1., 3.])
        >>> hb.allreduce(np.array([1, 3]), op=hb.Max)
        array([1, 3])
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
    """Combine an array over all ranks, and give each rank its share of the rows.

    If the rows do not divide equally, the first ranks get one more. Ranks are added in ascending
    order, in float32 or wider.

    Args:
        array: Of any shape with at least one axis, and an integer, floating or complex dtype; shape
            and dtype are equal on all ranks.
        op: Average or Sum.
        name: Matches the ranks' calls. Calls without a name are counted.
        prescale_factor: Multiplies each rank's array before it is combined.
        postscale_factor: Multiplies the result. Integers are scaled in float64 and cut off.
        process_set: The ranks that take part; default: all.

    Returns:
        This rank's rows, a fresh array of the same dtype.

    Raises:
        TypeError: `op` is Average and the dtype is not floating or complex.
        ValueError: `op` is neither Average nor Sum, the array is a scalar, or this rank is not in
            the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
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
    """Give every rank the array of `root_rank`.

    Args:
        array: Of any shape and any dtype but Python objects; shape and dtype are equal on all
            ranks.
        root_rank: A rank of the world, also with a process set.
        name: Matches the ranks' calls. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        The root's values, a fresh array of the same shape and dtype.

    Raises:
        TypeError: `root_rank` is not an int.
        ValueError: The root, or this rank, is not in the world or in the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes or roots differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
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
    """Concatenate the arrays of all ranks along axis 0, in order of rank.

    Args:
        array: Of any shape with at least one axis, and any dtype but Python objects. Axis 0 may
            differ between ranks; the other axes and the dtype may not.
        name: Matches the ranks' calls. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        The rows of all ranks, a fresh array of the same dtype.

    Raises:
        ValueError: The array is a scalar, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import numpy as np
        >>> import hvd_backup as hb
        >>> hb.init()
        >>> hb.allgather(np.array([[1, 2]])).shape == (hb.size(), 2)
        True
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
    """Send rows to every rank, and receive rows from every rank.

    Args:
        array: Of any shape with at least one axis, and any dtype but Python objects. Axis 0 may
            differ between ranks; the other axes and the dtype may not.
        splits: One integer for each rank: how many rows it gets. Rows beyond their sum are not
            sent. None: every rank gets the same number of rows.
        name: Matches the ranks' calls. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        The rows that came, in order of rank, a fresh array of the same dtype; and a list of
        integers, how many rows each rank sent.

    Raises:
        ValueError: The splits do not fit the rows or the number of ranks, the array is a scalar, or
            this rank is not in the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    call = operations.alltoall(_typed(np.asarray(array)), splits, Where(process_set, name))
    result: tuple[Array, list[int]] = operations.complete(call)
    return result


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Wait until all ranks call it. Horovod's ``barrier``.

    Args:
        process_set: The ranks that wait for one another; default: all.

    Raises:
        ValueError: This rank is not in the set, or the set is not registered.
        NotInitialized: ``init()`` was not called.
        Mismatch: Other ranks wait for another call; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    operations.barrier(process_set)


def broadcast_object(
    obj: T | None = None,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> T:
    """Give every rank the object of `root_rank`, by pickle. Horovod's ``broadcast_object``.

    Objects that pickle cannot serialize travel by cloudpickle, if that is installed.

    Args:
        obj: The root's object. Other ranks' objects are not looked at.
        root_rank: A rank of the world, also with a process set.
        name: Matches the ranks' calls. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A copy of the root's object, on the root too.

    Raises:
        TypeError: `root_rank` is not an int.
        ValueError: The root, or this rank, is not in the world or in the set.
        Error: The root's object cannot be pickled; on every rank.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' roots differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import hvd_backup as hb
        >>> hb.init()
        >>> hb.broadcast_object({"epoch": 3} if hb.rank() == 0 else None)
        {'epoch': 3}
    """
    result: T = operations.broadcast_object(obj, root_rank, Where(process_set, name))
    return result


def allgather_object(
    obj: T, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[T]:
    """Give every rank the objects of all ranks, by pickle. Horovod's ``allgather_object``.

    Args:
        obj: This rank's object. What pickle cannot serialize travels by cloudpickle, if that is
            installed.
        name: Matches the ranks' calls. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A list of copies of the objects, in order of rank.

    Raises:
        ValueError: This rank is not in the set, or the set is not registered.
        Error: A rank's object cannot be pickled; on every rank.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks call different things; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return operations.allgather_object(obj, Where(process_set, name))


def join() -> int:
    """Say that this rank has no more data; take part in the others' calls until all have joined.

    In ``allreduce`` this rank contributes zeros, which an average counts. In ``partial_allreduce``
    it abstains. Horovod's ``join``.

    Returns:
        The rank that joined last. If there were rounds meanwhile: the rank that made the most of
        them.

    Raises:
        NotInitialized: ``init()`` was not called.
        Mismatch: A rank that has not joined makes another call. The first ``partial_allreduce`` of
            a name and shape raises it on every rank, other calls on the ranks that have not joined.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import hvd_backup as hb
        >>> hb.init()
        >>> 0 <= hb.join() < hb.size()
        True
    """
    return operations.join()


def check_root(root_rank: int) -> None:
    """Raises ValueError if there is no such rank."""
    size = runtime.size()
    if not 0 <= root_rank < size:
        raise ValueError(f"root_rank={root_rank} is not in a world of {size} ranks")


def _typed(array: Array) -> Typed:
    return Typed(array, array.dtype.name if array.dtype.isnative else str(array.dtype))
