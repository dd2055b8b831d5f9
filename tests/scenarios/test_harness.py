"""The harness of the multi-rank tests: what it promises when a test fails or hangs."""

import os
import signal
import tempfile
import textwrap
from pathlib import Path

import pytest
from launching import ROOT, CompletedRun, StillRunning, run_ranks, start_ranks

CONFTEST = ROOT / "tests" / "mpi" / "conftest.py"

HEAD = """
import os, time, pytest
from mpi4py import MPI
comm = MPI.COMM_WORLD
pytestmark = pytest.mark.mpi
"""


def run_tests(folder: Path, ranks: int, body: str, *options: str) -> CompletedRun:
    """Run a test file with `body` as `make test-mpi` runs those of tests/mpi."""
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "test_it.py").write_text(HEAD + textwrap.dedent(body))
    arguments = ("--with-mpi", "-m", "mpi", "-c", ROOT / "pyproject.toml", "--rootdir", folder)
    return run_ranks(ranks, "pytest", *arguments, *options, folder, python=("-m",), timeout=60)


def test_a_world_that_passes_shows_the_progress_of_rank_0_alone(tmp_path):
    run = run_tests(tmp_path, 3, "def test_sum():\n    assert comm.allreduce(1) == 3")
    assert run.returncode == 0, str(run)
    assert run.stdout.count("1 passed") == 1, str(run)
    assert run.stdout.count("test session starts") == 1, str(run)


def test_a_failure_on_one_rank_ends_the_world_and_shows_its_report(tmp_path):
    body = """
    def test_one_rank_fails():
        print("printed by the test")
        assert comm.rank != 2, "rank two says no"
        comm.Barrier()  # for ever, without the harness
    """
    run = run_tests(tmp_path, 3, body)
    assert run.returncode != 0, str(run)
    assert "rank 2 of 3: test_it.py::test_one_rank_fails failed (call)" in run.stderr, str(run)
    assert "rank two says no" in run.stderr, str(run)
    assert "printed by the test" in run.stderr, str(run)


def test_a_failure_in_a_fixture_on_one_rank_ends_the_world(tmp_path):
    body = """
    @pytest.fixture
    def resource():
        yield
        if comm.rank == 1:
            raise OSError("cannot be given back")

    def test_passes(resource):
        pass

    def test_meets():
        comm.Barrier()
    """
    run = run_tests(tmp_path, 2, body)
    assert run.returncode != 0, str(run)
    assert "test_passes failed (teardown)" in run.stderr, str(run)
    assert "cannot be given back" in run.stderr, str(run)


def test_a_file_that_one_rank_cannot_import_ends_the_world(tmp_path):
    body = """
    if comm.rank == 1:
        raise ImportError("no such thing on rank one")

    def test_meets():
        comm.Barrier()
    """
    run = run_tests(tmp_path, 2, body)
    assert run.returncode != 0, str(run)
    assert "cannot be collected" in run.stderr, str(run)
    assert "no such thing on rank one" in run.stderr, str(run)


def test_the_same_failure_on_all_ranks_is_shown_in_full_once(tmp_path):
    run = run_tests(tmp_path, 3, "def test_all_fail():\n    assert 1 == 2, 'all say no'")
    assert run.returncode != 0, str(run)
    assert run.stderr.count("AssertionError: all say no") == 1, str(run)
    assert run.stderr.count("(the same report as another rank's)") == 2, str(run)


def test_a_test_that_hangs_shows_the_stacks_of_all_ranks_and_ends_the_world(tmp_path):
    body = """
    def waits_for_rank_one():
        comm.Barrier()

    def forgets_the_others():
        time.sleep(1000)

    def test_hangs():
        forgets_the_others() if comm.rank == 1 else waits_for_rank_one()
    """
    run = run_tests(tmp_path, 3, body, "-o", "timeout=3")
    assert run.returncode != 0, str(run)
    assert "TIME LIMIT: rank" in run.stderr, str(run)
    assert "is in test_it.py::test_hangs since 3 s" in run.stderr, str(run)
    assert run.stderr.count("in waits_for_rank_one") == 2, str(run)
    assert run.stderr.count("in forgets_the_others") == 1, str(run)
    stacks_of_rank_1 = run.stderr.partition("--- rank 1 ")[2].partition("--- rank 2 ")[0]
    assert "forgets_the_others" in stacks_of_rank_1, str(run)


