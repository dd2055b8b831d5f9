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
    """Begin to combine a tensor over all ranks. Horovod's ``allreduce_async``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensor alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensor: Strided, on any device, of any shape and dtype uint8, int8 to int64, float16,
            bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives a fresh tensor of the same shape, dtype and device.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: `tensor` has another layout or dtype, `op` does not exist or is given with
            `average`, or this rank is not in the set.
        NotImplementedError: `op` is Adasum, and Horovod is not installed, the number of ranks is
            not a power of 2, or there is a process set.
        NotInitialized: ``init()`` was not called.
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
    """Begin to combine a tensor over all ranks, in place. Horovod's ``allreduce_async_``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensor alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensor: Strided, on any device, of any shape and dtype uint8, int8 to int64, float16,
            bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives `tensor` itself, of the same shape and dtype.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: `tensor` has another layout or dtype, `op` does not exist or is given with
            `average`, or this rank is not in the set.
        NotImplementedError: `op` is Adasum, and Horovod is not installed, the number of ranks is
            not a power of 2, or there is a process set.
        NotInitialized: ``init()`` was not called.
    """
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
    """Combine a tensor over all ranks, in place. Horovod's ``allreduce_``.

    Args:
        tensor: Strided, on any device, of any shape and dtype uint8, int8 to int64, float16,
            bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.
        process_set: The ranks that take part; default: all.

    Returns:
        `tensor` itself, of the same shape and dtype.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: `tensor` has another layout or dtype, `op` does not exist or is given with
            `average`, or this rank is not in the set.
        NotImplementedError: `op` is Adasum, and Horovod is not installed, the number of ranks is
            not a power of 2, or there is a process set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
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
    """Begin to combine several tensors, as one call, over all ranks.

    Tensors of one dtype travel together. Horovod's ``grouped_allreduce_async``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensors alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensors: Tensors, each strided, on any device, of any shape and dtype uint8, int8 to int64,
            float16, bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: Multiplies each rank's tensors before they are combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives a tuple of fresh tensors of the same shapes, dtypes
        and devices.

    Raises:
        TypeError: `tensors` has what is not a tensor.
        ValueError: The sequence is empty, a tensor has another layout or dtype, `op` does not exist
            or is given with `average`, or this rank is not in the set.
        NotImplementedError: `op` is Adasum, and Horovod is not installed, the number of ranks is
            not a power of 2, or there is a process set.
        NotInitialized: ``init()`` was not called.
    """
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
    """Begin to combine several tensors, as one call, over all ranks, in place.

    Tensors of one dtype travel together. Horovod's ``grouped_allreduce_async_``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensors alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensors: Tensors, each strided, on any device, of any shape and dtype uint8, int8 to int64,
            float16, bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: Multiplies each rank's tensors before they are combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives a tuple of the `tensors` themselves, of the same
        shapes and dtypes.

    Raises:
        TypeError: `tensors` has what is not a tensor.
        ValueError: The sequence is empty, a tensor has another layout or dtype, `op` does not exist
            or is given with `average`, or this rank is not in the set.
        NotImplementedError: `op` is Adasum, and Horovod is not installed, the number of ranks is
            not a power of 2, or there is a process set.
        NotInitialized: ``init()`` was not called.
    """
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
    """Combine several tensors, as one call, over all ranks, in place.

    Tensors of one dtype travel together. Horovod's ``grouped_allreduce_``.

    Args:
        tensors: Tensors, each strided, on any device, of any shape and dtype uint8, int8 to int64,
            float16, bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: Multiplies each rank's tensors before they are combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.
        process_set: The ranks that take part; default: all.

    Returns:
        A tuple of the `tensors` themselves, of the same shapes and dtypes.

    Raises:
        TypeError: `tensors` has what is not a tensor.
        ValueError: The sequence is empty, a tensor has another layout or dtype, `op` does not exist
            or is given with `average`, or this rank is not in the set.
        NotImplementedError: `op` is Adasum, and Horovod is not installed, the number of ranks is
            not a power of 2, or there is a process set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
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
    """Begin to gather the rows of a sparse tensor from all ranks.

    Horovod's ``sparse_allreduce_async``. The call is done when all ranks wait for a call: nothing
    runs in the background.

    Args:
        tensor: A ``torch.sparse_coo`` tensor of any shape and dtype that ``allgather`` takes;
            coalesced or not. The number of entries may differ between ranks.
        name: Matches the ranks' calls.
        op: Average: values are divided by the number of ranks. With any other value they stay.
        process_set: The ranks that take part; default: all.

    Returns:
        A function without arguments. It waits for the call, and gives a ``torch.sparse_coo``
        tensor, not coalesced, of the same shape and dtype (integers averaged: a floating dtype).

    Raises:
        ValueError: The dtype cannot travel, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
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
    """Begin to concatenate the tensors of all ranks along axis 0, in order of rank.

    Horovod's ``allgather_async``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensor alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensor: Strided, on any device, of any shape with at least one axis, and dtype bool, uint8,
            int8 to int64, float16, bfloat16, float32, float64 or complex. Axis 0 may differ between
            ranks; the other axes and the dtype may not.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives a fresh tensor with the rows of all ranks, of the same
        dtype and device.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: A tensor is a scalar or has another layout or dtype, or this rank is not in the
            set.
        NotInitialized: ``init()`` was not called.
    """
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
    """Begin to concatenate each of several tensors of all ranks along axis 0, as one call.

    Horovod's ``grouped_allgather_async``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensors alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensors: Tensors, each strided, on any device, of any shape with at least one axis, and
            dtype bool, uint8, int8 to int64, float16, bfloat16, float32, float64 or complex. Axis 0
            may differ between ranks; the other axes and the dtype may not.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives a tuple of fresh tensors with the rows of all ranks,
        of the same dtypes and devices.

    Raises:
        TypeError: `tensors` has what is not a tensor.
        ValueError: The sequence is empty, a tensor is a scalar or has another layout or dtype, or
            this rank is not in the set.
        NotInitialized: ``init()`` was not called.
    """
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
    """Begin to give every rank the tensor of `root_rank`. Horovod's ``broadcast_async``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensor alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensor: Strided, on any device, of any shape and dtype bool, uint8, int8 to int64, float16,
            bfloat16, float32, float64 or complex; shape and dtype are equal on all ranks.
        root_rank: A rank of the world, also with a process set.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives the root's values, a fresh tensor of the same shape,
        dtype and device.

    Raises:
        TypeError: `tensor` is not a tensor, or `root_rank` is not an int.
        ValueError: `tensor` has another layout or dtype, or the root or this rank is not in the
            set.
        NotInitialized: ``init()`` was not called.
    """
    return _broadcast(tensor, root_rank, Where(process_set, name), in_place=False)


