"""Horovod's environment variables: which are honoured, and a word on those that are not."""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger("hvd_backup")

# Read by hvd_backup/config.py.
HONOURED = {
    "HOROVOD_LOG_LEVEL",
    "HOROVOD_STALL_CHECK_DISABLE",
    "HOROVOD_STALL_CHECK_TIME_SECONDS",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS",
    "HOROVOD_TIMELINE",
}
# What they ask for is always so.
_NOT_NEEDED = {"HOROVOD_DYNAMIC_PROCESS_SETS", "HOROVOD_LOG_HIDE_TIME", "HOROVOD_LOG_TIMESTAMP"}
# Set by horovodrun for the ranks that it starts, or read when Horovod is built.
_BY_LAUNCHER = (
    "HOROVOD_RANK",
    "HOROVOD_SIZE",
    "HOROVOD_LOCAL_",
    "HOROVOD_CROSS_",
    "HOROVOD_HOSTNAME",
    "HOROVOD_CONTROLLER",
    "HOROVOD_CPU_OPERATIONS",
    "HOROVOD_GLOO_",
    "HOROVOD_WITH",
    "HOROVOD_BUILD_",
    "HOROVOD_GPU",
    "HOROVOD_MPI_HOME",
    "HOROVOD_NCCL_",
    "HOROVOD_CUDA_",
)


def without_effect(environ: Mapping[str, str]) -> list[str]:
    """The variables of Horovod's that are set and change nothing."""
    return sorted(
        name
        for name in environ
        if name.startswith("HOROVOD_")
        and not name.startswith(_BY_LAUNCHER)
        and name not in HONOURED | _NOT_NEEDED
    )


def warn_of(names: list[str]) -> None:
    """One warning that names them."""
    if names:
        log.warning(
            "%s: accepted, and without effect in hvd_backup (docs/horovod.md)", ", ".join(names)
        )
