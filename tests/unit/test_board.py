"""The notice board, with the ranks of one process."""

import pytest

from hvd_backup._core import Segment
from hvd_backup.board import Board
from hvd_backup.errors import Mismatch, PeerFailed, RoundTimeout


@pytest.fixture
def boards():
    segment = Segment.create(Board.bytes(3))
    return [Board(segment, 3, rank) for rank in range(3)]


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


def test_the_first_failure_stays(boards):
    boards[0].fail(Mismatch("first"))
    boards[1].fail(PeerFailed("second"))
    with pytest.raises(Mismatch, match="first"):
        boards[2].check()


def test_a_text_of_any_length_and_alphabet_fits(boards):
    boards[0].fail(Mismatch("é" * 2000))
    with pytest.raises(Mismatch, match="éééé"):
        boards[1].check()
    boards[0].enter_setup("ü" * 2000)


def test_who_has_left_is_listed(boards):
    boards[2].leave()
    assert boards[0].left() == [2]


def test_who_has_not_come_is_listed(boards):
    boards[0].enter_setup("a model")
    assert boards[0].not_here() == [1, 2]
    boards[2].enter_setup("a model")
    assert boards[0].not_here() == [1]
    boards[2].finish_setup()  # it has been there, and has gone on
    assert boards[0].not_here() == [1]


def test_a_rank_that_stays_in_another_set_up_is_a_mismatch_at_the_second_look(boards):
    boards[1].enter_setup("another model")
    boards[0].check_same_call("the first model", 0)  # it may have finished this round already
    with pytest.raises(Mismatch) as raised:
        boards[0].check_same_call("the first model", 0)
    assert "rank 0 is in the first model, rank 1 in another model" in str(raised.value)
    assert "every rank must make the same calls" in str(raised.value)


def test_a_rank_that_is_seen_ahead_in_two_different_set_ups_is_none(boards):
    boards[1].enter_setup("one")
    boards[0].check_same_call("round", 0)
    for board in boards[:2]:
        board.enter_setup("one")
        board.finish_setup()
    boards[1].enter_setup("two")
    boards[0].check_same_call("round", 1)


def test_a_rank_that_ends_a_set_up_is_never_seen_ahead(boards):
    for board in boards:
        board.enter_setup("a model")
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


def test_ranks_that_wait_in_different_rounds_are_none(boards):
    boards[0].check_same_call("collective 1", 5)
    boards[1].check_same_call("collective 2", 6)
    boards[0].check_same_call("collective 2", 6)
