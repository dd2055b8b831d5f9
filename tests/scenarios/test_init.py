"""The first call of all may fail to come together, too."""

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told


def test_a_rank_that_never_calls_init_is_an_error_for_the_others(tmp_path):
    env = {"HVD_BACKUP_TIMEOUT": "1"}
    run = run_ranks(3, PROGRAMS / "init_on_some.py", tmp_path, env=env, timeout=60)
    assert run.returncode != 0, str(run)
    facts = [fact for rank in told(tmp_path, 3) for fact in rank]
    assert facts, str(run)
    for fact in facts:
        assert fact["error"] == "RoundTimeout"
        assert "init(): not all 3 ranks called it within 1 s" in fact["text"]
        assert "call it on every rank, with the same communicator" in fact["text"]


def refusals(folder, *settings):
    """What the ranks of a world of three say to settings that not all of them have."""
    run = run_ranks(3, PROGRAMS / "own_settings.py", folder, *settings, timeout=60)
    assert run.returncode != 0, str(run)
    facts = [fact for rank in told(folder, 3) for fact in rank]
    assert len(facts) == 3, str(run)
    return facts


@pytest.mark.parametrize("rank", [0, 2])
def test_nodes_that_only_some_ranks_split_are_refused_on_every_rank(tmp_path, rank):
    for fact in refusals(tmp_path, f"{rank}=HVD_BACKUP_NODE_SIZE=2"):
        assert fact["error"] == "LaunchError"
        assert f"rank {rank}: HVD_BACKUP_NODE_SIZE=2" in fact["text"]
        assert "-x NAME" in fact["text"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_setting_that_one_rank_cannot_read_is_refused_on_every_rank(tmp_path, rank):
    for fact in refusals(tmp_path, f"{rank}=HVD_BACKUP_WORKERS=x"):
        assert fact["error"] == "ValueError"
        assert fact["text"] == f"rank {rank}: HVD_BACKUP_WORKERS='x' is not a whole number"
