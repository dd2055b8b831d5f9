"""horovodrun of a real Horovod, and a program that uses Horovod and hvd_backup together."""

import sys
from pathlib import Path

import pytest
from launchers.told import PROGRAMS, assert_one_world, assert_refused, run_command, told

# Horovod's ranks wait without sleeping: slow, where there are more of them than free cores.
pytestmark = pytest.mark.timeout(240)
# What Horovod hands on to Open MPI 4 means something else to Open MPI 5.
ANY_CORE = "--binding-args=--bind-to none --map-by slot:oversubscribe"
WORLD = PROGRAMS / "world.py"


def horovodrun(env, *words):
    script = Path(env["PYTHONPATH"]) / "bin" / "horovodrun"
    return run_command(sys.executable, script, "-np", 3, *words, env=env, timeout=200)


@pytest.mark.parametrize(
    ("options", "launcher"),
    # Horovod's options reach the ranks as HOROVOD_…; without any, only mpirun is to be seen.
    [((), "mpirun (Open MPI)"), (("--cycle-time-ms", 1), "horovodrun --mpi")],
    ids=["plain", "with an option"],
)
def test_horovodrun_with_mpi_makes_one_world(horovod, tmp_path, options, launcher):
    run = horovodrun(horovod, "--mpi", ANY_CORE, *options, sys.executable, WORLD, tmp_path)
    assert run.returncode == 0, str(run)
    assert_one_world(told(tmp_path, run), 3, launcher, run)


def test_horovodrun_with_gloo_is_refused_on_every_rank(horovod, tmp_path):
    run = horovodrun(horovod, "--gloo", sys.executable, WORLD, tmp_path)
    assert_refused(
        told(tmp_path, run), 3, "horovodrun --gloo", "use 'horovodrun --mpi' or 'mpirun -n 3", run
    )


@pytest.mark.parametrize("first", ["horovod", "hvd_backup"])
def test_our_optimizer_trains_beside_horovods_broadcast_and_averages(horovod, tmp_path, first):
    program = PROGRAMS / "beside_horovod.py"
    run = horovodrun(horovod, "--mpi", ANY_CORE, sys.executable, program, tmp_path, first)
    assert run.returncode == 0, str(run)
    everybody = told(tmp_path, run)
    assert [one["rank"] for one in everybody] == [0, 1, 2], str(run)
    for one in everybody:
        assert one["ours"] == one["horovod"]
        assert one["thread_level"] == "multiple"
        for backups in ("0", "1"):
            assert one["trained"][backups]["rounds"] == 12
            # The same bits on every rank, by mpi4py's word and by Horovod's.
            assert len(set(one["trained"][backups]["digests"])) == 1
            assert len(one["trained"][backups]["digests"]) == 6
            assert one["trained"][backups]["losses"] == everybody[0]["trained"][backups]["losses"]
    all_in, not_all_in = (everybody[2]["trained"][backups] for backups in ("0", "1"))
    # The same training, but for the order of Horovod's sums.
    assert all_in["late"] == 0
    assert all_in["away_from_horovod"] < 1e-5
    assert all_in["losses"] == pytest.approx(everybody[2]["their_losses"], abs=1e-5)
    assert not_all_in["late"] >= 6  # the straggler; more would make a busy machine fail the test
    assert not_all_in["away_from_horovod"] > 1e-5


def test_the_doctor_finds_that_horovod_has_the_same_libmpi(horovod):
    run = run_command(sys.executable, "-m", "hvd_backup.cli", "doctor", env=horovod)
    assert run.returncode == 0, str(run)
    (line,) = [line for line in run.stdout.splitlines() if " horovod " in line]
    assert "0.28.1, built with mpi, gloo; the same libmpi as mpi4py" in line
