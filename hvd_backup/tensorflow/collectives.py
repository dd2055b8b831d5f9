"""Collectives on tensors, with gradients, eagerly and in a ``tf.function``.

Every rank waits for every other in them, whatever ``backup_workers`` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_backup import collectives
from hvd_backup.collectives import check_root
from hvd_backup.collectives.operations import Where, op_of
from hvd_backup.collectives.process_sets import table_of
from hvd_backup.tensorflow import host
from hvd_backup.tensorflow.arguments import where_of
from hvd_backup.tensorflow.compression import Compression
from hvd_backup.tensorflow.ops import host_call
from hvd_backup.world import runtime
from hvd_backup.world.wire import Average, ReduceOp, Sum


def allreduce(
    tensor: Any,
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: Any = None,
    ignore_name_scope: bool = False,
) -> Any:
    """Combine over all ranks, with `op` Average (default), Sum, Min, Max or Product.

    IndexedSlices (Average and Sum only) are gathered: rows of all ranks one after another.
    Differentiable for Average and Sum. Raises Mismatch, on every rank, when shapes, dtypes or ops
    differ. The devices are accepted and change nothing: the exchange runs on the host.
    """
    if isinstance(tensor, tf.IndexedSlices):
        return grouped_allreduce(
            [tensor],
            average,
            op=op,
            prescale_factor=prescale_factor,
            postscale_factor=postscale_factor,
            process_set=process_set,
        )[0]
    (result,) = grouped_allreduce(
        [tensor],
        average,
        compression=compression,
        op=op,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        process_set=process_set,
    )
    return result


def grouped_allreduce(
    tensors: Sequence[Any],
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = None,
    ignore_name_scope: bool = False,
    name: str | None = None,
) -> list[Any]:
    """``allreduce`` of several tensors in one exchange (one message per dtype)."""
    op = op_of(op, average)
    where = where_of(process_set)
    tensors = [t if isinstance(t, tf.IndexedSlices) else tf.convert_to_tensor(t) for t in tensors]
    results: list[Any] = [None] * len(tensors)
    dense = [i for i, t in enumerate(tensors) if not isinstance(t, tf.IndexedSlices)]
    for i in range(len(tensors)):
        if i not in dense:
            results[i] = _allreduce_slices(
                tensors[i], op, prescale_factor, postscale_factor, process_set
            )
    packed, contexts = [], []
    for i in dense:
        small, ctx = compression.compress(tensors[i])
        packed.append(small)
        contexts.append(ctx)
    if packed:
        how = ReduceOp(op, prescale_factor, postscale_factor)
        for i, ctx, result in zip(dense, contexts, _allreduce(packed, how, where), strict=True):
            results[i] = compression.decompress(result, ctx)
    return results


def allgather(
    tensor: Any, name: str | None = None, ignore_name_scope: bool = False, process_set: Any = None
) -> Any:
    """All ranks' tensors, concatenated along axis 0, whose length may differ. Differentiable."""
    where = where_of(process_set)
    tensor = tf.convert_to_tensor(tensor)
    lengths: Any = None

    @tf.custom_gradient
    def gather(x: Any) -> Any:
        nonlocal lengths
        result, lengths = host_call(
            lambda array: host.allgather(array, where), [x], [x.dtype, tf.int64]
        )
        result.set_shape((None, *x.shape[1:]))
        lengths.set_shape((where.process_set.size(),))
        own = lengths

        def gradient(upstream: Any) -> Any:
            (mean,) = _allreduce([upstream], ReduceOp(), where)
            rank = where.process_set.rank()
            first = tf.reduce_sum(own[:rank])
            return mean[first : first + own[rank]]

        return result, gradient

    return gather(tensor)


def grouped_allgather(
    tensors: Sequence[Any],
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: Any = None,
) -> list[Any]:
    """``allgather`` of several tensors."""
    return [allgather(tensor, process_set=process_set) for tensor in tensors]


def broadcast(
    tensor: Any,
    root_rank: int,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: Any = None,
) -> Any:
    """`root_rank`'s tensor on every rank. Differentiable: the root gets the mean gradient."""
    where = where_of(process_set)
    check_root(root_rank)

    @tf.custom_gradient
    def send(x: Any) -> Any:
        (result,) = host_call(
            lambda array: host.broadcast([array], root_rank, where), [x], [x.dtype]
        )
        result.set_shape(x.shape)

        def gradient(upstream: Any) -> Any:
            (mean,) = _allreduce([upstream], ReduceOp(), where)
            return mean if runtime.rank() == root_rank else tf.zeros_like(mean)

        return result, gradient

    return send(tf.convert_to_tensor(tensor))


