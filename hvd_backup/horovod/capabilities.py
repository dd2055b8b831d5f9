"""Horovod's questions about how it was built and what it runs on, answered for this package."""

from __future__ import annotations

from hvd_backup.world import runtime


def mpi_threads_supported() -> bool:
    """Whether several threads may call MPI at once (MPI_THREAD_MULTIPLE). Horovod's name.

    Returns:
        True or False.

    Raises:
        ValueError: The ranks do not exchange by MPI.
        NotInitialized: ``init()`` was not called.
    """
    mpi = runtime.current().mpi
    if not mpi_enabled():
        raise ValueError(
            "Horovod MPI is not enabled; Please make sure it's installed and enabled. (The ranks "
            "were started without it: use mpirun.)"
        )
    return bool(mpi.Query_thread() == mpi.THREAD_MULTIPLE)


def mpi_enabled() -> bool:
    """Whether the ranks exchange by MPI. Horovod's ``mpi_enabled``.

    Returns:
        True or False; True before ``init()``.
    """
    return not runtime.is_initialized() or hasattr(runtime.current().mpi, "Query_thread")


def mpi_built() -> bool:
    """Whether MPI can be used. Horovod's ``mpi_built``.

    Returns:
        True: the MPI is found at run time.
    """
    return True


def gloo_enabled() -> bool:
    """Whether the ranks exchange by gloo. Horovod's ``gloo_enabled``.

    Returns:
        False.
    """
    return False


def gloo_built() -> bool:
    """Whether gloo can be used. Horovod's ``gloo_built``.

    Returns:
        False.
    """
    return False


def nccl_built() -> int:
    """Which NCCL was built in. Horovod's ``nccl_built``.

    Returns:
        0: none.
    """
    return 0


def ddl_built() -> bool:
    """Whether IBM's DDL was built in. Horovod's ``ddl_built``.

    Returns:
        False.
    """
    return False


def ccl_built() -> bool:
    """Whether Intel's oneCCL was built in. Horovod's ``ccl_built``.

    Returns:
        False.
    """
    return False


def cuda_built() -> bool:
    """Whether this build has kernels for CUDA. Horovod's ``cuda_built``.

    Returns:
        True or False.
    """
    from hvd_backup import _core

    return _core.cuda_status().built


def rocm_built() -> bool:
    """Whether this build has kernels for ROCm. Horovod's ``rocm_built``.

    Returns:
        False.
    """
    return False
