"""The notice board of a process set whose ranks go through rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hvd_backup import errors
from hvd_backup._core import Segment
from hvd_backup.world.board import Board, Hosts


class PartBoard(Board):
    """The board of some ranks of a world. A failure of theirs is one of the world.

    `ranks` are their numbers in the world.
    """

    is_part = True

    def __init__(
        self,
        above: Board,
        segment: Segment,
        world: int,
        rank: int,
        local: Sequence[int],
        ring: Callable[[], None] | None = None,
        hosts: Hosts | None = None,
        *,
        ranks: Sequence[int] = (),
    ) -> None:
        super().__init__(segment, world, rank, local, ring, hosts)
        self._above = above
        self._ranks = ranks

    def fail(self, error: BaseException, during: str = "") -> None:
        self._above.fail(error, during)

    def death(self, dead: Sequence[int], text: Callable[[], str]) -> errors.Error:
        # Ranks of the part are counted from 0: it knows where they are, not the world's board.
        return self._above._tell_once(text, self._wait_for_others(dead))  # noqa: SLF001

    def reason(self) -> errors.Error | None:
        return self._above.reason()

    def not_told(self, error: BaseException) -> None:
        self._above.not_told(error)

    def joined(self) -> list[int]:
        joined = self._above.joined()  # as all ranks join, it is told in the world's statuses
        return [part for part, rank in enumerate(self._ranks) if rank in joined]

    def knows(self, error: BaseException) -> bool:
        return self._above.knows(error)

    def is_told(self) -> bool:
        return self._above.is_told()
