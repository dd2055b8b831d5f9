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
    """Combine a tensor over all ranks. Every rank waits for every other. Horovod's ``allreduce``.

    The gradient is combined in the same way; Min, Max and Product have none.

    Args:
        tensor: Of any shape and an integer, floating (bfloat16 too) or complex dtype; shape and
            dtype are equal on all ranks. Of IndexedSlices the rows of all ranks are gathered, whose
            number may differ.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        device_dense: Accepted for Horovod; without effect, as the exchange runs on the host.
        device_sparse: Accepted for Horovod; without effect, as the exchange runs on the host.
        compression: The dtype in which the tensor travels: a class of ``Compression``, or one like
            it. IndexedSlices travel as they are.
        op: Average (default), Sum, Min, Max or Product; for IndexedSlices Average or Sum.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are scaled in float64 and cut off.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        process_set: The ranks that take part; None: all.
        ignore_name_scope: Accepted for Horovod; without effect.

    Returns:
        A tensor of the same shape and dtype; IndexedSlices for IndexedSlices. Means of integers are
        cut off.

    Raises:
        ValueError: `op` does not exist, is given with `average` or cannot combine the dtype, or
            this rank is not in the set.
        NotImplementedError: IndexedSlices with another `op` or a factor; or XLA is to compile the
            call.
        TypeError: `process_set` is not a ProcessSet.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

        In a ``tf.function`` the errors of the exchange are the text of a ``tf.errors.OpError``; see
        ``native_errors``.

    Example:
        >>> import tensorflow as tf
        >>> import hvd_backup.tensorflow as hvd
        >>> hvd.init()
        >>> hvd.allreduce(tf.constant([1.0, 3.0])).numpy().tolist()
        [1.0, 3.0]
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
    """Combine several tensors over all ranks, in one exchange. Horovod's ``grouped_allreduce``.

    Tensors of one dtype travel in one message. Gradients are those of ``allreduce``.

    Args:
        tensors: Tensors, each of any shape and an integer, floating (bfloat16 too) or complex
            dtype; shapes and dtypes are equal on all ranks. IndexedSlices are gathered, each by
            itself.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        device_dense: Accepted for Horovod; without effect, as the exchange runs on the host.
        device_sparse: Accepted for Horovod; without effect, as the exchange runs on the host.
        compression: The dtype in which the tensors travel: a class of ``Compression``, or one like
            it.
        op: Average (default), Sum, Min, Max or Product; for IndexedSlices Average or Sum.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are scaled in float64 and cut off.
        process_set: The ranks that take part; None: all.
        ignore_name_scope: Accepted for Horovod; without effect.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.

    Returns:
        A list of tensors, or IndexedSlices, of the same shapes and dtypes.

    Raises:
        ValueError: `op` does not exist, is given with `average` or cannot combine a dtype, or this
            rank is not in the set.
        NotImplementedError: IndexedSlices with another `op` or a factor; or XLA is to compile the
            call.
        TypeError: `process_set` is not a ProcessSet.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

        In a ``tf.function`` the errors of the exchange are the text of a ``tf.errors.OpError``; see
        ``native_errors``.
    """
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
    """Concatenate the tensors of all ranks along axis 0, in order of rank. Horovod's ``allgather``.

    The gradient is this rank's part of the mean gradient of all ranks.

    Args:
        tensor: Of any shape with at least one axis, and any dtype that numpy has, bfloat16 or
            string. Axis 0 may differ between ranks; the other axes and the dtype may not.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        ignore_name_scope: Accepted for Horovod; without effect.
        process_set: The ranks that take part; None: all.

    Returns:
        A tensor of the same dtype with the rows of all ranks.

    Raises:
        ValueError: The tensor is a scalar, or this rank is not in the set.
        NotImplementedError: XLA is to compile the call.
        TypeError: `process_set` is not a ProcessSet.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

        In a ``tf.function`` the errors of the exchange are the text of a ``tf.errors.OpError``; see
        ``native_errors``.

    Example:
        >>> import tensorflow as tf
        >>> import hvd_backup.tensorflow as hvd
        >>> hvd.init()
        >>> hvd.allgather(tf.constant([[1, 2]])).shape == (hvd.size(), 2)
        True
    """
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
    """Concatenate each of several tensors of all ranks along axis 0.

    Horovod's ``grouped_allgather``; see ``allgather``.

    Args:
        tensors: Tensors, each of any shape with at least one axis, and any dtype that numpy has,
            bfloat16 or string. Axis 0 may differ between ranks; the other axes and the dtype may
            not.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        ignore_name_scope: Accepted for Horovod; without effect.
        process_set: The ranks that take part; None: all.

    Returns:
        A list of tensors of the same dtypes with the rows of all ranks.

    Raises:
        ValueError: A tensor is a scalar, or this rank is not in the set.
        NotImplementedError: XLA is to compile the call.
        TypeError: `process_set` is not a ProcessSet.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

        In a ``tf.function`` the errors of the exchange are the text of a ``tf.errors.OpError``; see
        ``native_errors``.
    """
    return [allgather(tensor, process_set=process_set) for tensor in tensors]


def broadcast(
    tensor: Any,
    root_rank: int,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: Any = None,
) -> Any:
    """Give every rank the tensor of `root_rank`. Horovod's ``broadcast``.

    The root's gradient is the mean gradient of all ranks; the gradient of the others is zero.

    Args:
        tensor: Of any shape and any dtype that numpy has, bfloat16 or string; shape and dtype are
            equal on all ranks.
        root_rank: A rank of the world, also with a process set.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        ignore_name_scope: Accepted for Horovod; without effect.
        process_set: The ranks that take part; None: all.

    Returns:
        The root's values, a tensor of the same shape and dtype.

    Raises:
        ValueError: The root, or this rank, is not in the world or in the set.
        NotImplementedError: XLA is to compile the call.
        TypeError: `root_rank` is not an int, or `process_set` is not a ProcessSet.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes or roots differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

        In a ``tf.function`` the errors of the exchange are the text of a ``tf.errors.OpError``; see
        ``native_errors``.
    """
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
    """Send rows to every rank, and receive rows from every rank. Horovod's ``alltoall``.

    Gradients travel back.

    Args:
        tensor: Of any shape with at least one axis, and any dtype that numpy has, bfloat16 or
            string. Axis 0 may differ between ranks; the other axes and the dtype may not.
        splits: How many rows each rank gets, of shape [ranks] and an integer dtype. Rows beyond
            their sum are not sent. None: every rank gets the same number of rows.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        ignore_name_scope: Accepted for Horovod; without effect.
        process_set: The ranks that take part; None: all.

    Returns:
        The rows that came, in order of rank, a tensor of the same dtype. With `splits` a tuple of
        it and how many rows each rank sent, a tensor of shape [ranks] and dtype int32.

    Raises:
        ValueError: The splits do not fit the rows or the number of ranks, the tensor is a scalar,
            or this rank is not in the set.
        NotImplementedError: XLA is to compile the call.
        TypeError: `process_set` is not a ProcessSet.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

        In a ``tf.function`` the errors of the exchange are the text of a ``tf.errors.OpError``; see
        ``native_errors``.
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
    """Combine a tensor over all ranks, and give each rank its share of the rows.

    If the rows do not divide equally, the first ranks get one more. The gradients of all ranks are
    gathered. Horovod's ``reducescatter``.

    Args:
        tensor: Of any shape with at least one axis, and an integer, floating (bfloat16 too) or
            complex dtype; shape and dtype are equal on all ranks.
        device_dense: Accepted for Horovod; without effect, as the exchange runs on the host.
        compression: The dtype in which the tensor travels: a class of ``Compression``, or one like
            it.
        op: Average or Sum.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        process_set: The ranks that take part; None: all.
        ignore_name_scope: Accepted for Horovod; without effect.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are scaled in float64 and cut off.

    Returns:
        This rank's rows, a tensor of the same dtype.

    Raises:
        ValueError: `op` is neither Average nor Sum, the tensor is a scalar, or this rank is not in
            the set.
        NotImplementedError: XLA is to compile the call.
        TypeError: `process_set` is not a ProcessSet.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

        In a ``tf.function`` the errors of the exchange are the text of a ``tf.errors.OpError``; see
        ``native_errors``.
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
    """Combine several tensors over all ranks, and give each rank its share of their rows.

    Horovod's ``grouped_reducescatter``; see ``reducescatter``.

    Args:
        tensors: Tensors, each of any shape with at least one axis, and an integer, floating
            (bfloat16 too) or complex dtype; shapes and dtypes are equal on all ranks.
        device_dense: Accepted for Horovod; without effect, as the exchange runs on the host.
        compression: The dtype in which the tensors travel: a class of ``Compression``, or one like
            it.
        op: Average or Sum.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        process_set: The ranks that take part; None: all.
        ignore_name_scope: Accepted for Horovod; without effect.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are scaled in float64 and cut off.

    Returns:
        A list of this rank's rows of each, tensors of the same dtypes.

    Raises:
        ValueError: `op` is neither Average nor Sum, a tensor is a scalar, or this rank is not in
            the set.
        NotImplementedError: XLA is to compile the call.
        TypeError: `process_set` is not a ProcessSet.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

        In a ``tf.function`` the errors of the exchange are the text of a ``tf.errors.OpError``; see
        ``native_errors``.
    """
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
    """Say that this rank has no more data; join the others' ``allreduce`` until all have said so.

    This rank contributes zeros, which an average counts. Every rank makes the same number of rounds
    of an optimizer or a tape: join after them. Horovod's ``join``.

    Returns:
        The rank that joined last.

    Raises:
        NotInitialized: ``init()`` was not called.
        Mismatch: A rank that has not joined makes a call that needs this one: a round, on every
            rank; another collective, on the ranks that have not joined.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import hvd_backup.tensorflow as hvd
        >>> hvd.init()
        >>> 0 <= hvd.join() < hvd.size()
        True
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
