"""As in tests/mpi: the world passes or fails as one."""

from mpi.conftest import pytest_configure, pytest_unconfigure

__all__ = ["pytest_configure", "pytest_unconfigure"]
