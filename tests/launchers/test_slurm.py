"""Under a real Slurm: srun with PMIx, batch scripts, two nodes, and srun without PMIx."""

import shlex
import sys
from pathlib import Path

import pytest
from launchers.told import PROGRAMS, assert_one_world, assert_refused, told
from launching import ROOT

PYTHON = sys.executable
WORLD = PROGRAMS / "world.py"
MULTIPLE = "ok thread level MPI_THREAD_MULTIPLE"
ONE_NODE = ("--nodes=1", "--ntasks=4")
TWO = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2")


def test_srun_with_pmix_makes_one_world(pmix_cluster, tmp_path):
    run = pmix_cluster.srun("--mpi=pmix", *ONE_NODE, PYTHON, WORLD, tmp_path)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 4, "srun", run)


def test_a_batch_script_starts_ranks_with_srun(pmix_cluster, tmp_path):
    command = shlex.join([PYTHON, str(WORLD), str(tmp_path)])
    run = pmix_cluster.sbatch(f"srun --mpi=pmix {command}", *ONE_NODE)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 4, "srun", run)


def test_a_batch_script_starts_ranks_with_mpirun(cluster, open_mpi, tmp_path):
    command = shlex.join([open_mpi, "-n", "4", PYTHON, str(WORLD), str(tmp_path)])
    run = cluster.sbatch(command, *ONE_NODE)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 4, "mpirun (Open MPI)", run)


def test_a_batch_script_itself_is_a_world_of_one(cluster, tmp_path):
    run = cluster.sbatch(shlex.join([PYTHON, str(WORLD), str(tmp_path)]), *ONE_NODE)
    assert run.returncode == 0, str(run)
    (alone,) = told(tmp_path, run)
    assert alone["size"] == 1
    assert alone["launcher"]["launcher"] == "none"


@pytest.mark.parametrize("interface", ["none", "pmi2"])
def test_srun_without_pmix_is_refused_on_every_rank(cluster, tmp_path, interface):
    run = cluster.srun(f"--mpi={interface}", *TWO, PYTHON, WORLD, tmp_path)
    assert_refused(told(tmp_path, run), 4, "srun", "use 'srun --mpi=pmix' (Open MPI)", run)


def test_srun_without_pmix_is_refused_in_a_batch_script(cluster, tmp_path):
    command = shlex.join([PYTHON, str(WORLD), str(tmp_path)])
    run = cluster.sbatch(f"srun {command}", *ONE_NODE)
    assert_refused(told(tmp_path, run), 4, "srun", "or run mpirun inside the allocation", run)


def test_one_task_of_srun_without_pmix_is_a_world_of_one(cluster, tmp_path):
    run = cluster.srun("--ntasks=1", PYTHON, WORLD, tmp_path)
    assert run.returncode == 0, str(run)
    assert [one["size"] for one in told(tmp_path, run)] == [1]


@pytest.mark.parametrize("launcher", ["srun", "mpirun (Open MPI)"])
def test_ranks_on_two_nodes_are_one_world(pmix_cluster, open_mpi, tmp_path, launcher):
    start = "srun --mpi=pmix" if launcher == "srun" else f"{open_mpi} -n 4 --map-by slot"
    run = pmix_cluster.sbatch(f"{start} {shlex.join([PYTHON, str(WORLD), str(tmp_path)])}", *TWO)
    everybody = told(tmp_path, run)
    assert sorted(one["host"] for one in everybody) == ["n0", "n0", "n1", "n1"], str(run)
    assert_one_world(everybody, 4, launcher, run, ranks_per_node=2)


def test_two_nodes_refuse_a_low_thread_level_on_every_rank(pmix_cluster, tmp_path):
    run = pmix_cluster.srun("--mpi=pmix", *TWO, PYTHON, WORLD, tmp_path, "funneled")
    everybody = told(tmp_path, run)
    assert [one["mpi_rank"] for one in everybody] == [0, 1, 2, 3], str(run)
    for one in everybody:
        assert (one["error"], one["thread_level"]) == ("LaunchError", "funneled")
        assert "MPI_THREAD_MULTIPLE" in one["text"]
        assert "mpi4py.rc.thread_level" in one["text"]


def test_srun_starts_ranks_of_mpich_by_pmi2(cluster, other_mpi, tmp_path):
    python = other_mpi("mpich") / "python"
    run = cluster.srun("--mpi=pmi2", *ONE_NODE, python, WORLD, tmp_path)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 4, "srun", run)


def test_srun_without_pmi_is_refused_on_every_rank_of_mpich(cluster, other_mpi, tmp_path):
    python = other_mpi("mpich") / "python"
    run = cluster.srun("--mpi=none", *ONE_NODE, python, WORLD, tmp_path)
    assert_refused(told(tmp_path, run), 4, "srun", "or 'srun --mpi=pmi2' (MPICH)", run)


def test_the_srun_command_of_the_readme_makes_one_world(pmix_cluster, tmp_path):
    """What it trains is tested with the mpirun command beside it."""
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if "srun -n" in line]
    words = shlex.split(line, comments=True)
    script = words.index("python")
    assert words[0] == "srun"
    run = pmix_cluster.srun(*words[1:script], PYTHON, WORLD, tmp_path)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 5, "srun", run)


def test_the_batch_script_of_the_examples_runs(pmix_cluster, tmp_path):
    script = (ROOT / "examples" / "slurm.sbatch").read_text()
    for line, edited in (
        ("source .venv/bin/activate", f"PATH={Path(PYTHON).parent}:$PATH"),
        ("train=(python train.py)", f"train=(python {WORLD} {tmp_path})"),
    ):
        assert f"\n{line}\n" in script
        script = script.replace(line, edited)
    run = pmix_cluster.sbatch(script)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 5, "srun", run)
    assert findings(run) >= {"ok launcher srun, a world of 5 ranks", MULTIPLE}


def test_the_doctor_tells_a_thread_level_that_several_nodes_may_find_too_low(pmix_cluster):
    doctor = (PYTHON, "-m", "hvd_backup.cli", "doctor")
    env = {"MPI4PY_RC_THREAD_LEVEL": "funneled"}
    run = pmix_cluster.srun("--mpi=pmix", "--nodes=1", "--ntasks=2", *doctor, env=env)
    assert run.returncode == 0, str(run)
    (level,) = [line for line in findings(run) if "MPI_THREAD" in line]
    assert level.startswith("todo thread level MPI_THREAD_FUNNELED: ")


def findings(run):
    """The doctor's lines, less their columns."""
    return {" ".join(line.split()) for line in run.stdout.splitlines()}
