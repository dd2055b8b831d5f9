"""Runs the programs in programs/, and reads what their ranks told (programs/facts.py)."""

import json
from pathlib import Path

from launching import Ranks

PROGRAMS = Path(__file__).parent / "programs"


def run_command(*command, env=None, timeout=100):
    """Run the command to its end; nothing that it started is left."""
    with Ranks(1, [str(word) for word in command], env or {}) as started:
        return started.wait(timeout)


def told(folder, run):
    """What each process told, in the order of their ranks in MPI, then of the launcher's."""
    facts = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert facts, str(run)
    return sorted(facts, key=lambda one: (one.get("mpi_rank", 0), one["launcher"]["rank"] or 0))


def assert_one_world(everybody, size, launcher, run, ranks_per_node=None):
    """Every rank was there, knew its place, and got the same bits; `launcher` promised the same.

    Nodes have the first ranks, the next ranks, and so on.
    """
    ranks_per_node = ranks_per_node or size
    assert all("error" not in one for one in everybody), str(run)
    assert [one["rank"] for one in everybody] == list(range(size)), str(run)
    for one in everybody:
        promised = one["launcher"]
        assert one["size"] == one["mpi_size"] == size
        assert one["local_size"] == ranks_per_node
        assert one["rank"] == one["mpi_rank"] == promised["rank"]
        assert one["local_rank"] == one["rank"] % ranks_per_node
        assert (promised["launcher"], promised["size"]) == (launcher, size)
        assert promised["local_size"] == ranks_per_node
        assert one["sum"] == sum(range(1, size + 1))
        assert one["contributors"] == size - 1
    # Open MPI's mpirun numbers a node's ranks as it maps them, not always in ascending order.
    assert {one["launcher"]["local_rank"] for one in everybody} == set(range(ranks_per_node))
    assert len({one["mean"] for one in everybody}) == 1


def assert_refused(everybody, size, launcher, words, run):
    """Every process has raised LaunchError with `words` in it, and none had joined a world."""
    assert len(everybody) == size, str(run)
    assert sorted(one["launcher"]["rank"] for one in everybody) == list(range(size))
    for one in everybody:
        assert one["error"] == "LaunchError", str(run)
        assert one["text"].startswith(f"{launcher} started {size} processes, but ")
        assert words in one["text"]
