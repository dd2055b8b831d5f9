"""Collectives with gradients, which are Horovod's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from hvd_backup.collectives.operations import op_of
from hvd_backup.collectives.process_sets import ProcessSet, global_process_set
from hvd_backup.torch import collectives
from hvd_backup.torch.collectives import Tensor, synchronize
from hvd_backup.torch.compression import Compression
from hvd_backup.torch.tensors import check_tensors
from hvd_backup.world import runtime
from hvd_backup.world.wire import Average, Sum


def allreduce(
    tensor: Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """Combine a tensor over all ranks. Horovod's ``allreduce``.

    Every rank waits for every other. The gradient is combined in the same way.

    Args:
        tensor: Strided, on any device, of any shape and dtype uint8, int8 to int64, float16,
            bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        compression: The dtype in which the tensor travels: a class of ``Compression``, or one like
            it.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.
        process_set: The ranks that take part; default: all.

    Returns:
        A fresh tensor of the same shape, dtype and device.

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

    Example:
        >>> import torch
        >>> import hvd_backup.torch as hvd
        >>> hvd.init()
        >>> hvd.allreduce(torch.tensor([1.0, 3.0]))
        tensor([1., 3.])
    """
    check_tensors("allreduce", [tensor], reduced=True)
    packed, ctx = compression.compress(tensor)
    factors = (prescale_factor, postscale_factor)
    op = op_of(op, average)
    (result,) = _apply(_Allreduce, name, op, factors, process_set, True, packed)
    return cast("Tensor", compression.decompress(result, ctx))


def grouped_allreduce(
    tensors: Sequence[Tensor],
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[Tensor]:
    """Combine several tensors, as one call, over all ranks.

    Tensors of one dtype travel together. Horovod's ``grouped_allreduce``.

    Every rank waits for every other. The gradient is combined in the same way.

    Args:
        tensors: Tensors, each strided, on any device, of any shape and dtype uint8, int8 to int64,
            float16, bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        compression: The dtype in which the tensors travel: a class of ``Compression``, or one like
            it.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: Multiplies each rank's tensors before they are combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.
        process_set: The ranks that take part; default: all.

    Returns:
        A list of fresh tensors of the same shapes, dtypes and devices.

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
    tensors = list(tensors)
    check_tensors("grouped_allreduce", tensors, reduced=True)
    packed, contexts = _compressed(tensors, compression)
    factors = (prescale_factor, postscale_factor)
    op = op_of(op, average)
    results = _apply(_Allreduce, name, op, factors, process_set, False, *packed)
    return _decompressed(results, contexts, compression)


