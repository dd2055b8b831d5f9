"""`hvd-backup doctor` and `run`, with real ranks."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from launching import ROOT, Ranks, run_ranks
from scenarios.told import PROGRAMS

from hvd_backup.cluster.templates import Kind, template

CLI = [sys.executable, "-m", "hvd_backup.cli"]
STARTED = str(PROGRAMS / "started.py")
# A test of ours may be started with these.
ENV = {"NO_COLOR": "1", "OMP_NUM_THREADS": None, "HVD_BACKUP_WORKERS": None}


def lines(printed):
    """The doctor's lines: name -> status and text."""
    split = [line.split(None, 2) for line in printed.replace("\r", "").splitlines()]
    assert len({name for _, name, _ in split}) == len(split), printed  # printed once
    return {name: (status, text) for status, name, text in split}


def start(*arguments, ranks=2):
    return Ranks(ranks, [*CLI, "run", "-np", str(ranks), *arguments], {**ENV, "MINE": "a b"})


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Frameworks that fail at once, for the doctor: the real ones take seconds to import."""
    for name in ("torch", "tensorflow", "keras"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not in this test')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_doctor_speaks_once_for_all_ranks_of_mpirun(ranks, quick):
    env = {**ENV, "OMP_NUM_THREADS": "1"}
    run = run_ranks(ranks, "hvd_backup.cli", "doctor", python=("-m",), env=env)
    assert run.returncode == 0, str(run)
    found = lines(run.stdout)
    assert found["launcher"][1].endswith(f"a world of {ranks} rank{'s' * (ranks > 1)}"), str(run)
    assert found["ranks"][1].startswith(f"{ranks} per node, 1 node ("), str(run)
    assert found["exchange"][0] in ("ok", "todo"), str(run)
    assert f"a partial all-reduce of {ranks} rank" in found["exchange"][1], str(run)
    assert found["OMP_NUM_THREADS"] == ("ok", "1"), str(run)
    assert found["torch"] == ("todo", "import fails: ImportError: not in this test"), str(run)


def test_the_doctor_counts_nodes_as_init_makes_them_and_names_settings(quick):
    env = {**ENV, "OMP_NUM_THREADS": "1", "HVD_BACKUP_NODE_SIZE": "2", "HVD_BACKUP_WINDOW": "8"}
    # Some launchers glue together the lines of ranks that write without a buffer.
    env["PYTHONUNBUFFERED"] = "1"
    run = run_ranks(3, "hvd_backup.cli", "doctor", python=("-m",), env=env)
    assert run.returncode == 0, str(run)
    found = lines(run.stdout)
    nodes = "1 to 2 per node, 2 nodes by HVD_BACKUP_NODE_SIZE=2 on 1 host ("
    assert found["ranks"][1].startswith(nodes), str(run)
    assert found["settings"] == ("ok", "HVD_BACKUP_NODE_SIZE=2, HVD_BACKUP_WINDOW=8"), str(run)
    assert "a partial all-reduce of 3 ranks" in found["exchange"][1], str(run)


def test_the_doctor_speaks_once_for_all_ranks_without_mpi(quick):
    env = {**ENV, "OMP_NUM_THREADS": "1"}
    run = run_ranks(3, "hvd_backup.cli", "doctor", python=("-m",), env=env, no_mpi=True)
    assert run.returncode == 0, str(run)
    found = lines(run.stdout)
    assert found["MPI"] == ("-", "not used under hvd-backup run --no-mpi")
    assert found["launcher"] == ("ok", "hvd-backup run --no-mpi, a world of 3 ranks"), str(run)
    assert found["ranks"][1].startswith("3 per node, 1 node ("), str(run)
    assert "a partial all-reduce of 3 ranks works" in found["exchange"][1], str(run)
    assert found["torch"] == ("todo", "import fails: ImportError: not in this test"), str(run)


def test_outside_of_mpirun_the_doctor_starts_ranks_to_see_what_they_see(quick):
    (quick / "torch.py").unlink()
    command = [*CLI, "doctor", "-np", "3"]
    env = {name: value for name, value in os.environ.items() if name not in ENV} | {"NO_COLOR": "1"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = lines(run.stdout)
    assert found["launcher"][0] == "ok"
    assert found["launcher"][1].endswith("mpirun -np 3 makes a world of 3 ranks")
    assert found["ranks"][1].startswith("3 per node")
    assert found["torch"][0] == "ok"


def test_a_probe_of_mpi_that_hangs_ends_and_takes_its_ranks_along(tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("import time; time.sleep(600)")
    command = [*CLI, "doctor", "--timeout", "1"]
    with Ranks(1, command, {**ENV, "PYTHONPATH": f"{tmp_path}:{ROOT}"}) as started:
        run = started.wait(60)
        assert run.returncode == 1, str(run)
        assert "no answer within 1 s" in lines(run.stdout)["MPI"][1], str(run)
        assert started.survivors() == []


def test_run_starts_ranks_that_know_what_they_must():
    with start("-b", "1", "-x", "MINE", sys.executable, STARTED, "0") as ranks:
        run = ranks.wait(60)
    assert run.returncode == 0, str(run)
    printed = run.stdout.replace("\r", "")
    for rank in (0, 1):
        assert f"rank {rank} of 2: 1 1 a b\n" in printed, str(run)
    command = shlex.split(run.stderr.splitlines()[0])
    assert command[1:3] == ["-np", "2"]
    assert command[-3:] == [sys.executable, STARTED, "0"]


def test_the_exit_status_of_run_is_that_of_mpirun():
    with start(sys.executable, STARTED, "7") as ranks:
        assert ranks.wait(60).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_run_and_all_ranks(number):
    with start(sys.executable, STARTED, "wait") as ranks:
        ranks.pids()
        ranks.process.send_signal(number)
        run = ranks.wait(30)
        assert run.returncode != 0, str(run)
        deadline = time.monotonic() + 10
        while ranks.survivors() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ranks.survivors() == []


def test_the_script_for_mpirun_runs_once_it_is_edited(tmp_path, quick):
    script = template(Kind.MPIRUN)
    for old, new in (
        ("hosts=localhost:5", "hosts=localhost:2"),
        ("train=(python train.py)", f"train=({sys.executable} {STARTED} 0)"),
    ):
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "run_hosts.sh").write_text(script)
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # noqa: PTH120
    with Ranks(2, ["bash", str(tmp_path / "run_hosts.sh")], {**ENV, "PATH": path}) as ranks:
        run = ranks.wait(120)
    assert run.returncode == 0, str(run)
    assert "a world of 2 ranks" in run.stdout, str(run)
    assert run.stdout.count(" of 2: 1 1 None") == 2, str(run)
