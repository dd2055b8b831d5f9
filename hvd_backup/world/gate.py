"""A gate: ranks wait at it until all of them have come to the same call.

A rank that has passed the gate may block in MPI, because all other ranks have passed it too, or
will at once. To ensure this, a gate has two barriers. A rank may wait at the first for long, give
up, or fail, even if the others come later. The second completes only if no rank has given up at the
first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hvd_backup import errors
from hvd_backup.phrases import death, ranks_have, ranks_text, title
from hvd_backup.world.board import Board
from hvd_backup.world.stall import Stall

if TYPE_CHECKING:
    from mpi4py import MPI

_NAPS_S = (20e-6, 5e-3)


class Watch:
    """Checks that a rank makes while it waits for others in `call`."""

    def __init__(
        self,
        board: Board,
        call: str,
        timeout: float,
        stall_warning: float,
        missing: Callable[[], list[int]],
        ranks: Sequence[int] | None = None,
    ) -> None:
        """`missing()` returns the ranks that have not come. `ranks` are those of a process set."""
        self.board = board
        self.timeout = timeout
        self.meanwhile: Callable[[], bool] | None = None
        """Does other work meanwhile. If it returns True, the time-out starts again."""
        self._call, self._title = call, title(call)
        self._missing = missing
        self._ranks = ranks
        self._stall = Stall(stall_warning)

    def look(self) -> None:
        """Raise another rank's failure, PeerFailed if a rank will never come, or Mismatch."""
        self.board.still_waiting()
        self.board.check()
        if self._ranks is None:
            self.board.check_same_rounds()
        if dead := self._awaited(self.board.dead()):
            self.board.check()  # they may have told the reason since the last look
            raise self.board.death(dead, lambda: self._death_of(dead))
        if lost := self._awaited(self.board.cut_off()):
            self.board.check()
            raise errors.PeerFailed(
                f"{self._call}: this node has lost touch with {ranks_text(lost)}; start again from "
                "the last checkpoint"
            )
        if left := self._awaited(self.board.left()):
            self.board.check()
            raise errors.PeerFailed(
                f"{self._call}: {ranks_have(left)} left; every rank must make the same calls"
            )
        of_all = self._ranks is None and not self.board.is_part
        if not of_all and (joined := self._awaited(self.board.joined())):
            raise errors.Mismatch(
                f"{self._call}: {ranks_have(joined)} called join(), which takes part in calls of "
                "all ranks, and not in those of a process set; make these calls before join()"
            )
        self._stall.look(lambda: (f"rank {self.board.rank}, {self._title}", self._missing()))

    def is_over(self) -> errors.RoundTimeout:
        missing = self._missing()
        who = f"missing {ranks_text(missing)}" if missing else "all came, but one stopped since"
        return errors.RoundTimeout(
            f"{self._call}: not all ranks came within {self.timeout:g} s; {who}; raise timeout= or "
            "HVD_BACKUP_TIMEOUT"
        )

    def _death_of(self, dead: list[int]) -> str:
        seen_by = f"rank {self.board.rank}"
        last_round = self.board.last_round()
        return death(ranks_text(dead), seen_by, self._title, last_round)

    def _awaited(self, some: list[int]) -> list[int]:
        return [rank for rank in some if self._ranks is None or rank in self._ranks]


def pass_gate(comm: MPI.Intracomm, watch: Watch) -> None:
    """Wait until all ranks of `comm` are here, and none has given up.

    Raises RoundTimeout, and the errors of ``watch.look()``.
    """
    watch.board.check()  # after a failure the ranks' calls no longer match
    _await(comm.Ibarrier(), watch)
    door = comm.Ibarrier()
    if _opens_soon(door, 100, 0):  # the usual case: all have come
        return
    try:
        _await(door, watch)
    except errors.Error as error:
        # A rank that has passed the second barrier may have failed after it. Then the barrier
        # completes for this rank soon, too.
        if not _opens_soon(door, 1000, 1e-3):
            raise
        watch.board.not_told(error)


def _await(door: MPI.Request, watch: Watch) -> None:
    deadline = time.monotonic() + watch.timeout
    nap, longest = _NAPS_S
    while not door.Test():
        watch.look()
        if watch.meanwhile is not None and watch.meanwhile():
            deadline = time.monotonic() + watch.timeout
            nap = _NAPS_S[0]
        if time.monotonic() > deadline:
            raise watch.is_over()
        time.sleep(nap)
        nap = min(2 * nap, longest)


def _opens_soon(door: MPI.Request, tests: int, nap: float) -> bool:
    for _ in range(tests):
        if door.Test():
            return True
        time.sleep(nap)
    return False
