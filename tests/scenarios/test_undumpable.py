"""Processes that refuse to be read after init(), as by ``prctl(PR_SET_DUMPABLE, 0)``."""

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told


@pytest.mark.parametrize(
    ("ranks", "b", "node_size", "no_mpi"),
    [
        (2, 0, None, False),
        (3, 1, None, True),
        (3, 1, "2", False),
        (4, 0, "2", False),
        (2, 0, "1", False),
    ],
)
def test_rounds_stay_right_and_the_job_ends(tmp_path, ranks, b, node_size, no_mpi):
    program = PROGRAMS / "undumpable.py"
    env = {"HVD_BACKUP_NODE_SIZE": node_size}
    run = run_ranks(ranks, program, tmp_path, b, env=env, no_mpi=no_mpi, timeout=60)
    facts = told(tmp_path, ranks)
    if any(not all(rank[0]["readable"]) for rank in facts if rank):
        pytest.skip("this host lets no process read another's memory without CAP_SYS_PTRACE")
    assert run.returncode == 0, str(run)
    for before, after in facts:
        assert before["right"], str(run)
        assert not any(after["readable"]), "the refusal is not real here"
        assert after["right"], str(run)
