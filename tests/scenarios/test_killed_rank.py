"""A rank that ends too early, whatever the way."""

import os
import re
import signal
import time

import pytest
from launching import start_ranks
from scenarios.told import PROGRAMS, shared_memory, told

pytestmark = pytest.mark.timed

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
        assert_nobody_survives(ranks)
    assert run.returncode != 0, str(run)
    assert seconds < 10, str(run)
    return [rank[-1] for rank in told(folder, 3)]


def assert_nobody_survives(ranks):
    deadline = time.monotonic() + 5
    while ranks.survivors() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ranks.survivors() == []


def kill_one(folder, ranks, program, victim, *args, env):
    """What the ranks told when one of them had been killed amid their steps, and when that was."""
    with start_ranks(ranks, PROGRAMS / program, folder, *args, env=env) as running:
        pids = running.pids()
        while not all(told(folder, ranks)):
            time.sleep(0.01)
        os.kill(pids[victim], signal.SIGKILL)
        killed_at = time.monotonic()
        running.wait(timeout=30)
        assert_nobody_survives(running)
    return told(folder, ranks), killed_at


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


def test_a_death_that_is_seen_in_a_barrier_names_the_last_round_in_one_text(tmp_path):
    facts = run_until_the_end(tmp_path, "os._exit in a barrier", 0)
    (text,) = {facts[rank]["text"] for rank in (0, 2)}
    assert re.match(
        r"rank 1 has died, without shutdown\(\): rank [02] saw it at \d\d:\d\d:\d\d, in barrier\(\)"
        r"\. The last round of .+ that all ranks are known to have completed is round 299\. What ",
        text,
    ), text
    assert text.endswith("start again from the last checkpoint")


@pytest.mark.parametrize("b", [0, 1])
def test_an_exception_on_one_rank_reaches_the_others_with_its_text(tmp_path, b):
    facts = run_until_the_end(tmp_path, "raise", b)
    assert facts[1]["error"] == "KeyError"
    for rank in (0, 2):
        assert facts[rank]["error"] == "PeerFailed"
        assert "rank 1 failed with KeyError" in facts[rank]["text"]
        assert "a bug in the user's code" in facts[rank]["text"]
        when = (
            r" \(at \d\d:\d\d:\d\d; the last round of .+ that all ranks are known to have "
            r"completed is round (2\d\d)\); what rank 1 printed says why; then start again "
            r"from the last checkpoint"
        )
        assert re.search(when, facts[rank]["text"]), facts[rank]["text"]


def test_sys_exit_on_one_rank_makes_the_others_raise(tmp_path):
    facts = run_until_the_end(tmp_path, "sys.exit", 0)
    assert facts[1]["error"] == "SystemExit"
    for rank in (0, 2):
        assert facts[rank]["error"] == "PeerFailed"
        assert "rank 1 has left" in facts[rank]["text"]
        assert "same number of steps" in facts[rank]["text"]


@pytest.mark.parametrize("no_mpi", [False, True])
def test_every_rank_prints_one_traceback_that_names_the_dead_rank_once(tmp_path, no_mpi):
    with start_ranks(3, PROGRAM, tmp_path, "signal", 0, no_mpi=no_mpi) as ranks:
        pids = ranks.pids()
        while not all(told(tmp_path, 3)):
            time.sleep(0.01)
        os.kill(pids[1], signal.SIGKILL)
        run = ranks.wait(timeout=20)
    texts = {told(tmp_path, 3)[rank][-1]["text"] for rank in (0, 2)}
    assert len(texts) == 1, str(run)  # by whoever saw it first
    (text,) = texts
    assert re.match(
        r"rank 1 has died, without shutdown\(\): rank [02] saw it at \d\d:\d\d:\d\d", text
    )
    assert re.search(r"all ranks are known to have completed is round (299|\d\d\d+)\. ", text)
    assert "During handling of the above exception" not in run.stderr
    assert "failed" not in text
    printed = run.stderr.count("PeerFailed: rank 1 has died")
    assert run.stderr.count("Traceback") == printed <= 2, str(run)


@pytest.mark.parametrize("b", [0, 1])
def test_kill_9_while_all_map_the_ranks_device_memory_is_told_by_name(tmp_path, b):
    before = shared_memory()
    env = {"HVD_BACKUP_DEVICE_PATH": "mapped"}
    facts, killed_at = kill_one(tmp_path, 3, "killed_mapped.py", 1, b, env=env)
    for rank in (0, 2):
        assert facts[rank][0]["mapped"] == 30
        assert facts[rank][-1]["error"] == "PeerFailed", facts
        assert "rank 1 has died" in facts[rank][-1]["text"], facts
        assert facts[rank][-1]["at"] - killed_at < 5
    assert shared_memory() <= before


@pytest.mark.parametrize("node_size", [None, "2"])
def test_kill_9_in_a_process_set_is_a_failure_of_the_world(tmp_path, node_size):
    env = {"HVD_BACKUP_NODE_SIZE": node_size, "PRTE_MCA_state_base_recoverable": "1"}
    facts, killed_at = kill_one(tmp_path, 4, "rounds_of_sets.py", 3, env=env)
    for rank in (0, 1, 2):
        last = facts[rank][-1]
        assert last["error"] == "PeerFailed", facts
        assert "in the process set of ranks 1, 3, counted from 0" in last["text"], facts
        assert "rank 1 has died" in last["text"], facts
        assert last["at"] - killed_at < 5
