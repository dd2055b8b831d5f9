"""Synchronous SGD that does not wait for the slowest worker.

Chen, Pan, Monga, Bengio, Jozefowicz, "Revisiting Distributed Synchronous SGD" (2016): run N+b
workers, close every update as soon as N gradients are in, drop the rest. This package has the
collective that does it, on numpy arrays; ``hvd_backup.torch`` has the optimizer.
"""

from importlib.metadata import PackageNotFoundError, version

from hvd_backup.collectives import (
    Average,
    Max,
    Min,
    PartialMean,
    PartialMeans,
    Product,
    Sum,
    allgather,
    allgather_object,
    allreduce,
    barrier,
    broadcast,
    broadcast_object,
    partial_allreduce,
)
from hvd_backup.errors import (
    Error,
    LaunchError,
    Mismatch,
    NotInitialized,
    PeerFailed,
    RoundTimeout,
)
from hvd_backup.reports import Round, RoundRecord, Stats
from hvd_backup.runtime import (
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

try:
    __version__ = version("hvd_backup")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Average",
    "Error",
    "LaunchError",
    "Max",
    "Min",
    "Mismatch",
    "NotInitialized",
    "PartialMean",
    "PartialMeans",
    "PeerFailed",
    "Product",
    "Round",
    "RoundRecord",
    "RoundTimeout",
    "Stats",
    "Sum",
    "allgather",
    "allgather_object",
    "allreduce",
    "barrier",
    "broadcast",
    "broadcast_object",
    "cross_rank",
    "cross_size",
    "init",
    "is_initialized",
    "local_rank",
    "local_size",
    "partial_allreduce",
    "rank",
    "shutdown",
    "size",
]
