"""The first call of all may fail to come together, too."""

from launching import run_ranks
from scenarios.told import PROGRAMS, told


def test_a_rank_that_never_calls_init_is_an_error_for_the_others(tmp_path):
    env = {"HVD_BACKUP_TIMEOUT": "1"}
    run = run_ranks(3, PROGRAMS / "init_on_some.py", tmp_path, env=env, timeout=60)
    assert run.returncode != 0, run
    facts = [fact for rank in told(tmp_path, 3) for fact in rank]
    assert facts, run
    for fact in facts:
        assert fact["error"] == "RoundTimeout"
        assert "init(): not all 3 ranks called it within 1 s" in fact["text"]
        assert "call it on every rank, with the same communicator" in fact["text"]