def test_a_hanging_call_that_the_time_limit_interrupts_is_a_failure_all_the_same(tmp_path):
    body = """
    import ctypes

    @pytest.mark.timeout(2)
    def test_sleeps():
        if comm.rank == 0:
            ctypes.PyDLL(None).sleep(1000)  # ends when a signal comes
        comm.Barrier()
    """
    run = run_tests(tmp_path, 2, body)
    assert run.returncode != 0, str(run)
    assert "TIME LIMIT: rank" in run.stderr, str(run)


def test_a_rank_that_never_lets_go_of_the_interpreter_lock_ends_the_world(tmp_path):
    body = """
    @pytest.mark.timeout(2)
    def test_holds_the_lock():
        sum(range(10**15))
    """
    run = run_tests(tmp_path, 2, body)
    assert run.returncode != 0, str(run)
    assert "in test_holds_the_lock" in run.stderr, str(run)


def test_the_timeout_marker_holds_under_mpirun(tmp_path):
    body = """
    @pytest.mark.timeout(2)
    def test_hangs():
        time.sleep(1000)
    """
    run = run_tests(tmp_path, 2, body)
    assert run.returncode != 0, str(run)
    assert "is in test_it.py::test_hangs since 2 s" in run.stderr, str(run)


def test_a_world_too_small_skips(tmp_path):
    body = "@pytest.mark.mpi(min_size=3)\ndef test_three():\n    assert comm.size >= 3"
    run = run_tests(tmp_path, 2, body)
    assert run.returncode == 0, str(run)
    assert "1 skipped" in run.stdout, str(run)


PROGRAM = """
import os, sys, time
from mpi4py import MPI
print("pid", MPI.COMM_WORLD.rank, os.getpid(), flush=True)
if "--wait" in sys.argv:
    time.sleep(1000)
print("argument", sys.argv[1], os.environ.get("WORD"), file=sys.stderr)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_run_ranks_passes_arguments_and_environment_and_collects_the_output(program):
    run = run_ranks(2, program, 17, env={"WORD": "said"})
    assert run.returncode == 0, str(run)
    assert run.stdout.count("pid ") == 2, str(run)
    assert run.stderr.count("argument 17 said") == 2, str(run)


def test_run_ranks_gives_up_with_the_output_so_far_and_leaves_nobody(program):
    with pytest.raises(StillRunning, match=r"(?s)mpirun's end in 3 s.*pid 0"):
        run_ranks(2, program, "--wait", timeout=3)


def test_ranks_are_gone_after_the_block_also_a_stopped_one(program):
    with start_ranks(3, program, "--wait") as ranks:
        pids = ranks.pids()
        assert set(pids) < set(ranks.survivors())
        os.kill(pids[1], signal.SIGSTOP)
    assert ranks.survivors() == []


def test_waiting_for_words_ends_with_mpirun(program):
    with (
        start_ranks(2, program, 1) as ranks,
        pytest.raises(AssertionError, match="mpirun ended with 0 before 'never said'"),
    ):
        ranks.wait_for("never said", timeout=60)


def test_a_launcher_that_is_killed_leaves_no_files_that_a_later_one_of_its_number_finds(tmp_path):
    program = tmp_path / "sleep.py"
    program.write_text("import os, time\nprint('pid', 0, os.getpid(), flush=True)\ntime.sleep(60)")
    with start_ranks(1, program) as ranks:
        ranks.pids()
        name = f"*{ranks.process.pid}*"
        kept = [path for path in ranks.folder.rglob(name) if path.is_file()]
    assert kept, "this launcher keeps nothing under its number, or elsewhere"
    assert not ranks.folder.exists()
    ranks.close()
    assert not list(Path(tempfile.gettempdir()).glob(name))
