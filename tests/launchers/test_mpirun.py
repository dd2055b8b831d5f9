"""mpirun of several MPIs, and launchers that make no MPI world of what they start."""

import sys
from pathlib import Path

import pytest
from launchers.told import PROGRAMS, assert_one_world, assert_refused, run_command, told

WORLD = PROGRAMS / "world.py"
HYDRA = "mpirun (MPICH/hydra)"


def test_mpirun_makes_one_world(open_mpi, tmp_path):
    run = run_command(open_mpi, "-n", 4, sys.executable, WORLD, tmp_path)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 4, "mpirun (Open MPI)", run)


@pytest.mark.parametrize("level", ["single", "funneled", "serialized", "multiple"])
def test_one_node_needs_no_thread_level(open_mpi, tmp_path, level):
    run = run_command(open_mpi, "-n", 3, sys.executable, WORLD, tmp_path, level)
    assert run.returncode == 0, str(run)
    everybody = told(tmp_path, run)
    assert_one_world(everybody, 3, "mpirun (Open MPI)", run)
    assert {one["thread_level"] for one in everybody} == {level}


def test_torchrun_is_refused_on_every_rank(tmp_path):
    torchrun = Path(sys.executable).with_name("torchrun")
    run = run_command(torchrun, "--standalone", "--nproc-per-node", 3, WORLD, tmp_path)
    assert_refused(told(tmp_path, run), 3, "torchrun", "use 'mpirun -n 3 python", run)


@pytest.mark.parametrize(
    ("name", "launcher"),
    [("mpich", HYDRA), ("debian-mpich", HYDRA), ("debian-openmpi", "mpirun (Open MPI)")],
)
def test_mpirun_of_another_mpi_makes_one_world(other_mpi, tmp_path, name, launcher):
    commands = other_mpi(name)
    run = run_command(commands / "mpirun", "-n", 4, commands / "python", WORLD, tmp_path)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 4, launcher, run)


@pytest.mark.parametrize("name", ["mpich", "debian-mpich", "debian-openmpi"])
def test_one_build_moves_data_between_nodes_by_any_mpi(other_mpi, tmp_path, name):
    commands = other_mpi(name)
    env = {"HVD_BACKUP_NODE_SIZE": "2"}
    run = run_command(commands / "mpirun", "-n", 4, commands / "python", WORLD, tmp_path, env=env)
    assert run.returncode == 0, str(run)
    everybody = told(tmp_path, run)
    assert {one["local_size"] for one in everybody} == {2}
    assert len({one["mean"] for one in everybody}) == 1
    assert {one["contributors"] for one in everybody} == {3}


@pytest.mark.parametrize("name", ["mpich", "debian-mpich"])
def test_mpirun_of_mpich_is_refused_on_ranks_of_open_mpi(open_mpi, other_mpi, tmp_path, name):
    run = run_command(other_mpi(name) / "mpirun", "-n", 3, sys.executable, WORLD, tmp_path)
    assert_refused(told(tmp_path, run), 3, HYDRA, "and mpi4py has loaded another MPI", run)


@pytest.mark.parametrize("name", ["mpich", "debian-mpich"])
def test_mpirun_of_open_mpi_is_refused_on_ranks_of_mpich(open_mpi, other_mpi, tmp_path, name):
    run = run_command(open_mpi, "-n", 3, other_mpi(name) / "python", WORLD, tmp_path)
    everybody = told(tmp_path, run)
    words = "this mpirun belongs to Open MPI, and mpi4py has loaded another MPI; start with "
    assert_refused(everybody, 3, "mpirun (Open MPI)", words, run)
    # Before MPI_Init, in which some versions of MPICH abort here.
    assert all("the MPI of this one is MPICH Version" in one["text"] for one in everybody)
