"""As in tests/mpi: the world passes or fails as one."""

import importlib
import os

import pytest
from mpi.conftest import pytest_configure, pytest_unconfigure

__all__ = ["pytest_configure", "pytest_unconfigure"]

# `make test-launchers` sets it to horovod.tensorflow: what these tests expect is what that does.
MODULES = ["hvd_backup.tensorflow", *filter(None, [os.environ.get("HVD_BACKUP_BESIDE")])]


@pytest.fixture(params=MODULES)
def hvd(request):
    """The module under test, initialized."""
    module = importlib.import_module(request.param)
    if not module.is_initialized():
        module.init()
    return module
