"""An exception of the user's signal handler, caught by him, in a wait for the other ranks."""

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told

pytestmark = pytest.mark.timed

AGAIN = "all ranks: shutdown(), then init(), to go on"


def run(folder, call, way, node_size=None, *, no_mpi=False):
    """What each rank told of the errors of its two calls."""
    env = {"HVD_BACKUP_NODE_SIZE": node_size, "HVD_BACKUP_TIMEOUT": "60"}
    program = PROGRAMS / "interrupted.py"
    run = run_ranks(3, program, folder, call, way, env=env, timeout=90, no_mpi=no_mpi)
    assert all(told(folder, 3)), str(run)
    return told(folder, 3)


@pytest.mark.parametrize(
    ("call", "way", "node_size", "no_mpi"),
    [
        ("partial_allreduce", "TimeLimit", None, False),
        ("partial_allreduce", "ValueError", None, True),
        ("partial_allreduce", "SystemExit", "2", False),
        ("large", "TimeLimit", None, False),
        ("allgather_object", "TimeLimit", None, False),
        ("allgather_object", "SystemExit", "1", False),
        ("allgather_object", "ValueError", None, True),
    ],
)
def test_it_is_told_to_all_at_once_and_the_next_call_says_that_the_round_was_interrupted(
    tmp_path, call, way, node_size, no_mpi
):
    interrupted, slow, waiting = run(tmp_path, call, way, node_size, no_mpi=no_mpi)
    text = "7" if way == "SystemExit" else "too slow"
    assert interrupted[0]["error"] == way
    assert interrupted[0]["text"] == text
    assert interrupted[1]["error"] == "Error"
    assert f"rank 0: an earlier call was ended by {way}: {text}" in interrupted[1]["text"]
    assert "cannot be taken up again" in interrupted[1]["text"]
    assert AGAIN in interrupted[1]["text"]
    assert [facts["error"] for facts in waiting] == ["PeerFailed", "PeerFailed"]
    assert waiting[0]["text"].startswith(f"rank 0 failed with {way}: {text}")
    assert AGAIN in waiting[1]["text"]
    assert waiting[0]["waited"] < 10
    # The rank that came last may have completed the round: all contributions were there.
    assert slow[-1]["error"] == "PeerFailed"
    assert f"rank 0 failed with {way}: {text}" in slow[-1]["text"]
