"""Horovod's collectives on tensors: in place, asynchronous, and grouped ones.

Calls are matched by their names, in whatever order a rank makes them, and done when all ranks wait
for some call (``synchronize``, or any call without ``_async``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvd_backup.collectives import operations
from hvd_backup.collectives.operations import Adasum, Where, op_of
from hvd_backup.collectives.process_sets import ProcessSet, global_process_set
from hvd_backup.torch.adasum import adasum_async
from hvd_backup.torch.bits import assign
from hvd_backup.torch.tensors import check_tensors, tensor_of, typed
from hvd_backup.world.table import Operation
from hvd_backup.world.wire import Average, ReduceOp

Tensor = torch.Tensor
Handle = Operation


def allreduce_async(
    tensor: Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """Begin to combine a tensor over all ranks; ``synchronize`` gives a fresh one.

    `op` is Average (default), Sum, Min, Max, Product or Adasum. Integers are averaged and scaled in
    float64 and cut off. The tensor is read when all ranks are there: leave it alone until then.
    """
    how = ReduceOp(op_of(op, average), prescale_factor, postscale_factor)
    return _reduce("allreduce", [tensor], how, Where(process_set, name), in_place=False, one=True)


def allreduce_async_(
    tensor: Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """``allreduce_async``, in place."""
    how = ReduceOp(op_of(op, average), prescale_factor, postscale_factor)
    return _reduce("allreduce", [tensor], how, Where(process_set, name), in_place=True, one=True)


def allreduce_(
    tensor: Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """``allreduce``, in place."""
    how = ReduceOp(op_of(op, average), prescale_factor, postscale_factor)
    where = Where(process_set, name)
    result: Tensor = synchronize(
        _reduce("allreduce", [tensor], how, where, in_place=True, one=True)
    )
    return result


def grouped_allreduce_async(
    tensors: Sequence[Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """``allreduce_async`` of several tensors, as one call; those of one dtype travel together."""
    how = ReduceOp(op_of(op, average), prescale_factor, postscale_factor)
    where = Where(process_set, name)
    return _reduce("grouped_allreduce", tensors, how, where, in_place=False)


def grouped_allreduce_async_(
    tensors: Sequence[Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """``grouped_allreduce_async``, in place."""
    how = ReduceOp(op_of(op, average), prescale_factor, postscale_factor)
    where = Where(process_set, name)
    return _reduce("grouped_allreduce", tensors, how, where, in_place=True)


def grouped_allreduce_(
    tensors: Sequence[Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> tuple[Tensor, ...]:
    """``grouped_allreduce``, in place."""
    how = ReduceOp(op_of(op, average), prescale_factor, postscale_factor)
    where = Where(process_set, name)
    result: tuple[Tensor, ...] = synchronize(
        _reduce("grouped_allreduce", tensors, how, where, in_place=True)
    )
    return result


def _reduce(
    call: str,
    tensors: Sequence[Tensor],
    how: ReduceOp,
    where: Where,
    *,
    in_place: bool,
    one: bool = False,
) -> Handle:
    tensors = list(tensors)
    check_tensors(call, tensors, reduced=True)
    if how.op == Adasum:
        return adasum_async(tensors, how, where, in_place=in_place, one=one)
    finish = _in_place(tensors, one) if in_place else _fresh(tensors, one)
    return operations.allreduce([typed(tensor) for tensor in tensors], how, where, finish)


def sparse_allreduce_async(
    tensor: Tensor, name: str, op: str, process_set: ProcessSet = global_process_set
) -> Callable[[], Tensor]:
    """Gather all ranks' rows of a sparse tensor. What it returns waits for the result if called.

    With `op` Average the values are divided by the number of ranks, else they are as they were.
    """
    indices = tensor._indices().transpose(0, 1).contiguous()  # noqa: SLF001 (not coalesced)
    values = tensor._values()  # noqa: SLF001
    indices_handle = allgather_async(indices, f"{name}.indices", process_set)
    values_handle = allgather_async(values, f"{name}.values", process_set)

    def handle() -> Tensor:
        all_values, all_indices = synchronize(values_handle), synchronize(indices_handle)
        if op == Average:
            all_values = all_values / process_set.size()
        return torch.sparse_coo_tensor(all_indices.transpose(0, 1), all_values, tensor.shape)

    return handle


def allgather_async(
    tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle:
    """Begin to concatenate all ranks' tensors along axis 0, whose length may differ."""
    check_tensors("allgather", [tensor], reduced=False)
    return operations.allgather(
        [typed(tensor)],
        Where(process_set, name),
        lambda results: tensor_of(results[0][0], tensor),
    )


