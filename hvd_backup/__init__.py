"""Synchronous SGD that does not wait for the slowest worker.

Chen, Pan, Monga, Bengio, Jozefowicz, "Revisiting Distributed Synchronous SGD" (2016): run N+b
workers, close every update as soon as N gradients are in, drop the rest. This package has the
collective that does it, on numpy arrays; ``hvd_backup.torch`` has the optimizer.
"""

from importlib.metadata import PackageNotFoundError, version

from hvd_backup import built as _built  # noqa: F401  (first: it may say why the rest fails)
from hvd_backup.collectives import (
    PartialMean,
    PartialMeans,
    allgather,
    allgather_object,
    allreduce,
    alltoall,
    barrier,
    broadcast,
    broadcast_object,
    join,
    partial_allreduce,
    reducescatter,
)
from hvd_backup.collectives.process_sets import (
    ProcessSet,
    add_process_set,
    global_process_set,
    init,
    remove_process_set,
)
from hvd_backup.errors import (
    DeviceError,
    Error,
    LaunchError,
    Mismatch,
    NotInitialized,
    PeerFailed,
    RoundTimeout,
)
from hvd_backup.rounds.reports import Round, RoundRecord, Stats
from hvd_backup.world.runtime import (
    cross_rank,
    cross_size,
    is_homogeneous,
    is_initialized,
    local_rank,
    local_size,
    rank,
    shutdown,
    size,
)
from hvd_backup.world.wire import Average, Max, Min, Product, Sum

try:
    __version__ = version("hvd_backup")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Average",
    "DeviceError",
    "Error",
    "LaunchError",
    "Max",
    "Min",
    "Mismatch",
    "NotInitialized",
    "PartialMean",
    "PartialMeans",
    "PeerFailed",
    "ProcessSet",
    "Product",
    "Round",
    "RoundRecord",
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
    "broadcast_object",
    "cross_rank",
    "cross_size",
    "global_process_set",
    "init",
    "is_homogeneous",
    "is_initialized",
    "join",
    "local_rank",
    "local_size",
    "partial_allreduce",
    "rank",
    "reducescatter",
    "remove_process_set",
    "shutdown",
    "size",
]
