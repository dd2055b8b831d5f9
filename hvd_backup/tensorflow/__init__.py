"""hvd_backup for TensorFlow 2: ``import hvd_backup.tensorflow as hvd``, was horovod.tensorflow."""

from __future__ import annotations

from typing import Any

try:
    import tensorflow  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"hvd_backup.tensorflow needs TensorFlow ({error}): pip install tensorflow, or, on a "
        "machine without a GPU, tensorflow-cpu"
    ) from error

from hvd_backup import (
    Average,
    Error,
    LaunchError,
    Max,
    Min,
    Mismatch,
    NotInitialized,
    PeerFailed,
    ProcessSet,
    Product,
    Round,
    RoundTimeout,
    Stats,
    Sum,
    add_process_set,
    barrier,
    cross_rank,
    cross_size,
    global_process_set,
    init,
    is_homogeneous,
    is_initialized,
    local_rank,
    local_size,
    rank,
    remove_process_set,
    shutdown,
    size,
)
from hvd_backup.horovod.capabilities import (
    ccl_built,
    cuda_built,
    ddl_built,
    gloo_built,
    gloo_enabled,
    mpi_built,
    mpi_enabled,
    mpi_threads_supported,
    nccl_built,
    rocm_built,
)
from hvd_backup.horovod.timeline import start_timeline, stop_timeline
from hvd_backup.tensorflow.collectives import (
    allgather,
    allreduce,
    alltoall,
    broadcast,
    grouped_allgather,
    grouped_allreduce,
    grouped_reducescatter,
    join,
    reducescatter,
)
from hvd_backup.tensorflow.compression import (
    Compression,
)
from hvd_backup.tensorflow.facts import local_rank_op, local_size_op, rank_op, size_op
from hvd_backup.tensorflow.functions import (
    allgather_object,
    broadcast_global_variables,
    broadcast_object,
    broadcast_object_fn,
    broadcast_variables,
)
from hvd_backup.tensorflow.ops import (
    native_errors,
)
from hvd_backup.tensorflow.refused import refuser as _refuser
from hvd_backup.tensorflow.tape import (
    DistributedGradientTape,
    PartialDistributedGradientTape,
)

__getattr__ = _refuser(__name__)


def DistributedOptimizer(  # noqa: N802 (Horovod's name)
    optimizer: Any,
    name: str | None = None,
    use_locking: bool = False,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    backward_passes_per_step: int = 1,
    op: str = Average,
    gradient_predivide_factor: float = 1.0,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = None,
    scale_local_gradients: bool = True,
    **ours: Any,
) -> Any:
    """Make every ``apply()`` of a Keras optimizer one round; Horovod's ``DistributedOptimizer``.

    It is ``hvd_backup.tensorflow.keras.DistributedOptimizer`` with the arguments in the order of
    ``horovod.tensorflow``.

    Args:
        optimizer: A Keras 3 optimizer.
        name: Names the rounds in errors.
        use_locking: Accepted for Horovod; without effect.
        device_dense: Accepted for Horovod; without effect, as the exchange runs on the host.
        device_sparse: Accepted for Horovod; without effect, as the exchange runs on the host.
        compression: The dtype in which gradients travel: a class of ``Compression``, or one like
            it.
        sparse_as_dense: Exchange IndexedSlices as dense tensors.
        backward_passes_per_step: How many calls of ``apply()`` add up to one round.
        op: Average, or Sum: the weighted sum over the contributors.
        gradient_predivide_factor: Checked as in Horovod; without effect.
        average_aggregated_gradients: Divide the sum of several passes by their number.
        num_groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        process_set: The ranks whose rounds these are; default: all.
        scale_local_gradients: Divide the gradients of local variables by the number of ranks.
        **ours: `backup_workers`, `late`, `grace`, `window`, `timeout` and `sparse_mean`, as in
            ``hvd_backup.tensorflow.keras.DistributedOptimizer``.

    Returns:
        The optimizer itself; see ``hvd_backup.tensorflow.keras.DistributedOptimizer``.

    Raises:
        TypeError: `optimizer` is not a Keras optimizer (but one of TensorFlow 1, say), or an
            argument is of the wrong type.
        ValueError: An argument is out of range, or `optimizer` already is distributed.
        NotImplementedError: `op` is Adasum.
        NotInitialized: ``init()`` was not called.
    """
    from hvd_backup.tensorflow.keras import DistributedOptimizer as OfKeras

    return OfKeras(
        optimizer,
        name,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        gradient_predivide_factor,
        op,
        backward_passes_per_step,
        average_aggregated_gradients,
        num_groups,
        groups,
        process_set,
        scale_local_gradients,
        **ours,
    )


__all__ = [
    "Average",
    "Compression",
    "DistributedGradientTape",
    "DistributedOptimizer",
    "Error",
    "LaunchError",
    "Max",
    "Min",
    "Mismatch",
    "NotInitialized",
    "PartialDistributedGradientTape",
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
    "alltoall",
    "barrier",
    "broadcast",
    "broadcast_global_variables",
    "broadcast_object",
    "broadcast_object_fn",
    "broadcast_variables",
    "ccl_built",
    "cross_rank",
    "cross_size",
    "cuda_built",
    "ddl_built",
    "global_process_set",
    "gloo_built",
    "gloo_enabled",
    "grouped_allgather",
    "grouped_allreduce",
    "grouped_reducescatter",
    "init",
    "is_homogeneous",
    "is_initialized",
    "join",
    "local_rank",
    "local_rank_op",
    "local_size",
    "local_size_op",
    "mpi_built",
    "mpi_enabled",
    "mpi_threads_supported",
    "native_errors",
    "nccl_built",
    "rank",
    "rank_op",
    "reducescatter",
    "remove_process_set",
    "rocm_built",
    "shutdown",
    "size",
    "size_op",
    "start_timeline",
    "stop_timeline",
]
