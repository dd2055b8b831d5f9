"""Which mpirun ranks are started with."""

import sys

import pytest

from hvd_backup.errors import LaunchError
from hvd_backup.world import launch, mpi_library, mpirun

OPEN_MPI = "Open MPI v5.0.11, package: …"
MPICH = "MPICH Version:      5.0.2\nMPICH Release date"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Put an mpirun of some kind into a folder: beside, scripts, user or path."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside" / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "scripts"))
    monkeypatch.setattr("site.ENABLE_USER_SITE", True)
    monkeypatch.setattr("site.getuserbase", lambda: str(tmp_path / "user"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(mpi_library, "version", lambda: "")

    def put(folder, says="mpirun (Open MPI) 5.0.11", name="mpirun"):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return str(path)

    return put


def test_the_environments_comes_before_the_users_and_that_before_the_one_on_path(place):
    order = [place("path"), place("user/bin"), place("scripts"), place("beside")]
    assert mpirun.all_here() == order[::-1]
    assert mpirun.find_mpirun() == order[-1]


def test_the_one_of_mpi4pys_mpi_comes_before_all_others(place, monkeypatch):
    beside, path = place("beside"), place("path", "HYDRA build details:", "mpirun.mpich")
    for version, right in ((OPEN_MPI, beside), (MPICH, path), ("", beside)):
        monkeypatch.setattr(mpi_library, "version", lambda version=version: version)
        assert mpirun.find_mpirun() == right


def test_without_one_the_error_is_the_command_to_type(place):
    with pytest.raises(LaunchError) as raised:
        mpirun.find_mpirun()
    assert "no mpirun beside" in str(raised.value)
    assert mpi_library.install_command() in str(raised.value)


def test_what_to_type_to_start_ranks_names_the_right_mpirun_or_how_to_get_it(place):
    place("path", "HYDRA build details:")
    nothing = mpirun.way_to_start(OPEN_MPI, 3)
    assert nothing == f"{mpi_library.install_command()}, then hvd-backup run -np 3 -- …"
    right = place("path", name="mpirun.openmpi")
    assert mpirun.way_to_start(OPEN_MPI, 3).startswith(f"start with {right} -n 3 …")


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("mpirun (Open MPI) 5.0.11\n", launch.OPEN_MPI),
        ("orterun (OpenRTE) 4.1.4\n", launch.OPEN_MPI),
        ("HYDRA build details:\n    Version: 5.0.2\n", launch.HYDRA),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9\n", launch.HYDRA),
        ("prun 1.0", None),
    ],
)
def test_the_kind_of_an_mpirun_is_told_by_its_version(version, kind):
    assert mpirun.parse_kind(version) == kind


def test_an_mpirun_that_cannot_be_run_is_of_no_kind(tmp_path):
    assert mpirun.kind_of(str(tmp_path / "mpirun")) is None
