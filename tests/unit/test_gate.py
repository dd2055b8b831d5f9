"""Waiting until all ranks are in a call."""

import itertools
from types import SimpleNamespace

import pytest

from hvd_backup import errors
from hvd_backup.world.gate import Watch, pass_gate


class Board:
    """Another rank fails, and leaves or dies, just after this one has looked for failures."""

    rank = 0
    is_part = False

    def __init__(self, way):
        self._way, self._asked = way, False

    def check(self):
        if self._asked:
            raise errors.Mismatch("what rank 1 has failed with")

    def still_waiting(self):
        pass

    check_same_rounds = still_waiting

    def _gone(self, way):
        self._asked = self._way == way
        return [1] if self._asked else []

    def dead(self):
        return self._gone("dead")

    def cut_off(self):
        return self._gone("cut off")

    def left(self):
        return self._gone("left")

    def joined(self):
        return []


class FailsLater(Board):
    """Another rank tells of its failure after so many looks of this one."""

    def __init__(self, looks):
        super().__init__("no")
        self._looks = looks
        self.has_failed = False

    def check(self):
        self._looks -= 1
        if self._looks < 0:
            self.has_failed = True
            raise errors.RoundTimeout("rank 1 failed: missing rank 0")

    def not_told(self, error):
        self.text_of_later = str(error)


def doors(*opening):
    """A communicator. Its barriers are done after so many tests, or NEVER."""
    barriers = iter(opening)

    def barrier():
        when = next(barriers)
        never = itertools.repeat(False)
        tests = never if when is NEVER else itertools.chain([False] * when, [True])
        return SimpleNamespace(Test=tests.__next__)

    return SimpleNamespace(Ibarrier=barrier)


NEVER = None


def watch(board, missing=(), ranks=None, stall_warning=60.0):
    return Watch(board, "barrier()", 0.25, stall_warning, lambda: list(missing), ranks)


@pytest.mark.parametrize("way", ["dead", "cut off", "left"])
def test_the_reason_that_a_rank_gave_before_it_went_is_raised_not_that_it_went(way):
    for ranks in (None, [1, 2]):
        with pytest.raises(errors.Mismatch, match="what rank 1 has failed with"):
            pass_gate(doors(NEVER, 0), watch(Board(way), [1], ranks))


def test_a_rank_that_is_not_in_the_set_may_die_or_leave():
    for way in ("dead", "cut off", "left"):
        board = Board(way)
        board.check = lambda: None
        pass_gate(doors(2, 0), watch(board, ranks=[0, 2]))


def test_a_wait_that_is_long_says_once_whom_it_waits_for(caplog):
    pass_gate(doors(5, 1), watch(Board("no"), [1, 4], stall_warning=1e-9))
    assert [record.getMessage() for record in caplog.records] == [
        "rank 0, barrier(): waiting for 0 s; missing ranks 1, 4"
    ]


def test_who_comes_when_another_has_given_up_hears_of_it_however_late_that_is_told():
    with pytest.raises(errors.RoundTimeout, match="rank 1 failed"):
        pass_gate(doors(0, NEVER), watch(FailsLater(looks=20)))


def test_a_rank_that_fails_behind_the_gate_does_not_keep_the_others_from_passing_it():
    board = FailsLater(looks=10)
    pass_gate(doors(3, 150), watch(board))
    assert board.has_failed  # and this rank has heard of it, at the second door
    assert "rank 1 failed" in board.text_of_later  # but its user has not


def test_a_rank_that_never_comes_ends_the_wait_after_the_timeout():
    with pytest.raises(
        errors.RoundTimeout, match=r"barrier\(\): not all ranks came within 0.25 s; .* 3"
    ):
        pass_gate(doors(NEVER, 0), watch(Board("no"), [3]))


def test_a_rank_that_stops_between_the_doors_is_not_called_missing():
    with pytest.raises(
        errors.RoundTimeout, match=r"within 0\.25 s; all came, but one stopped since;"
    ):
        pass_gate(doors(0, NEVER), watch(Board("no")))
