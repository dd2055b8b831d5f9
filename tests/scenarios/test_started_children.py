"""Processes that a rank starts, and that call init() themselves."""

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told


@pytest.mark.parametrize("no_mpi", [False, True])
def test_a_child_of_a_rank_is_refused_and_a_job_that_it_starts_is_not(tmp_path, no_mpi):
    run = run_ranks(2, PROGRAMS / "starts_a_child.py", tmp_path, no_mpi=no_mpi, timeout=90)
    assert run.returncode == 0, str(run)
    facts = told(tmp_path, 2)
    child, job, _ = facts[1]
    kind, text = child["child"]
    assert kind == "LaunchError", text
    assert f"was started by rank 1 (process {child['pid']}) and is no rank itself" in text
    assert "call init() only in the processes that" in text
    assert job["status"] == 0, job["printed"]
    assert job["printed"].count("in a world of 2 1.0") == 2
    for rank in facts:
        assert rank[-1]["mean"] == [0.5] * 3
