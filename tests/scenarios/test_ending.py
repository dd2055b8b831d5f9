"""The end of a job in which a rank has failed: every process ends, and not before it need be."""

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told

NODES = pytest.mark.parametrize("node_size", ["", "2"], ids=["one node", "two nodes"])


@pytest.mark.parametrize("way", [[], ["shutdown"]], ids=["uncaught", "shutdown"])
@NODES
def test_the_job_ends_after_a_time_out_though_one_rank_hangs(tmp_path, node_size, way):
    env = {"HVD_BACKUP_NODE_SIZE": node_size}
    run = run_ranks(3, PROGRAMS / "hung_rank.py", tmp_path, *way, env=env, timeout=60)
    assert run.returncode != 0, str(run)
    ranks = told(tmp_path, 3)
    for rank in (0, 1):
        assert "missing rank 2" in ranks[rank][0]["text"], str(run)
    # Who has caught the error is told why the status is 1 all the same.
    said = "rank 2 has not left after the failure; see whether" in run.stderr
    assert said == bool(way), str(run)


@NODES
def test_a_rank_that_failed_does_not_end_the_others_before_they_hear_of_it(tmp_path, node_size):
    env = {"HVD_BACKUP_NODE_SIZE": node_size}
    run = run_ranks(3, PROGRAMS / "slow_to_hear.py", tmp_path, env=env, timeout=60)
    assert run.returncode != 0, str(run)
    ranks = told(tmp_path, 3)
    for rank in (0, 1):
        assert 'rank 2 failed with KeyError: "a bug' in ranks[rank][0]["text"], str(run)


def test_a_rank_that_was_killed_does_not_end_its_node_before_the_others_have_saved(tmp_path):
    env = {"PRTE_MCA_state_base_recoverable": "1"}
    run = run_ranks(3, PROGRAMS / "slow_to_save.py", tmp_path, env=env, timeout=60)
    assert run.returncode != 0, str(run)
    ranks = told(tmp_path, 3)
    for rank in (0, 2):
        assert "rank 1 has died" in ranks[rank][0]["text"], str(run)
