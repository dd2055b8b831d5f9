"""Waits of set-ups, by one rank whose others are played."""

import pickle

import pytest

from hvd_backup import errors
from hvd_backup.world import local_comm
from hvd_backup.world.together import Together, _Message


class Request:
    """Complete at the n-th look; never, if that is 0."""

    def __init__(self, looks, parts):
        self._looks, self.parts = looks, parts

    def Test(self):  # noqa: N802 (mpi4py's name)
        self._looks -= 1
        return self._looks == 0


class Comm(local_comm.Intracomm):
    """What the other rank says to one call after another, and when."""

    def __init__(self, *others):
        self.rank, self.size = 0, 2
        self._others = list(others)
        self.sent = []

    def iallgather_bytes(self, mine):
        self.sent.append(pickle.loads(mine))
        looks, message = self._others.pop(0)
        return Request(looks, [mine, pickle.dumps(message)])


def together(*others, timeout=0.2):
    return Together(Comm(*others), timeout, "set-up")


def test_what_all_ranks_give_is_there_for_all():
    assert together((3, _Message("theirs"))).allgather("mine") == ["mine", "theirs"]


def test_a_rank_that_never_comes_is_a_time_out():
    with pytest.raises(errors.RoundTimeout, match=r"set-up: not all 2 ranks came within 0\.2 s"):
        together((0, None)).allgather(1)


def test_what_is_seen_while_waiting_ends_the_wait():
    def look():
        raise errors.PeerFailed("rank 1 has died")

    waits = together((0, None), timeout=60)
    waits.watch(look)
    with pytest.raises(errors.PeerFailed, match="rank 1 has died"):
        waits.allgather(1)


def test_a_rank_that_has_come_and_left_since_is_no_failure():
    def look():
        raise errors.PeerFailed("rank 1 has left")

    waits = together((5, _Message(2)))
    waits.watch(look)
    assert waits.allgather(1) == [1, 2]


def test_a_problem_of_one_rank_is_raised_by_all_and_names_it():
    waits = together((1, _Message("")), (1, _Message("no memory")))
    with pytest.raises(errors.LaunchError, match="rank 0: MemoryError: mine") as mine:
        waits.agree(raise_memory_error, errors.LaunchError)
    assert waits.have_agreed_on(mine.value)
    with pytest.raises(errors.Error, match="rank 1: no memory"):
        waits.agree(lambda: 1)


def raise_memory_error():
    raise MemoryError("mine")


def test_ctrl_c_amid_an_agreement_is_told_and_stays_what_it_is():
    def interrupt():
        raise KeyboardInterrupt

    waits = together((1, _Message("")))
    with pytest.raises(KeyboardInterrupt):
        waits.agree(interrupt)
    assert waits.comm.sent[0].content == "KeyboardInterrupt"


def test_a_rank_that_fails_between_two_calls_comes_to_the_next_to_say_so():
    mine = together((1, _Message(0)))
    mine.fail(KeyError("x"))
    assert mine.comm.sent[0].failure == "KeyError: 'x'"
    theirs = together((1, mine.comm.sent[0]))
    with pytest.raises(errors.PeerFailed, match="rank 1 failed with KeyError: 'x'") as told:
        theirs.allgather(1)
    theirs.fail(told.value)  # all know it: nothing is sent
    assert len(theirs.comm.sent) == 1


def test_a_rank_that_gives_up_amid_a_call_takes_part_in_it_to_its_end():
    def look():
        raise errors.PeerFailed("rank 1 has died")

    waits = together((0, None), timeout=0.1)
    waits.watch(look)
    with pytest.raises(errors.PeerFailed) as seen:
        waits.allgather(1)
    waits.fail(seen.value)
    assert len(waits.comm.sent) == 1
