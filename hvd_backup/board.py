"""A node's notice board: what every rank is doing, for ranks that wait for one another.

It answers the questions a wait cannot answer by itself: has the missing rank died, has it left, is
it in another call than I am? A few bytes of shared memory per rank, looked at only while waiting.
"""

from __future__ import annotations

import numpy as np

from hvd_backup import errors
from hvd_backup._core import LifeLock, Segment

_TEXT = 960
_MEMBER = np.dtype(
    [
        ("setups", np.uint64),  # set-ups this rank has completed
        ("in_setup", np.uint64),  # 1 while it is in the next one
        ("left", np.uint64),
        ("text", f"S{_TEXT}"),  # what it sets up
        ("waits_in", np.uint64),  # the round it was seen waiting in, counted over all collectives
        ("call", f"S{_TEXT}"),  # and the collective of that round
    ]
)
_FAILURE = np.dtype(
    [("failed", np.uint64), ("rank", np.int64), ("kind", "S32"), ("text", f"S{_TEXT}")]
)


class Board:
    """One rank's view of the board. The segment is zeroed at first, which is a valid board."""

    @staticmethod
    def bytes(world: int) -> int:
        return _FAILURE.itemsize + world * _MEMBER.itemsize

    def __init__(self, segment: Segment, world: int, rank: int) -> None:
        raw = segment.bytes()
        self._failure = raw[: _FAILURE.itemsize].view(_FAILURE)
        self._members = raw[_FAILURE.itemsize : self.bytes(world)].view(_MEMBER)
        self._life = LifeLock(segment, range(world), rank)
        self._rank = rank
        self._told = False  # this rank has raised the failure, or is about to
        self._ahead = np.zeros(world, np.bool_)  # as check_same_call saw it last

    def enter_setup(self, text: str) -> None:
        """Note that this rank is about to set up `text` together with all others."""
        me = self._members[self._rank]
        me["text"] = text.encode()[:_TEXT]
        me["in_setup"] = 1

    def finish_setup(self) -> None:
        me = self._members[self._rank]
        # In this order: nobody must see this rank in a set-up after the last one it has seen.
        me["in_setup"] = 0
        me["setups"] += np.uint64(1)
        self._ahead[:] = False

    def leave(self) -> None:
        """This rank ends in good order: its process may go."""
        self._members[self._rank]["left"] = 1

    def fail(self, error: BaseException) -> None:
        """Let the others' waits end with this rank's error. The first one stays."""
        self._told = True
        if self._failure["failed"][0]:
            return
        self._failure["rank"] = self._rank
        self._failure["kind"] = type(error).__name__.encode()[:32]
        self._failure["text"] = str(error).encode()[:_TEXT]
        self._failure["failed"] = 1

    def check(self) -> None:
        """Raise what another rank has failed with, in this rank's words."""
        if not self._failure["failed"][0]:
            return
        kind = bytes(self._failure["kind"][0]).decode()
        rank = int(self._failure["rank"][0])
        text = bytes(self._failure["text"][0]).decode(errors="replace")
        if self._told:
            text += " (this failure was told before; all ranks: shutdown(), then init(), to go on)"
        self._told = True
        if kind in ("Mismatch", "RoundTimeout"):
            error: type[errors.Error] = getattr(errors, kind)
            raise error(text if rank == self._rank else f"rank {rank} failed: {text}")
        raise errors.PeerFailed(f"rank {rank} failed with {kind}: {text}")

    def is_told(self) -> bool:
        """Whether this rank knows of a failure already."""
        return self._told

    def dead(self) -> list[int]:
        """Ranks whose process has ended without leaving."""
        return [rank for rank in self._life.dead() if not self._members["left"][rank]]

    def left(self) -> list[int]:
        return [int(rank) for rank in np.flatnonzero(self._members["left"])]

    def not_here(self) -> list[int]:
        """Ranks that are not yet in the set-up this rank is in."""
        mine = self._members["setups"][self._rank]
        here = (self._members["in_setup"] == 1) | (self._members["setups"] > mine)
        return [int(rank) for rank in np.flatnonzero(~here)]

    def check_same_call(self, mine: str, rounds: int) -> None:
        """While this rank waits in a round of `mine`, after `rounds` rounds of any collective.

        Raises Mismatch if another rank waits elsewhere. To be called while waiting, each time after
        a look whether the wait is over.
        """
        me = self._members[self._rank]
        if me["in_setup"]:
            return
        # A rank that is ahead may just have ended this wait, so that only one that stays in a
        # set-up until the next look counts.
        before = self._ahead
        self._ahead = (self._members["in_setup"] == 1) & (self._members["setups"] == me["setups"])
        for rank in np.flatnonzero(before & self._ahead):
            raise self._mismatch(mine, int(rank), "text")
        # All ranks go through the same rounds, so that the n-th is one of the same collective.
        me["waits_in"] = 0
        me["call"] = mine.encode()[:_TEXT]
        me["waits_in"] = rounds + 1
        for rank in np.flatnonzero(self._members["waits_in"] == rounds + 1):
            if self._members["call"][rank] != me["call"]:
                raise self._mismatch(mine, int(rank), "call")

    def _mismatch(self, mine: str, rank: int, field: str) -> errors.Mismatch:
        theirs = bytes(self._members[field][rank]).decode(errors="replace")
        return errors.Mismatch(
            f"rank {self._rank} is in {mine}, rank {rank} in {theirs}; every rank must make "
            "the same calls, in the same order, with the same names, shapes, dtypes and options"
        )
