"""The notice board, with the ranks of one process: of one node, and of two."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from unit.boards import Nodes

from hvd_backup.errors import Error, Mismatch, PeerFailed, RoundTimeout
from hvd_backup.world.board import TELL_SETUP_AFTER_S


def test_an_empty_board_says_nothing(boards):
    for board in boards:
        board.check()
        board.check_same_call("mine", 0)
        assert board.left() == []


def test_a_failure_is_raised_by_all_in_its_kind(boards):
    boards[1].fail(RoundTimeout("round 3: missing rank 0"))
    for rank in (0, 2):
        with pytest.raises(RoundTimeout, match="rank 1 failed: round 3: missing rank 0"):
            boards[rank].check()
    with pytest.raises(RoundTimeout, match=r"^round 3"):
        boards[1].check()


def test_an_error_of_the_user_is_raised_as_a_failed_peer(boards):
    boards[2].fail(KeyError("no such key"))
    with pytest.raises(PeerFailed, match="rank 2 failed with KeyError: 'no such key'"):
        boards[0].check()


@pytest.mark.parametrize("kind", [RoundTimeout, PeerFailed])
def test_a_failure_that_a_rank_has_only_passed_on_is_told_as_that_of_the_first(boards, kind):
    boards[0].fail(kind("rank 1 failed: round 3: missing rank 7"))
    with pytest.raises(kind, match=r"^rank 1 failed: round 3: missing rank 7$"):
        boards[2].check()


def test_a_death_is_told_in_the_same_words_by_all(boards):
    boards[0].fail(PeerFailed("rank 1 has died, seen by rank 0"))
    for rank in (1, 2):
        with pytest.raises(PeerFailed, match=r"^rank 1 has died, seen by rank 0$"):
            boards[rank].check()


def deaths_told_by(boards, dead, meanwhile=lambda: None):
    """The texts of boards that see a death at the same time. To word one takes a while."""

    def see(board):
        def text():
            time.sleep(0.05)
            return f"rank {dead} has died, seen by rank {board.rank}"

        start.wait()
        return str(board.death([dead], text))

    start = threading.Barrier(len(boards) + 1)
    with ThreadPoolExecutor(len(boards)) as pool:
        seen = [pool.submit(see, board) for board in boards]
        start.wait()
        meanwhile()
        return [one.result() for one in seen]


def test_ranks_that_see_a_death_at_the_same_time_raise_the_same_text():
    boards = Nodes(range(5)).boards
    texts = deaths_told_by(boards[:4], 4)
    assert len(set(texts)) == 1, texts
    assert re.fullmatch(r"rank 4 has died, seen by rank [0-3]", texts[0])
    for board in boards[:4]:
        with pytest.raises(PeerFailed, match="was told before"):
            board.check()


@pytest.mark.parametrize("dead", [1, 3])
def test_ranks_of_two_nodes_raise_the_text_of_the_node_that_a_rank_died_on(nodes, dead):
    def passes_on():
        time.sleep(0.15)
        nodes.pass_on()

    living = [board for board in nodes.boards if board.rank != dead]
    texts = deaths_told_by(living, dead, passes_on)
    assert set(texts) == {f"rank {dead} has died, seen by rank {dead - 1}"}


def test_a_death_is_told_though_the_rank_that_was_to_tell_it_died_then(boards, monkeypatch):
    monkeypatch.setattr("hvd_backup.world.board._WRITING_S", 0.05)
    monkeypatch.setattr(boards[1], "_write_failure", lambda *_: None)
    boards[1].death([2], lambda: "never written")
    told = boards[0].death([1, 2], lambda: "ranks 1, 2 have died, seen by rank 0")
    assert str(told) == "ranks 1, 2 have died, seen by rank 0"


def test_a_failure_says_when_it_was_and_what_to_do(boards):
    boards[1].last_round = lambda: "the last round of g that all have completed is round 7"
    boards[1].fail(KeyError("boom"), "round 9 of g")
    with pytest.raises(PeerFailed) as told:
        boards[0].check()
    assert re.fullmatch(
        r"rank 1 failed with KeyError: 'boom', in round 9 of g \(at \d\d:\d\d:\d\d; the last round "
        r"of g that all have completed is round 7\); what rank 1 printed says why; then start "
        r"again from the last checkpoint",
        str(told.value),
    )


def test_a_long_text_leaves_room_for_the_moment(boards):
    boards[1].last_round = lambda: "round 7"
    boards[1].fail(KeyError("\0" * 2000))
    with pytest.raises(PeerFailed, match=r" \(at [\d:]+; round 7\); what rank 1 printed"):
        boards[0].check()


def test_a_rank_is_told_that_its_own_interrupted_call_is_over(boards):
    boards[0].fail(ValueError("too slow"), "round 3 of g")
    with pytest.raises(
        Error, match=r"ended by ValueError: too slow, in round 3 of g \(at .*\); it "
    ):
        boards[0].check()
    with pytest.raises(PeerFailed, match=r"^rank 0 failed with ValueError: too slow, in round 3"):
        boards[1].check()


def test_the_first_failure_stays(boards):
    boards[0].fail(Mismatch("first"))
    boards[1].fail(PeerFailed("second"))
    with pytest.raises(Mismatch, match="first"):
        boards[2].check()


def test_a_failure_outlives_the_calls_that_follow_it(boards):
    boards[0].fail(Mismatch("first"))
    boards[0].enter_setup("again", 0)
    boards[0].finish_setup()
    boards[0].check_same_call("round", 0)
    with pytest.raises(Mismatch, match="rank 0 failed: first"):
        boards[1].check()
    with pytest.raises(Mismatch, match=r"first \(this failure was told before"):
        boards[1].check()


def test_of_failures_at_the_same_time_all_raise_that_of_the_lowest_rank(nodes):
    boards = nodes.boards
    boards[2].fail(Mismatch("of rank 2"))
    boards[1].fail(RoundTimeout("of rank 1"))  # knows nothing of the other node's yet
    nodes.pass_on()
    for rank in (0, 3):
        with pytest.raises(RoundTimeout, match="rank 1 failed: of rank 1"):
            boards[rank].check()


@pytest.mark.parametrize(
    "text", ["é" * 2000, "\0" * 2000, '"\\' * 2000, "a\n" * 2000, "😀" * 999, "x" * 959 + "é\ud800"]
)
def test_texts_of_any_length_and_alphabet_fit(boards, text):
    for board in boards[:2]:
        board.enter_setup(text, 10**18)
    boards[0].fail(type("Kind" * 99, (Exception,), {})(text))
    start = text[:100].encode(errors="replace").decode()
    with pytest.raises(PeerFailed) as raised:
        boards[1].check()
    assert start in str(raised.value)
    assert boards[2].not_here() == [2]


def test_who_has_left_is_listed(boards):
    boards[2].leave()
    assert boards[0].left() == [2]


def test_who_has_not_come_is_listed(boards):
    boards[0].enter_setup("a model", 0)
    assert boards[0].not_here() == [1, 2]
    boards[2].enter_setup("a model", 0)
    assert boards[0].not_here() == [1]
    boards[2].finish_setup()  # it has been there, and has gone on
    assert boards[0].not_here() == [1]


def test_a_rank_that_has_not_left_an_earlier_set_up_has_not_come_to_this_one(nodes):
    boards = nodes.boards
    for board in boards:
        board.enter_setup("one", 0)
        board.still_waiting()
    nodes.clock.now += TELL_SETUP_AFTER_S
    boards[3].still_waiting()
    nodes.pass_on()
    for board in boards[:2]:
        board.finish_setup()
        board.enter_setup("two", 0)
    assert boards[0].not_here() == [2, 3]


# ---- ranks in different calls -------------------------------------------------------------------


def test_a_rank_in_a_set_up_before_the_round_of_another_is_a_mismatch_if_the_round_stays(boards):
    boards[1].enter_setup("another model", 0)
    boards[0].check_same_call("the first model", 0)  # it may need no more than the others
    with pytest.raises(Mismatch) as raised:
        boards[0].check_same_call("the first model", 0)
    assert "rank 0 is in the first model, rank 1 in another model" in str(raised.value)
    assert "every rank must make the same calls" in str(raised.value)


def test_a_rank_of_another_node_that_has_been_through_the_round_is_only_ahead(nodes):
    boards = nodes.boards
    boards[0].check_same_call("round", 7)
    boards[2].check_same_call("round", 7)
    boards[2].enter_setup("a model", 8)
    nodes.clock.now += TELL_SETUP_AFTER_S
    boards[2].still_waiting()
    nodes.pass_on()
    for _ in range(3):
        boards[0].check_same_call("round", 7)


def test_a_rank_of_this_node_that_has_been_through_the_round_is_ahead_when_first_seen(boards):
    boards[0].check_same_call("round", 7)
    boards[1].check_same_call("round", 7)
    boards[1].enter_setup("a model", 8)
    boards[0].check_same_call("round", 7)  # the next look of the wait finds the result


def test_a_rank_of_this_node_that_stays_in_a_set_up_has_been_through_other_rounds(boards):
    boards[1].enter_setup("barrier()", 8)
    boards[0].check_same_call("collective 2", 7)
    with pytest.raises(Mismatch, match=r"rank 0 is in collective 2, rank 1 in barrier\(\)"):
        boards[0].check_same_call("collective 2", 7)


def test_a_rank_that_is_seen_ahead_in_two_different_set_ups_is_none(boards):
    boards[1].enter_setup("one", 1)
    boards[0].check_same_call("round", 0)
    for board in boards[:2]:
        board.enter_setup("one", 1)
        board.finish_setup()
    boards[1].enter_setup("two", 2)
    boards[0].check_same_call("round", 1)


def test_a_rank_that_ends_a_set_up_is_never_seen_ahead(boards):
    for board in boards:
        board.enter_setup("a model", 0)
    for board in boards:
        board.finish_setup()
        for other in boards:
            other.check_same_call("a model", 0)
            other.check_same_call("a model", 0)


def test_ranks_that_wait_in_the_same_round_of_different_collectives_are_a_mismatch(boards):
    boards[0].check_same_call("collective 1", 5)
    boards[2].check_same_call("collective 1", 5)
    with pytest.raises(Mismatch, match="rank 1 is in collective 2, rank 0 in collective 1"):
        boards[1].check_same_call("collective 2", 5)


def test_a_mismatch_says_who_has_joined(boards):
    boards[2].be_absent(absent=True)
    boards[2].enter_setup("join()", 5)
    boards[0].check_same_call("collective 1", 5)
    with pytest.raises(Mismatch, match=r"options; rank 2 has called join\(\)$"):
        boards[1].check_same_call("collective 2", 5)


def test_ranks_that_wait_in_different_rounds_are_none(boards):
    boards[0].check_same_call("collective 1", 5)
    boards[1].check_same_call("collective 2", 6)
    boards[0].check_same_call("collective 2", 6)


# ---- between nodes ------------------------------------------------------------------------------


def test_what_ended_no_call_is_told_as_new_by_the_next(boards):
    boards[1].fail(KeyError("x"))
    with pytest.raises(PeerFailed) as first:
        boards[0].check()
    boards[0].not_told(first.value)
    with pytest.raises(PeerFailed, match=r"KeyError: 'x' \(at [\d:]+\); .* checkpoint$"):
        boards[0].check()
    with pytest.raises(PeerFailed, match="was told before"):
        boards[0].check()