def broadcast_async_(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle:
    """Begin to give every rank the tensor of `root_rank`, in place. Horovod's ``broadcast_async_``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensor alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensor: Strided, on any device, of any shape and dtype bool, uint8, int8 to int64, float16,
            bfloat16, float32, float64 or complex; shape and dtype are equal on all ranks.
        root_rank: A rank of the world, also with a process set.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives `tensor` itself, of the same shape and dtype.

    Raises:
        TypeError: `tensor` is not a tensor, or `root_rank` is not an int.
        ValueError: `tensor` has another layout or dtype, or the root or this rank is not in the
            set.
        NotInitialized: ``init()`` was not called.
    """
    return _broadcast(tensor, root_rank, Where(process_set, name), in_place=True)


def broadcast_(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """Give every rank the tensor of `root_rank`, in place. Horovod's ``broadcast_``.

    Args:
        tensor: Strided, on any device, of any shape and dtype bool, uint8, int8 to int64, float16,
            bfloat16, float32, float64 or complex; shape and dtype are equal on all ranks.
        root_rank: A rank of the world, also with a process set.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        `tensor` itself, of the same shape and dtype.

    Raises:
        TypeError: `tensor` is not a tensor, or `root_rank` is not an int.
        ValueError: `tensor` has another layout or dtype, or the root or this rank is not in the
            set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes or roots differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
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
    """Begin to send rows to every rank, and receive rows from every rank.

    Horovod's ``alltoall_async``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensor alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensor: Strided, on any device, of any shape with at least one axis, and dtype bool, uint8,
            int8 to int64, float16, bfloat16, float32, float64 or complex. Axis 0 may differ between
            ranks; the other axes and the dtype may not.
        splits: A tensor of shape [ranks] and an integer dtype, or a sequence of ints: how many rows
            each rank gets. Rows beyond their sum are not sent. None: every rank gets the same
            number of rows.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A handle; ``synchronize`` of it gives the rows that came, in order of rank, a fresh tensor
        of the same dtype and device; and how many rows each rank sent, a tensor of shape [ranks]
        and the dtype of `splits`, or int32 if that is no tensor.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: The splits do not fit the rows or the number of ranks, `tensor` is a scalar or
            has another layout or dtype, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
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
    """Begin to combine a tensor over all ranks, and give each rank its share of the rows.

    If the rows do not divide equally, the first ranks get one more. Horovod's
    ``reducescatter_async``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensor alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensor: Strided, on any device, of any shape with at least one axis and dtype uint8, int8 to
            int64, float16, bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        op: Average or Sum.
        process_set: The ranks that take part; default: all.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.

    Returns:
        A handle; ``synchronize`` of it gives this rank's rows, a fresh tensor of the same dtype and
        device.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: `op` is neither Average nor Sum, a tensor is a scalar or has another layout or
            dtype, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
    """
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
    """Begin to combine several tensors over all ranks, as one call, and share out their rows.

    If the rows do not divide equally, the first ranks get one more. Horovod's
    ``grouped_reducescatter_async``.

    The call is done when all ranks wait for a call: nothing runs in the background. Leave the
    tensors alone until then. Mismatch, RoundTimeout and PeerFailed come from ``synchronize``.

    Args:
        tensors: Tensors, each strided, on any device, of any shape with at least one axis and dtype
            uint8, int8 to int64, float16, bfloat16, float32 or float64; shape and dtype are equal
            on all ranks.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        op: Average or Sum.
        process_set: The ranks that take part; default: all.
        prescale_factor: Multiplies each rank's tensors before they are combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.

    Returns:
        A handle; ``synchronize`` of it gives a tuple of this rank's rows of each, fresh tensors of
        the same dtypes and devices.

    Raises:
        TypeError: `tensors` has what is not a tensor.
        ValueError: `op` is neither Average nor Sum, the sequence is empty, a tensor is a scalar or
            has another layout or dtype, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
    """
    tensors = list(tensors)
    check_tensors("grouped_reducescatter", tensors, reduced=True)
    how = ReduceOp(op, prescale_factor, postscale_factor)
    arrays = [typed(tensor) for tensor in tensors]
    return operations.reducescatter(arrays, how, Where(process_set, name), _fresh(tensors))


def poll(handle: Handle) -> bool:
    """Whether a call is done, so that ``synchronize`` does not wait. Horovod's ``poll``.

    If it is not, this rank meets the others once, for which it may wait. As nothing runs in the
    background, a loop around ``poll`` would not end otherwise.

    Args:
        handle: What the function with ``_async`` in its name returned.

    Returns:
        True or False.

    Raises:
        TypeError: `handle` is not a handle.
        Mismatch: The ranks called different things; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return operations.poll(_checked(handle, "poll"))


def synchronize(handle: Handle) -> Any:
    """Wait until a call is done. Horovod's ``synchronize``.

    Args:
        handle: What the function with ``_async`` in its name returned.

    Returns:
        The result of the call; None if it has been given before.

    Raises:
        TypeError: `handle` is not a handle.
        Mismatch: The ranks called different things, or all wait for different calls; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return None if _checked(handle, "synchronize").taken else operations.complete(handle)


def _checked(handle: object, call: str) -> Handle:
    if not isinstance(handle, Operation):
        raise TypeError(f"{call} takes the handle that a call with _async returned, not {handle!r}")
    return handle


def join(device: int = -1) -> int:
    """Say that this rank has no more data; take part in the others' calls until all have joined.

    In ``allreduce`` this rank contributes zeros, which an average counts. In the rounds of a
    DistributedOptimizer it abstains, which a mean does not count. When all ranks have joined,
    parameters and optimizer state are those of the rank that made the most steps, on every rank.
    Buffers are not: send them with ``broadcast_parameters``. Horovod's ``join``.

    Args:
        device: Accepted for Horovod; without effect, as the zeros are on the host.

    Returns:
        The rank that made the most steps; without steps, the one that joined last.

    Raises:
        NotInitialized: ``init()`` was not called.
        Mismatch: A rank that has not joined makes a call that needs this one: the first step of an
            optimizer, say, on every rank; another collective, on the ranks that have not joined.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import hvd_backup.torch as hvd
        >>> hvd.init()
        >>> 0 <= hvd.join() < hvd.size()
        True
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
