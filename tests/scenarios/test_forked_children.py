"""Processes that a rank has forked hide nothing of its end, and change nothing of its state."""

import os
import re
import signal
import time

import pytest
from launching import start_ranks
from scenarios.told import PROGRAMS, told

pytestmark = pytest.mark.timed


def kill_a_parent(folder, ranks, who, **how):
    """What the ranks told, and when the one that has a child was killed."""
    program = PROGRAMS / "killed_with_a_child.py"

    def is_running():
        facts = told(folder, ranks)
        here = all(any("running" in fact for fact in rank) for rank in facts)
        return here and any("child" in fact for fact in facts[who])

    with start_ranks(ranks, program, folder, who, **how) as running:
        pids = running.pids()
        while not is_running():
            time.sleep(0.01)
        os.kill(pids[who], signal.SIGKILL)
        killed_at = time.monotonic()
        others = [rank for rank in range(ranks) if rank != who]
        deadline = killed_at + 20
        while time.monotonic() < deadline:
            if all("error" in told(folder, ranks)[rank][-1] for rank in others):
                break
            time.sleep(0.05)
        (folder / "over").touch()
        running.wait(timeout=30)
    return told(folder, ranks), killed_at


def assert_named(facts, killed_at, who, within=5):
    for rank, mine in enumerate(facts):
        if rank == who:
            continue
        last = mine[-1]
        assert last.get("error") == "PeerFailed", facts
        # With the process of its service a whole node is gone.
        dead = rf"ranks? [\d, ]*\b{who}\b[\d, ]* ha|the process of rank {who}"
        assert re.search(dead, last["text"]), facts
        assert last["at"] - killed_at < within


# Rank 0's process has the coordinator, rank 2's its node's service; rank 3's neither.
@pytest.mark.parametrize("who", [0, 2, 3])
def test_a_child_of_a_killed_rank_does_not_hide_its_death_from_other_nodes(tmp_path, who):
    env = {"HVD_BACKUP_NODE_SIZE": "2", "PRTE_MCA_state_base_recoverable": "1"}
    facts, killed_at = kill_a_parent(tmp_path, 4, who, env=env)
    assert_named(facts, killed_at, who)


@pytest.mark.parametrize("no_mpi", [False, True])
def test_a_child_of_a_killed_rank_does_not_hide_its_death_on_its_node(tmp_path, no_mpi):
    facts, killed_at = kill_a_parent(tmp_path, 3, 1, no_mpi=no_mpi)
    assert_named(facts, killed_at, 1)


def test_a_child_may_ask_who_its_parent_is_and_make_no_call(tmp_path):
    facts, _ = kill_a_parent(tmp_path, 2, 0)
    child = next(fact["child"] for fact in facts[0] if "child" in fact)
    assert (child["rank"], child["size"]) == (0, 2)
    for refused in (child["round"], child["call"]):
        assert "this process was forked from rank 0, and is no rank itself" in refused
