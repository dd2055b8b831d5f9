"""`hvd-backup run --no-mpi`: what becomes of ranks, however one or the launcher ends."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from launching import run_ranks, start_ranks
from scenarios.told import PROGRAMS, told

PROGRAM = PROGRAMS / "no_mpi.py"


def rendezvous():
    """Folders of launchers."""
    return set(Path(tempfile.gettempdir()).glob("hvd_backup-*"))


def run(folder, way, *, ranks=3, **more):
    return run_ranks(ranks, PROGRAM, folder, way, no_mpi=True, timeout=60, **more)


def nobody_left(ranks, within=5.0):
    deadline = time.monotonic() + within
    while ranks.survivors() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ranks.survivors() == []


def test_ranks_without_mpi4py_and_libmpi_make_a_world(tmp_path):
    before = rendezvous()
    done = run(tmp_path, "work", options=("--prefix",))
    assert done.returncode == 0, done
    expected = {"size": 3, "mean": [1.0] * 5, "libmpi": False}
    for rank, facts in enumerate(told(tmp_path, 3)):
        assert facts[0] | expected | {"rank": rank} == facts[0]
        assert f"[{rank}] pid {rank} " in done.stdout
    assert rendezvous() == before


@pytest.mark.parametrize(
    ("way", "status", "words"),
    [
        ("end_before_init", 7, "rank 1 ended with exit status 7"),
        ("abort_before_init", 134, "rank 1 was killed by signal 6 (SIGABRT)"),
    ],
)
def test_a_rank_that_ends_before_init_ends_the_wait_of_the_others(tmp_path, way, status, words):
    done = run(tmp_path, way)
    assert done.returncode == status, done
    assert f"hvd-backup run: {words}; the others are to end" in done.stderr
    facts = told(tmp_path, 3)
    for rank in (0, 2):
        assert facts[rank][-1]["error"] == "PeerFailed"
        assert "rank 1 ended before a call that all ranks make" in facts[rank][-1]["text"]


@pytest.mark.parametrize("b", [0, 1])
def test_kill_9_makes_the_others_raise_and_is_the_exit_status(tmp_path, b):
    program = PROGRAMS / "end_of_a_rank.py"
    with start_ranks(3, program, tmp_path, "signal", b, no_mpi=True) as ranks:
        pids = ranks.pids()
        while not all(told(tmp_path, 3)):
            time.sleep(0.01)
        os.kill(pids[1], signal.SIGKILL)
        done = ranks.wait(timeout=20)
        nobody_left(ranks)
    assert done.returncode == 137, done
    assert "rank 1 was killed by signal 9 (SIGKILL)" in done.stderr
    facts = told(tmp_path, 3)
    for rank in (0, 2):
        assert facts[rank][-1]["error"] == "PeerFailed"
        assert "rank 1 has died" in facts[rank][-1]["text"]


def test_an_exception_on_one_rank_reaches_the_others_with_its_text(tmp_path):
    program = PROGRAMS / "end_of_a_rank.py"
    done = run_ranks(3, program, tmp_path, "raise", 0, no_mpi=True, timeout=60)
    assert done.returncode == 1, done
    for rank in (0, 2):
        assert 'rank 1 failed with KeyError: "a bug' in told(tmp_path, 3)[rank][-1]["text"]


def test_ranks_that_do_not_heed_the_failure_of_another_are_killed(tmp_path):
    more = {"no_mpi": True, "options": ("--kill-after", "0.2")}
    with start_ranks(3, PROGRAM, tmp_path, "deaf", **more) as ranks:
        ranks.pids()
        while not all(facts and "deaf" in facts[-1] for facts in told(tmp_path, 3)):
            time.sleep(0.01)
        (tmp_path / "fail").touch()
        done = ranks.wait(timeout=20)
        nobody_left(ranks)
    assert done.returncode == 5, done


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signals_to_the_launcher_reach_the_ranks_and_are_the_exit_status(tmp_path, number, status):
    with start_ranks(3, PROGRAM, tmp_path, "stay", no_mpi=True) as ranks:
        ranks.pids()
        while not all(told(tmp_path, 3)):
            time.sleep(0.01)
        ranks.process.send_signal(number)
        done = ranks.wait(timeout=20)
        nobody_left(ranks)
    assert done.returncode == status, done
    errors = [facts[-1].get("error") for facts in told(tmp_path, 3)]
    assert errors == (["KeyboardInterrupt"] * 3 if number == signal.SIGINT else [None] * 3)


def test_other_signals_are_passed_on_and_end_nothing(tmp_path):
    with start_ranks(2, PROGRAM, tmp_path, "usr1", no_mpi=True) as ranks:
        ranks.wait_for("ready", times=2)
        time.sleep(0.1)  # between the word and the pause
        ranks.process.send_signal(signal.SIGUSR1)
        done = ranks.wait(timeout=20)
    assert done.returncode == 0, done
    assert [facts[-1].get("usr1") for facts in told(tmp_path, 2)] == [True, True]


def test_a_launcher_that_is_killed_takes_its_ranks_along(tmp_path):
    with start_ranks(3, PROGRAM, tmp_path, "stay", no_mpi=True) as ranks:
        ranks.pids()
        ranks.process.kill()
        nobody_left(ranks)
    for folder in rendezvous():  # it could not do it itself
        if not any(folder.iterdir()) or (folder / "launcher").is_socket():
            (folder / "launcher").unlink(missing_ok=True)
            folder.rmdir()


def test_several_nodes_need_mpi(tmp_path):
    done = run(tmp_path, "work", env={"HVD_BACKUP_NODE_SIZE": "2"})
    assert done.returncode == 1, done
    for facts in told(tmp_path, 3):
        assert facts[-1]["error"] == "LaunchError"
        assert "HVD_BACKUP_NODE_SIZE=2 makes several nodes of 3 ranks" in facts[-1]["text"]
        assert "start them with mpirun" in facts[-1]["text"]
