"""The module _mpi, in a world of one."""

import subprocess
import sys

import pytest
from mpi4py import MPI

from hvd_backup import _mpi
from hvd_backup.launch import check_same_library, loaded_mpi_library, mpi4py_library_version


def test_the_extension_calls_the_library_that_mpi4py_has_loaded():
    version, path = _mpi.library()
    assert version == MPI.Get_library_version().strip("\0")
    assert path == loaded_mpi_library() != ""
    check_same_library(MPI.Get_library_version(), loaded_mpi_library(), version, path)


def test_the_library_is_known_before_it_is_initialized():
    program = """
from hvd_backup.launch import mpi4py_library_version
version = mpi4py_library_version()
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
assert not MPI.Is_initialized()
assert version == MPI.Get_library_version().strip("\\0") != ""
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert mpi4py_library_version() == MPI.Get_library_version().strip("\0")


def test_a_communicator_of_mpi4py_is_understood():
    assert _mpi.communicator(MPI._handleof(MPI.COMM_WORLD)) == (0, MPI.COMM_WORLD.size)
    copy = MPI.COMM_SELF.Dup()
    assert _mpi.communicator(MPI._handleof(copy)) == (0, 1)
    copy.Free()


def test_the_thread_level_is_named():
    names = ["SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE"]
    values = [getattr(MPI, f"THREAD_{name}") for name in names]
    assert _mpi.thread_level() == f"MPI_THREAD_{names[values.index(MPI.Query_thread())]}"


@pytest.mark.parametrize(
    ("before", "words"),
    [("", "was not initialized"), ("MPI.Init(); MPI.Finalize()", "was finalized")],
    ids=["before MPI_Init", "after MPI_Finalize"],
)
def test_without_a_running_mpi_only_the_library_is_told(before, words):
    program = f"""
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
from hvd_backup import _mpi
{before}
assert _mpi.library()[0]
for call in (_mpi.thread_level, lambda: _mpi.communicator(MPI._handleof(MPI.COMM_WORLD))):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.count(words) == 2, run.stdout + run.stderr
