"""A rank that ends too early, whatever the way."""

import os
import signal
import time

import pytest
from launching import start_ranks
from scenarios.told import PROGRAMS, shared_memory, told

PROGRAM = PROGRAMS / "end_of_a_rank.py"


def run_until_the_end(folder, way, b, then=lambda pids: None):
    """What the ranks told, and mpirun's end; `then` happens once all are running."""
    with start_ranks(3, PROGRAM, folder, way, b) as ranks:
        pids = ranks.pids()
        while not all(told(folder, 3)):
            time.sleep(0.01)
        then(pids)
        began = time.monotonic()
        run = ranks.wait(timeout=20)
        seconds = time.monotonic() - began
        deadline = time.monotonic() + 5
        while ranks.survivors() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ranks.survivors() == []
    assert run.returncode != 0, run
    assert seconds < 10, run
    return [rank[-1] for rank in told(folder, 3)]


@pytest.mark.parametrize("b", [0, 1])
def test_kill_9_makes_the_others_raise_and_leaves_no_shared_memory(tmp_path, b):
    before = shared_memory()
    killed_at = []

    def kill(pids):
        killed_at.append(time.monotonic())
        os.kill(pids[1], signal.SIGKILL)

    facts = run_until_the_end(tmp_path, "signal", b, kill)
    for rank in (0, 2):
        assert facts[rank]["error"] == "PeerFailed"
        assert "rank 1 has died" in facts[rank]["text"]  # whoever saw it first
        assert "start again from the last checkpoint" in facts[rank]["text"]
        assert facts[rank]["at"] - killed_at[0] < 3
    assert shared_memory() <= before


def test_os_exit_is_like_a_kill(tmp_path):
    facts = run_until_the_end(tmp_path, "os._exit", 0)
    for rank in (0, 2):
        assert facts[rank]["error"] == "PeerFailed"
        assert "rank 1 has died" in facts[rank]["text"]


@pytest.mark.parametrize("b", [0, 1])
def test_an_exception_on_one_rank_reaches_the_others_with_its_text(tmp_path, b):
    facts = run_until_the_end(tmp_path, "raise", b)
    assert facts[1]["error"] == "KeyError"
    for rank in (0, 2):
        assert facts[rank]["error"] == "PeerFailed"
        assert "rank 1 failed with KeyError" in facts[rank]["text"]
        assert "a bug in the user's code" in facts[rank]["text"]


def test_sys_exit_on_one_rank_makes_the_others_raise(tmp_path):
    facts = run_until_the_end(tmp_path, "sys.exit", 0)
    assert facts[1]["error"] == "SystemExit"
    for rank in (0, 2):
        assert facts[rank]["error"] == "PeerFailed"
        assert "rank 1 has left" in facts[rank]["text"]
        assert "same number of steps" in facts[rank]["text"]
