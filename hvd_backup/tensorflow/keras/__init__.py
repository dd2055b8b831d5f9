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
    """``DistributedOptimizer`` that leaves the gradients of `local_layers` to each rank."""
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
    """``hvd_backup.tensorflow.allreduce``, in the order of Horovod's Keras module."""
    return _tensorflow.allreduce(
        value,
        average,
        op=op,
        compression=compression,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
    )


def allgather(value: Any, name: str | None = None) -> Any:
    """``hvd_backup.tensorflow.allgather``."""
    return _tensorflow.allgather(value)


def broadcast(value: Any, root_rank: int, name: str | None = None) -> Any:
    """``hvd_backup.tensorflow.broadcast``."""
    return _tensorflow.broadcast(value, root_rank)


def reducescatter(value: Any, name: str | None = None, op: str = Average) -> Any:
    """``hvd_backup.tensorflow.reducescatter``."""
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
