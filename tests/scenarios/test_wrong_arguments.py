"""Calls that do not match: an error on every rank, with what to do, and never a hang.

Where all ranks are wrong alike, and where the ranks can go on after it, see tests/mpi.
"""

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told

SAME_CALLS = "every rank must make the same calls, in the same order"
SAME_STEPS = "every rank must make the same number of steps"


def in_nodes(size):
    return f"in_nodes_of_{size}" if size else "without_mpi"


@pytest.fixture(scope="module", params=[3, 2, 1, None], ids=in_nodes)
def cases(request, tmp_path_factory):
    """Case -> what ranks 0, 1 and 2 got. It is rank 1 that does what the others do not.

    None is for one node without MPI.
    """
    folder = tmp_path_factory.mktemp("wrong")
    env = {"HVD_BACKUP_NODE_SIZE": str(request.param)} if request.param else {}
    run = run_ranks(
        3,
        PROGRAMS / "wrong_arguments.py",
        folder,
        env=env,
        timeout=90,
        no_mpi=request.param is None,
    )
    assert run.returncode == 0, str(run)
    by_rank = [{facts["case"]: facts for facts in rank} for rank in told(folder, 3)]
    return {case: [rank[case] for rank in by_rank] for case in by_rank[0]}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("shape_changes_on_one_rank", ["float32[4]", "float64[5]"]),
        ("name_changes_on_one_rank", ["name='gradients'", "name='statistics'"]),
        ("known_names_in_another_order", ["name='first'", "name='second'"]),
        ("other_collective_on_one_rank", ["partial_allreduce(float32[4])", "barrier()"]),
        (
            "other_collective_on_one_rank_while_others_read_private_memory",
            ["partial_allreduce(float32[200000])", "barrier()"],
        ),
        (
            "other_collective_on_one_rank_with_backups",
            ["partial_allreduce(float32[4])", "rank 1 in allgather_object()"],
        ),
        (
            "known_names_in_another_order_with_backups_then_a_barrier",
            ["name='second'", "in barrier()"],
        ),
        ("other_options_on_one_rank", ["collective 1, partial", "backup_workers=1"]),
        (
            "parameters_added_on_one_rank",
            ["parameter 1: float32[2])", "parameter (5,): float32[5])"],
        ),
        ("optimizers_in_another_order", ["collective 1, Distributed", "collective 2, Distributed"]),
        ("one_step_less_then_a_barrier", ["DistributedOptimizer(SGD", "rank 1 in barrier()"]),
    ],
)
def test_ranks_in_different_calls_raise_mismatch_that_quotes_both(cases, case, words):
    for facts in cases[case]:
        assert facts["error"] == "Mismatch"
        assert SAME_CALLS in facts["text"]
        for word in words:
            assert word in facts["text"]


def test_an_optimizer_that_one_rank_alone_wraps_again_fails_on_all_ranks(cases):
    for facts in cases["second_optimizer_on_one_rank"]:
        assert facts["error"] in ("PeerFailed", "Mismatch")


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("too_many_backups_on_one_rank", "ValueError", "use 0 <= backup_workers <= 2"),
        ("integers_on_one_rank", "TypeError", "convert it to one of float16, float32, float64"),
    ],
)
def test_a_wrong_argument_on_one_rank_is_told_there_and_the_others_fail(cases, case, error, words):
    first, wrong, last = cases[case]
    assert wrong["error"] == error
    assert words in wrong["text"]
    for facts in (first, last):
        assert facts["error"] == "PeerFailed"
        assert "rank 1 has left" in facts["text"]


def test_a_rank_whose_device_refuses_fails_the_others_and_all_can_close(cases):
    first, refused, last = cases["gradients_cannot_be_staged_on_one_rank"]
    assert (refused["error"], refused["text"]) == ("DeviceError", "no room on the device")
    for facts in (first, last):
        assert facts["error"] == "PeerFailed"
        assert "rank 1 failed with DeviceError: no room on the device" in facts["text"]


def test_a_rank_with_fewer_steps_fails_the_others_without_backups(cases):
    first, _, last = cases["one_step_less_then_shutdown"]
    for facts in (first, last):
        assert facts["error"] == "PeerFailed"
        assert "rank 1 has left" in facts["text"]
        assert SAME_STEPS in facts["text"]


def test_a_rank_with_fewer_steps_is_noticed_with_backups_when_all_meet(cases):
    for facts in cases["one_step_less_with_backups_then_a_barrier"]:
        assert facts["error"] == "Mismatch"
        assert "ranks 0, 2: barrier() after 5 rounds" in facts["text"]
        assert "rank 1: barrier() after 4 rounds" in facts["text"]


def test_options_that_differ_from_the_first_call_on_are_told_with_their_ranks(cases):
    for facts in cases["other_options_on_one_rank_at_first"]:
        assert facts["error"] == "Mismatch"
        assert "ranks 0, 2: partial_allreduce(float32[4]) with backup_workers=0" in facts["text"]
        assert "rank 1: partial_allreduce(float32[4]) with backup_workers=1" in facts["text"]


def test_another_treatment_of_nan_is_told_as_other_options_are(cases):
    for facts in cases["other_treatment_of_nan_on_one_rank"]:
        assert facts["error"] == "Mismatch"
        assert (
            "ranks 0, 2: DistributedOptimizer(SGD, group 0, parameter 0: float32[2]) with"
            in (facts["text"])
        )
        assert (
            "rank 1: DistributedOptimizer(SGD, group 0, parameter 0: float32[2], on_non"
            in (facts["text"])
        )


def test_a_rank_that_does_not_come_to_a_barrier_is_named_after_the_time_out(cases):
    for facts in cases["late_to_a_barrier"]:
        assert facts["error"] == "RoundTimeout"
        assert "missing rank 1; raise timeout=" in facts["text"]


def test_no_error_is_told_as_an_earlier_one_when_it_is_told_first(cases):
    texts = [facts["text"] for ranks in cases.values() for facts in ranks]
    assert [text for text in texts if "told before" in text] == []


def test_nobody_waits_long_for_any_of_these_errors(cases):
    assert {case for case, ranks in cases.items() if max(f["seconds"] for f in ranks) > 10} == set()
