"""SIGINT, to all and to one."""

import os
import signal
import time

import pytest
from launching import start_ranks
from scenarios.told import PROGRAMS, told

pytestmark = pytest.mark.timed

PROGRAM = PROGRAMS / "end_of_a_rank.py"


def interrupt(folder, way, b, whom):
    """Sends SIGINT once all run; returns what the ranks told."""
    with start_ranks(3, PROGRAM, folder, way, b) as ranks:
        pids = ranks.pids()
        while not all(told(folder, 3)):
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(whom(ranks, pids), signal.SIGINT)
        sent = time.monotonic()
        run = ranks.wait(timeout=20)
        assert time.monotonic() - sent < 8, str(run)
        while ranks.survivors() and time.monotonic() - sent < 10:
            time.sleep(0.05)
        assert ranks.survivors() == []
    assert run.returncode != 0, str(run)
    return [{**rank[-1], "sent": sent} for rank in told(folder, 3)]


@pytest.mark.parametrize("way", ["signal", "pause"])
def test_ctrl_c_on_mpirun_ends_everything(tmp_path, way):
    interrupt(tmp_path, way, 0, lambda ranks, pids: ranks.process.pid)


def test_an_interrupted_rank_that_waits_stops_waiting(tmp_path):
    facts = interrupt(tmp_path, "pause", 0, lambda ranks, pids: pids[0])
    assert facts[0]["error"] == "KeyboardInterrupt"
    assert facts[0]["at"] - facts[0]["sent"] < 2


@pytest.mark.parametrize("b", [0, 1])
def test_an_interrupted_rank_that_works_ends_the_others(tmp_path, b):
    facts = interrupt(tmp_path, "signal", b, lambda ranks, pids: pids[0])
    assert facts[0]["error"] == "KeyboardInterrupt"
    for rank in (1, 2):
        assert "rank 0 failed with KeyboardInterrupt" in facts[rank]["text"]