def alltoall(
    tensor: Any,
    splits: Any = None,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: Any = None,
) -> Any:
    """StatusBoard to every rank from every rank; with `splits` also how many came from each.

    `splits` [size] says how many rows go to each rank; without it all get as many. Differentiable.
    """
    where = where_of(process_set)
    wanted = tf.constant([], tf.int32) if splits is None else tf.cast(splits, tf.int32)

    def exchange(rows: Any, counts: Any) -> Any:
        return host.alltoall(rows, counts, where)

    @tf.custom_gradient
    def scatter(x: Any) -> Any:
        result, received = host_call(exchange, [x, wanted], [x.dtype, tf.int32])
        result.set_shape((None, *x.shape[1:]))
        received.set_shape((where.process_set.size(),))

        def gradient(upstream: Any, _: Any = None) -> Any:
            back, _ = host_call(exchange, [upstream, received], [upstream.dtype, tf.int32])
            return tf.ensure_shape(back, x.shape)

        return (result, received), gradient

    result, received = scatter(tf.convert_to_tensor(tensor))
    return result if splits is None else (result, received)


def reducescatter(
    tensor: Any,
    device_dense: str = "",
    compression: Any = Compression.none,
    op: str = Average,
    name: str | None = None,
    process_set: Any = None,
    ignore_name_scope: bool = False,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Any:
    """This rank's part of the rows of the combination over all ranks, Average or Sum.

    The first ranks get one row more if they do not divide. Differentiable.
    """
    where = where_of(process_set)
    if op not in (Average, Sum):
        raise ValueError(f"reducescatter: op={op!r}: use Average or Sum")
    small, ctx = compression.compress(tf.convert_to_tensor(tensor))
    how = ReduceOp(op, prescale_factor, postscale_factor)

    @tf.custom_gradient
    def scatter(x: Any) -> Any:
        (result,) = host_call(lambda array: [host.reducescatter(array, how, where)], [x], [x.dtype])
        result.set_shape((None, *x.shape[1:]))

        def gradient(upstream: Any) -> Any:
            rows, _ = host_call(
                lambda array: host.allgather(array, where), [upstream], [upstream.dtype, tf.int64]
            )
            factor = prescale_factor * postscale_factor
            if op == Sum:
                factor *= len(table_of(where.process_set, "reducescatter").ranks)
            return tf.ensure_shape(_times(rows, factor), x.shape)

        return result, gradient

    return compression.decompress(scatter(small), ctx)


def grouped_reducescatter(
    tensors: Sequence[Any],
    device_dense: str = "",
    compression: Any = Compression.none,
    op: str = Average,
    name: str | None = None,
    process_set: Any = None,
    ignore_name_scope: bool = False,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[Any]:
    """``reducescatter`` of several tensors."""
    return [
        reducescatter(
            tensor,
            compression=compression,
            op=op,
            process_set=process_set,
            prescale_factor=prescale_factor,
            postscale_factor=postscale_factor,
        )
        for tensor in tensors
    ]


def join() -> int:
    """This rank has no more data: take part in the others' ``allreduce`` until all have joined.

    It does so with zeros, which an average counts. The rank that came last. Rounds of an optimizer
    or a tape raise Mismatch, on every rank, while a rank has joined: every rank makes as many.
    """
    return collectives.join()


def _allreduce(tensors: list[Any], how: ReduceOp, where: Where) -> list[Any]:
    @tf.custom_gradient
    def combine(*inputs: Any) -> Any:
        results = host_call(
            lambda *arrays: host.allreduce(arrays, how, where), inputs, [x.dtype for x in inputs]
        )
        for result, x in zip(results, inputs, strict=True):
            result.set_shape(x.shape)

        def gradient(*upstream: Any) -> Any:
            if how.op not in (Average, Sum):
                raise NotImplementedError(f"allreduce({how}) has no gradient; use Average or Sum")
            return _allreduce(list(upstream), how, where)

        return results, gradient

    return list(combine(*tensors))


def _allreduce_slices(
    slices: Any, op: str, prescale: float, postscale: float, process_set: Any
) -> Any:
    if op not in (Average, Sum):
        raise NotImplementedError("Only Sum and Average ops are supported with tf.IndexedSlices")
    if prescale != 1.0 or postscale != 1.0:
        raise NotImplementedError("Pre/postscale_factor are not supported with tf.IndexedSlices")
    values = allgather(slices.values, process_set=process_set)
    indices = allgather(slices.indices, process_set=process_set)
    if op == Average:
        values /= tf.cast(where_of(process_set).process_set.size(), values.dtype)
    return tf.IndexedSlices(values, indices, slices.dense_shape)


def _times(tensor: Any, factor: float) -> Any:
    """In float32 or wider, as everything that is reduced."""
    wide = tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor
    return tf.cast(wide * tf.cast(np.float64(factor), wide.dtype), tensor.dtype)