def allgather(
    tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Tensor:
    """Concatenate the tensors of all ranks along axis 0, in order of rank.

    Horovod's ``allgather``. The gradient is this rank's part of the mean gradient of all ranks.

    Args:
        tensor: Strided, on any device, of any shape with at least one axis, and dtype bool, uint8,
            int8 to int64, float16, bfloat16, float32, float64 or complex. Axis 0 may differ between
            ranks; the other axes and the dtype may not.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A fresh tensor with the rows of all ranks, of the same dtype and device.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: A tensor is a scalar or has another layout or dtype, or this rank is not in the
            set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import torch
        >>> import hvd_backup.torch as hvd
        >>> hvd.init()
        >>> hvd.allgather(torch.tensor([[1, 2]])).shape == (hvd.size(), 2)
        True
    """
    (result,) = _apply(_Allgather, name, process_set, tensor)
    return cast("Tensor", result)


def grouped_allgather(
    tensors: Sequence[Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> tuple[Tensor, ...]:
    """Concatenate each of several tensors of all ranks along axis 0, as one call.

    Horovod's ``grouped_allgather``. The gradient is this rank's part of the mean gradient of all
    ranks.

    Args:
        tensors: Tensors, each strided, on any device, of any shape with at least one axis, and
            dtype bool, uint8, int8 to int64, float16, bfloat16, float32, float64 or complex. Axis 0
            may differ between ranks; the other axes and the dtype may not.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        A tuple of fresh tensors with the rows of all ranks, of the same dtypes and devices.

    Raises:
        TypeError: `tensors` has what is not a tensor.
        ValueError: The sequence is empty, a tensor is a scalar or has another layout or dtype, or
            this rank is not in the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return cast("tuple[Tensor, ...]", _apply(_Allgather, name, process_set, *tensors))


def broadcast(
    tensor: Tensor,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """Give every rank the tensor of `root_rank`. Horovod's ``broadcast``.

    The root's gradient is the mean gradient of all ranks; the gradient of the others is zero.

    Args:
        tensor: Strided, on any device, of any shape and dtype bool, uint8, int8 to int64, float16,
            bfloat16, float32, float64 or complex; shape and dtype are equal on all ranks.
        root_rank: A rank of the world, also with a process set.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        process_set: The ranks that take part; default: all.

    Returns:
        The root's values, a fresh tensor of the same shape, dtype and device.

    Raises:
        TypeError: `tensor` is not a tensor, or `root_rank` is not an int.
        ValueError: `tensor` has another layout or dtype, or the root or this rank is not in the
            set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes or roots differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return cast("Tensor", _apply(_Broadcast, tensor, root_rank, name, process_set))


def alltoall(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor | tuple[Tensor, Tensor]:
    """Send rows to every rank, and receive rows from every rank.

    Horovod's ``alltoall``. Gradients travel back.

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
        The rows that came, in order of rank, a fresh tensor of the same dtype and device. With
        `splits` a tuple of it and how many rows each rank sent, a tensor of shape [ranks] and the
        dtype of `splits`, or int32 if that is no tensor.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: The splits do not fit the rows or the number of ranks, `tensor` is a scalar or
            has another layout or dtype, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    result, received = _apply(_Alltoall, tensor, splits, name, process_set)
    return cast("Tensor", result) if splits is None else (result, received)


def reducescatter(
    tensor: Tensor,
    name: str | None = None,
    compression: Any = Compression.none,
    op: str = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Tensor:
    """Combine a tensor over all ranks, and give each rank its share of the rows.

    If the rows do not divide equally, the first ranks get one more. Horovod's ``reducescatter``.
    The gradients of all ranks are gathered.

    Args:
        tensor: Strided, on any device, of any shape with at least one axis and dtype uint8, int8 to
            int64, float16, bfloat16, float32 or float64; shape and dtype are equal on all ranks.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        compression: The dtype in which the tensor travels: a class of ``Compression``, or one like
            it.
        op: Average or Sum.
        process_set: The ranks that take part; default: all.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.

    Returns:
        This rank's rows, a fresh tensor of the same dtype and device.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: `op` is neither Average nor Sum, a tensor is a scalar or has another layout or
            dtype, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    check_tensors("reducescatter", [tensor], reduced=True)
    packed, ctx = compression.compress(tensor)
    factors = (prescale_factor, postscale_factor)
    (result,) = _apply(_Reducescatter, name, op, factors, process_set, packed)
    return cast("Tensor", compression.decompress(result, ctx))


def grouped_reducescatter(
    tensors: Sequence[Tensor],
    name: str | None = None,
    compression: Any = Compression.none,
    op: str = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[Tensor]:
    """Combine several tensors over all ranks, as one call, and share out their rows.

    If the rows do not divide equally, the first ranks get one more. Horovod's
    ``grouped_reducescatter``. The gradients of all ranks are gathered.

    Args:
        tensors: Tensors, each strided, on any device, of any shape with at least one axis and dtype
            uint8, int8 to int64, float16, bfloat16, float32 or float64; shape and dtype are equal
            on all ranks.
        name: Matches the ranks' calls, in whatever order. Calls without a name are counted.
        compression: The dtype in which the tensors travel: a class of ``Compression``, or one like
            it.
        op: Average or Sum.
        process_set: The ranks that take part; default: all.
        prescale_factor: Multiplies each rank's tensors before they are combined.
        postscale_factor: Multiplies the result. Integers are averaged and scaled in float64 and cut
            off.

    Returns:
        A list of this rank's rows of each, fresh tensors of the same dtypes and devices.

    Raises:
        TypeError: `tensors` has what is not a tensor.
        ValueError: `op` is neither Average nor Sum, the sequence is empty, a tensor is a scalar or
            has another layout or dtype, or this rank is not in the set.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    tensors = list(tensors)
    check_tensors("grouped_reducescatter", tensors, reduced=True)
    packed, contexts = _compressed(tensors, compression)
    factors = (prescale_factor, postscale_factor)
    results = _apply(_Reducescatter, name, op, factors, process_set, *packed)
    return _decompressed(results, contexts, compression)


def _apply(function: Any, *args: Any) -> Any:
    """torch does not say what ``Function.apply`` takes and gives."""
    return function.apply(*args)


def _compressed(tensors: Sequence[Tensor], compression: Any) -> tuple[list[Tensor], list[Any]]:
    pairs = [compression.compress(tensor) for tensor in tensors]
    return [packed for packed, _ in pairs], [ctx for _, ctx in pairs]


def _decompressed(results: Any, contexts: Sequence[Any], compression: Any) -> list[Tensor]:
    pairs = zip(results, contexts, strict=True)
    return [compression.decompress(result, ctx) for result, ctx in pairs]


class _Allreduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        name: str | None,
        op: str,
        factors: tuple[float, float],
        process_set: ProcessSet,
        alone: bool,
        *tensors: Tensor,
    ) -> Any:
        ctx.how = (op, factors, process_set, alone)
        begin = collectives.allreduce_async if alone else collectives.grouped_allreduce_async
        what: Any = tensors[0] if alone else tensors
        result = synchronize(begin(what, None, name, op, *factors, process_set))
        return (result,) if alone else result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        op, factors, process_set, alone = ctx.how
        reduced = _apply(_Allreduce, None, op, factors, process_set, alone, *gradients)
        return None, None, None, None, None, *reduced


def _mean(process_set: ProcessSet, *tensors: Tensor) -> tuple[Tensor, ...]:
    means = _apply(_Allreduce, None, Average, (1.0, 1.0), process_set, False, *tensors)
    return cast("tuple[Tensor, ...]", means)


class _Allgather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, process_set: ProcessSet, *tensors: Tensor) -> Any:
        handle, rows = collectives.begin_allgather(tensors, name, process_set)
        results = synchronize(handle)
        ctx.rows, ctx.process_set = rows, process_set
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        means = _mean(ctx.process_set, *gradients)
        mine = ctx.process_set.rank()
        return (
            None,
            None,
            *(
                mean.narrow(0, sum(rows[:mine]), rows[mine])
                for mean, rows in zip(means, ctx.rows, strict=True)
            ),
        )


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, root_rank: int, name: str | None, process_set: ProcessSet
    ) -> Any:
        ctx.root_rank, ctx.process_set = root_rank, process_set
        return synchronize(collectives.broadcast_async(tensor, root_rank, name, process_set))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (mean,) = _mean(ctx.process_set, gradient)
        if runtime.rank() != ctx.root_rank:
            mean = torch.zeros_like(mean)
        return mean, None, None, None


class _Alltoall(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, splits: Any, name: str | None, process_set: ProcessSet
    ) -> Any:
        handle = collectives.alltoall_async(tensor, splits, name, process_set)
        result, received = synchronize(handle)
        ctx.received, ctx.process_set = received, process_set
        ctx.mark_non_differentiable(received)
        return result, received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        result, _ = _apply(_Alltoall, gradient, ctx.received, None, ctx.process_set)
        return result, None, None, None


class _Reducescatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        name: str | None,
        op: str,
        factors: tuple[float, float],
        process_set: ProcessSet,
        *tensors: Tensor,
    ) -> Any:
        scale = factors[0] * factors[1]
        ctx.scale = scale * (process_set.size() or 1) if op == Sum else scale
        ctx.process_set = process_set
        begin = collectives.grouped_reducescatter_async
        return synchronize(begin(tensors, name, op, process_set, *factors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        scaled = [gradient * ctx.scale for gradient in gradients]
        return None, None, None, None, *_apply(_Allgather, None, ctx.process_set, *scaled)
