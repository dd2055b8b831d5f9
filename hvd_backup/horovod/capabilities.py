"""Horovod's questions about how it was built and what it runs on, answered for this package."""

from __future__ import annotations

from hvd_backup.world import runtime


def mpi_threads_supported() -> bool:
    """Whether several threads may call MPI (MPI_THREAD_MULTIPLE). Needs ``init()``.

    Raises ValueError if the ranks do not exchange by MPI.
    """
    mpi = runtime.current().mpi
    if not mpi_enabled():
        raise ValueError(
            "Horovod MPI is not enabled; Please make sure it's installed and enabled. (The ranks "
            "were started without it: use mpirun.)"
        )
    return bool(mpi.Query_thread() == mpi.THREAD_MULTIPLE)


def mpi_enabled() -> bool:
    """Whether the ranks exchange by MPI, or would after ``init()``."""
    return not runtime.is_initialized() or hasattr(runtime.current().mpi, "Query_thread")


def mpi_built() -> bool:
    """Always: which MPI it is, is found out at run time."""
    return True


def gloo_enabled() -> bool:
    """Never: hosts exchange by MPI."""
    return False


def gloo_built() -> bool:
    """Never: hosts exchange by MPI."""
    return False


def nccl_built() -> int:
    """Never: 0."""
    return 0


def ddl_built() -> bool:
    """Never."""
    return False


def ccl_built() -> bool:
    """Never."""
    return False


def cuda_built() -> bool:
    """Whether kernels for CUDA are in this build."""
    from hvd_backup import _core

    return _core.cuda_status().built


def rocm_built() -> bool:
    """Never."""
    return False