def grouped_allgather_async(
    tensors: Sequence[Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """``allgather_async`` of several tensors, as one call."""
    return begin_allgather(list(tensors), name, process_set)[0]


def begin_allgather(
    tensors: Sequence[Tensor], name: str | None, process_set: ProcessSet
) -> tuple[Handle, list[list[int]]]:
    """``grouped_allgather_async``, and the rows of each rank per tensor, empty until it is done."""
    check_tensors("allgather", tensors, reduced=False)
    rows: list[list[int]] = []

    def finish(results: list[tuple[Any, list[int]]]) -> tuple[Tensor, ...]:
        rows.extend(counts for _, counts in results)
        return tuple(tensor_of(r[0], tensor) for r, tensor in zip(results, tensors, strict=True))

    arrays = [typed(tensor) for tensor in tensors]
    return operations.allgather(arrays, Where(process_set, name), finish), rows


def broadcast_async(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """Begin to give every rank `root_rank`'s tensor; the root is a rank of the world."""
    return _broadcast(tensor, root_rank, Where(process_set, name), in_place=False)


def broadcast_async_(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """``broadcast_async``, in place."""
    return _broadcast(tensor, root_rank, Where(process_set, name), in_place=True)


def broadcast_(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """``broadcast``, in place."""
    result: Tensor = synchronize(
        _broadcast(tensor, root_rank, Where(process_set, name), in_place=True)
    )
    return result


def _broadcast(tensor: Tensor, root_rank: int, where: Where, *, in_place: bool) -> Handle:
    check_tensors("broadcast", [tensor], reduced=False)
    finish = (_in_place if in_place else _fresh)([tensor], one=True)
    return operations.broadcast([typed(tensor)], root_rank, where, finish)


def alltoall_async(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """Begin to send `splits[r]` rows to rank r; without splits every rank gets as many.

    ``synchronize`` gives (tensor, received splits).
    """
    check_tensors("alltoall", [tensor], reduced=False)
    counts = splits if splits is None or isinstance(splits, torch.Tensor) else list(splits)
    if isinstance(counts, torch.Tensor):
        if counts.dim() != 1:
            raise ValueError("alltoall expects a 1D splits tensor")
        if counts.is_floating_point() or counts.is_complex():
            raise ValueError("alltoall expects splits to contain 32-bit integer elements.")
    kind = counts if isinstance(counts, torch.Tensor) else torch.empty(0, dtype=torch.int32)

    def finish(result: tuple[Any, list[int]]) -> tuple[Tensor, Tensor]:
        rows, received = result
        return tensor_of(rows, tensor), torch.tensor(received, dtype=kind.dtype).to(kind.device)

    numbers = counts.tolist() if isinstance(counts, torch.Tensor) else counts
    return operations.alltoall(typed(tensor), numbers, Where(process_set, name), finish)


def reducescatter_async(
    tensor: Tensor,
    name: str | None = None,
    op: str = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle:
    """Begin to combine a tensor (Average or Sum) and to give each rank its share of the rows."""
    check_tensors("reducescatter", [tensor], reduced=True)
    how = ReduceOp(op, prescale_factor, postscale_factor)
    where = Where(process_set, name)
    return operations.reducescatter([typed(tensor)], how, where, _fresh([tensor], one=True))


def grouped_reducescatter_async(
    tensors: Sequence[Tensor],
    name: str | None = None,
    op: str = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle:
    """``reducescatter_async`` of several tensors, as one call."""
    tensors = list(tensors)
    check_tensors("grouped_reducescatter", tensors, reduced=True)
    how = ReduceOp(op, prescale_factor, postscale_factor)
    arrays = [typed(tensor) for tensor in tensors]
    return operations.reducescatter(arrays, how, Where(process_set, name), _fresh(tensors))


def poll(handle: Handle) -> bool:
    """Whether a call is done, so that ``synchronize`` does not wait.

    If it is not, this rank meets the others once, for which it may wait: as nothing runs in the
    background, a loop around ``poll`` would not end otherwise.
    """
    return operations.poll(_checked(handle, "poll"))


def synchronize(handle: Handle) -> Any:
    """Wait until a call is done; its result. None if it has been given before, as in Horovod.

    Raises Mismatch if the ranks disagreed on it, or all wait for different calls.
    """
    return None if _checked(handle, "synchronize").taken else operations.complete(handle)


def _checked(handle: object, call: str) -> Handle:
    if not isinstance(handle, Operation):
        raise TypeError(f"{call} takes the handle that a call with _async returned, not {handle!r}")
    return handle


def join(device: int = -1) -> int:
    """This rank has no more data: take part in what the others do until all have joined.

    In their all-reduces it does so with zeros, which an average counts; in the rounds of a
    DistributedOptimizer it abstains, which a mean does not count. When all have joined, parameters
    and optimizer state are equal on all ranks again: those of the rank that made the most steps.
    Returns that rank; without steps, the one that came last. `device` is accepted and changes
    nothing: the zeros are on the host.

    Raises Mismatch, on every rank, if another rank needs this one for more: to make the first step
    of an optimizer, say.
    """
    return operations.join()


def _fresh(tensors: Sequence[Tensor], one: bool = False) -> Callable[[Any], Any]:
    def finish(arrays: list[Any]) -> Any:
        made = tuple(tensor_of(a, tensor) for a, tensor in zip(arrays, tensors, strict=True))
        return made[0] if one else made

    return finish


def _in_place(tensors: Sequence[Tensor], one: bool = False) -> Callable[[Any], Any]:
    def finish(arrays: list[Any]) -> Any:
        for array, tensor in zip(arrays, tensors, strict=True):
            assign(tensor, tensor_of(array, tensor))
        return tensors[0] if one else tuple(tensors)

    return finish
