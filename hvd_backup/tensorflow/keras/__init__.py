"""hvd_backup for Keras 3 on TensorFlow: ``import hvd_backup.tensorflow.keras as hvd``."""

from __future__ import annotations

import os
from typing import Any

_WRONG_BACKEND = (
    "hvd_backup.keras needs Keras' TensorFlow backend, not {}: set KERAS_BACKEND=tensorflow before "
    "keras is imported. (For PyTorch models that are not Keras', there is hvd_backup.torch.)"
)
if (_asked := os.environ.get("KERAS_BACKEND", "tensorflow")) != "tensorflow":
    raise ImportError(_WRONG_BACKEND.format(_asked))

import keras  # noqa: E402

if keras.config.backend() != "tensorflow":
    raise ImportError(_WRONG_BACKEND.format(keras.config.backend()))

from hvd_backup import (  # noqa: E402
    Average,
    Error,
    LaunchError,
    Max,
    Min,
    Mismatch,
    NotInitialized,
    PeerFailed,
    Product,
    Round,
    RoundTimeout,
    Stats,
    Sum,
    barrier,
    cross_rank,
    cross_size,
    init,
    is_initialized,
    local_rank,
    local_size,
    rank,
    shutdown,
    size,
)
from hvd_backup import tensorflow as _tensorflow  # noqa: E402
from hvd_backup.tensorflow import (  # noqa: E402
    Compression,
    ProcessSet,
    add_process_set,
    allgather_object,
    broadcast_global_variables,
    broadcast_object,
    broadcast_object_fn,
    broadcast_variables,
    ccl_built,
    cuda_built,
    ddl_built,
    global_process_set,
    gloo_built,
    gloo_enabled,
    is_homogeneous,
    mpi_built,
    mpi_enabled,
    mpi_threads_supported,
    native_errors,
    nccl_built,
    remove_process_set,
    rocm_built,
    start_timeline,
    stop_timeline,
)
from hvd_backup.tensorflow.keras import callbacks  # noqa: E402
from hvd_backup.tensorflow.keras.attempt import Attempt  # noqa: E402
from hvd_backup.tensorflow.keras.fitting import load_model  # noqa: E402
from hvd_backup.tensorflow.keras.optimizer import DistributedOptimizer  # noqa: E402
from hvd_backup.tensorflow.refused import refuser as _refuser  # noqa: E402
from hvd_backup.tensorflow.tape import local_variables as _local_variables  # noqa: E402

__getattr__ = _refuser(__name__)


def PartialDistributedOptimizer(  # noqa: N802 (Horovod's name)
    optimizer: Any, *args: Any, local_layers: Any = None, **options: Any
) -> Any:
    """``DistributedOptimizer`` that leaves the gradients of some layers to each rank.

    Horovod's ``PartialDistributedOptimizer``.

    Args:
        optimizer: A Keras 3 optimizer.
        *args: As in ``DistributedOptimizer``.
        local_layers: A Keras layer, or an iterable of them, whose trainable weights are not
            exchanged.
        **options: As in ``DistributedOptimizer``.

    Returns:
        The optimizer itself; see ``DistributedOptimizer``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or `local_layers` are not Keras layers.
        NotInitialized: ``init()`` was not called.
    """
    variables = _local_variables(local_layers)
    optimizer = DistributedOptimizer(optimizer, *args, **options)
    for variable in variables:
        optimizer.register_local_var(variable)
    return optimizer


def allreduce(
    value: Any,
    name: str | None = None,
    average: bool | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: str | None = None,
    compression: Any = Compression.none,
) -> Any:
    """Combine a tensor over all ranks. Every rank waits for every other.

    It is ``hvd_backup.tensorflow.allreduce`` with the arguments of Horovod's Keras module.

    Args:
        value: A tensor of any shape and an integer, floating (bfloat16 too) or complex dtype; shape
            and dtype are equal on all ranks.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        average: Horovod's older form of `op`: True is Average, False is Sum.
        prescale_factor: Multiplies each rank's tensor before it is combined.
        postscale_factor: Multiplies the result. Integers are scaled in float64 and cut off.
        op: Average (default), Sum, Min, Max or Product.
        compression: The dtype in which the tensor travels: a class of ``Compression``, or one like
            it.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ValueError: `op` does not exist, is given with `average` or cannot combine the dtype.
        NotImplementedError: XLA is to compile the call.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, ops or factors differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return _tensorflow.allreduce(
        value,
        average,
        op=op,
        compression=compression,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
    )


def allgather(value: Any, name: str | None = None) -> Any:
    """Concatenate the tensors of all ranks along axis 0. Horovod's ``allgather``.

    Args:
        value: A tensor of any shape with at least one axis, and any dtype that numpy has, bfloat16
            or string. Axis 0 may differ between ranks; the other axes and the dtype may not.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.

    Returns:
        A tensor of the same dtype with the rows of all ranks, in order of rank.

    Raises:
        ValueError: The tensor is a scalar.
        NotImplementedError: XLA is to compile the call.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' dtypes or other axes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return _tensorflow.allgather(value)


def broadcast(value: Any, root_rank: int, name: str | None = None) -> Any:
    """Give every rank the tensor of `root_rank`. Horovod's ``broadcast``.

    Args:
        value: A tensor of any shape and any dtype that numpy has, bfloat16 or string; shape and
            dtype are equal on all ranks.
        root_rank: A rank of the world.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.

    Returns:
        The root's values, a tensor of the same shape and dtype.

    Raises:
        ValueError: There is no such rank.
        NotImplementedError: XLA is to compile the call.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes or roots differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return _tensorflow.broadcast(value, root_rank)


def reducescatter(value: Any, name: str | None = None, op: str = Average) -> Any:
    """Combine a tensor over all ranks, and give each rank its share of the rows.

    If the rows do not divide equally, the first ranks get one more. Horovod's ``reducescatter``.

    Args:
        value: A tensor of any shape with at least one axis, and an integer, floating (bfloat16 too)
            or complex dtype; shape and dtype are equal on all ranks.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        op: Average or Sum.

    Returns:
        This rank's rows, a tensor of the same dtype.

    Raises:
        ValueError: `op` is neither Average nor Sum, or the tensor is a scalar.
        NotImplementedError: XLA is to compile the call.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes or ops differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return _tensorflow.reducescatter(value, op=op)


__all__ = [
    "Attempt",
    "Average",
    "Compression",
    "DistributedOptimizer",
    "Error",
    "LaunchError",
    "Max",
    "Min",
    "Mismatch",
    "NotInitialized",
    "PartialDistributedOptimizer",
    "PeerFailed",
    "ProcessSet",
    "Product",
    "Round",
    "RoundTimeout",
    "Stats",
    "Sum",
    "add_process_set",
    "allgather",
    "allgather_object",
    "allreduce",
    "barrier",
    "broadcast",
    "broadcast_global_variables",
    "broadcast_object",
    "broadcast_object_fn",
    "broadcast_variables",
    "callbacks",
    "ccl_built",
    "cross_rank",
    "cross_size",
    "cuda_built",
    "ddl_built",
    "global_process_set",
    "gloo_built",
    "gloo_enabled",
    "init",
    "is_homogeneous",
    "is_initialized",
    "load_model",
    "local_rank",
    "local_size",
    "mpi_built",
    "mpi_enabled",
    "mpi_threads_supported",
    "native_errors",
    "nccl_built",
    "rank",
    "reducescatter",
    "remove_process_set",
    "rocm_built",
    "shutdown",
    "size",
    "start_timeline",
    "stop_timeline",
]
