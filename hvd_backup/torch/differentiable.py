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
    """Combine over all ranks; a fresh tensor. Its gradient is combined in the same way.

    `op` is Average (default), Sum, Min, Max, Product or Adasum; `compression` what the tensor
    travels in. Integers are averaged and scaled in float64 and cut off. Raises Mismatch, on every
    rank, when names, shapes, dtypes, ops or factors differ.
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
    """``allreduce`` of several tensors, as one call; those of one dtype travel together."""
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
    """The tensors of all ranks, concatenated along axis 0, whose length may differ.

    The gradient is the rank's part of the ranks' mean gradient. Raises ValueError for a scalar.
    """
    (result,) = _apply(_Allgather, name, process_set, tensor)
    return cast("Tensor", result)


def grouped_allgather(
    tensors: Sequence[Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> tuple[Tensor, ...]:
    """``allgather`` of several tensors, as one call."""
    return cast("tuple[Tensor, ...]", _apply(_Allgather, name, process_set, *tensors))


def broadcast(
    tensor: Tensor,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """`root_rank`'s tensor, fresh, on every rank; the root is a rank of the world.

    The root's gradient is the ranks' mean gradient, the others' is zero.
    """
    return cast("Tensor", _apply(_Broadcast, tensor, root_rank, name, process_set))


def alltoall(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor | tuple[Tensor, Tensor]:
    """`splits[r]` rows go to rank r; without splits every rank gets as many.

    All rows that came, in order of rank; with splits also how many came from each. Gradients
    travel back. Raises ValueError for splits that cannot be.
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
    """Combine over all ranks (Average or Sum) and give each its share of the rows.

    If the rows cannot be shared equally, the first ranks get one more. Gradients are gathered.
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
    """``reducescatter`` of several tensors, as one call."""
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
