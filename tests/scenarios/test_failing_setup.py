"""A rank that fails amid a set-up: the others raise at once, wherever it is, and all end."""

import time

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told

pytestmark = pytest.mark.timed

EVERYWHERE = [
    *("segment of the board", "board", "reads", "spin_limits"),
    *("arena", "segment of an arena", "collective"),
]
BETWEEN_NODES = ["doorbell", "data", "service", "serve"]


def fail(folder, ranks, who, point, way, **how):
    began = time.monotonic()
    options = [] if "HVD_BACKUP_NODE_SIZE" in how.get("env", {}) else ["--one-node"]
    program = PROGRAMS / "fails_in_setup.py"
    run = run_ranks(ranks, program, folder, who, point, way, *options, timeout=60, **how)
    assert time.monotonic() - began < 40, str(run)
    facts = [mine[-1] for mine in told(folder, ranks)]
    for rank, last in enumerate(facts):
        assert "error" in last, str(run)
        if rank != who:
            assert last["error"] in ("Error", "LaunchError", "PeerFailed"), facts
            assert f"rank {who}" in last["text"], facts
    first = min(last["at"] for last in facts)
    assert max(last["at"] for last in facts) - first < 10, facts
    if way == "memory":
        assert all("no memory left" in last["text"] for last in facts), facts
    if way == "ctrl-c":
        assert facts[who]["error"] == "KeyboardInterrupt"


# Ctrl-C comes anywhere; the others are an error of the system, and one that no code expects.
WAYS = [(point, "memory") for point in EVERYWHERE]
WAYS += [(point, way) for point in ("board", "arena") for way in ("error", "ctrl-c")]


@pytest.mark.parametrize(("point", "way"), WAYS)
def test_on_one_node_a_failing_set_up_is_raised_by_all(tmp_path, point, way):
    fail(tmp_path, 3, 1, point, way)


@pytest.mark.parametrize("point", EVERYWHERE + BETWEEN_NODES)
def test_between_nodes_a_failing_set_up_is_raised_by_all(tmp_path, point):
    fail(tmp_path, 4, 2, point, "memory", env={"HVD_BACKUP_NODE_SIZE": "2"})


@pytest.mark.parametrize("point", ["service", "serve"])
def test_ctrl_c_between_nodes_amid_a_set_up_is_raised_by_all(tmp_path, point):
    fail(tmp_path, 4, 2, point, "ctrl-c", env={"HVD_BACKUP_NODE_SIZE": "2"})


@pytest.mark.parametrize("point", ["segment of the board", "service", "arena"])
def test_a_failing_set_up_of_rank_0_is_raised_by_all(tmp_path, point):
    fail(tmp_path, 4, 0, point, "memory", env={"HVD_BACKUP_NODE_SIZE": "2"})


@pytest.mark.parametrize("point", ["segment of the board", "spin_limits", "arena"])
def test_without_mpi_a_failing_set_up_is_raised_by_all(tmp_path, point):
    fail(tmp_path, 3, 1, point, "memory", no_mpi=True)
