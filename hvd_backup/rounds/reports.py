"""What a rank can tell of the rounds it has been through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

from hvd_backup._core import Round, RoundLog

__all__ = [
    "History",
    "Round",
    "RoundRecord",
    "Share",
    "Stats",
    "full_window",
    "late_rank",
]

_HISTORY = 100_000  # rounds; a training run of months must not fill the memory


class RoundRecord(NamedTuple):
    """A round in a rank's history. Points in time are seconds of the host's CLOCK_MONOTONIC."""

    number: int
    """The round's number, counted from 0."""
    arrived_at_s: float | None
    """When this rank's gradient was complete, in seconds; None when the rank skipped the round."""
    sealed_at_s: float
    """When the round's contributors were fixed, in seconds."""
    stepped_at_s: float
    """When this rank had the result, in seconds."""
    waited_s: float
    """How many seconds this rank was blocked in the exchange."""
    contributed: bool
    """Whether this rank's contribution is in the result."""

    @property
    def skipped(self) -> bool:
        """Whether the round was over before this rank had computed its gradient."""
        return self.arrived_at_s is None


class Share(NamedTuple):
    """In how many of the last rounds a rank's contribution was."""

    rank: int
    contributed: int
    rounds: int


class History(Sequence[RoundRecord]):
    """A rank's last 100,000 rounds, the oldest first."""

    def __init__(self, log: RoundLog) -> None:
        self._log = log

    def __len__(self) -> int:
        return len(self._log)

    @overload
    def __getitem__(self, index: int) -> RoundRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[RoundRecord]: ...
    def __getitem__(self, index: int | slice) -> RoundRecord | list[RoundRecord]:
        where = range(len(self))[index]
        if isinstance(where, range):
            return [RoundRecord(*self._log.record(i)) for i in where]
        return RoundRecord(*self._log.record(where))


class Stats:
    """The rounds of one optimizer, or of one DDP hook, on one rank: counters and a history.

    Attributes:
        history: The last 100,000 rounds, a sequence of ``RoundRecord``, the oldest first.
        abstained: Rounds in which this rank had weight 0: its gradient had NaN or inf, say.
    """

    def __init__(self) -> None:
        self._log = RoundLog(_HISTORY)
        self.history = History(self._log)
        """What became of each of the last 100,000 rounds."""
        self.abstained = 0
        """Rounds that this rank was in with weight 0: its gradient had NaN or inf, say."""

    @property
    def rounds(self) -> int:
        """Rounds that this rank has gone through, one per step."""
        return self._log.rounds

    @property
    def contributed(self) -> int:
        """Rounds whose mean has this rank's gradient."""
        return self._log.contributed - self.abstained

    @property
    def skipped(self) -> int:
        """Late rounds for which this rank computed no gradient."""
        return self._log.skipped

    @property
    def late(self) -> int:
        """Rounds that this rank came too late for, skipped ones included."""
        return self.rounds - self._log.contributed

    def add(self, round_: Round) -> None:
        """Count a round whose result this rank has now. The package calls it.

        Args:
            round_: The round.
        """
        self._log.add(round_)

    def __repr__(self) -> str:
        return (
            f"Stats(rounds={self.rounds}, contributed={self.contributed}, late={self.late}, "
            f"skipped={self.skipped}, abstained={self.abstained})"
        )


# ---- in words -----------------------------------------------------------------------------------

_TO_SKIP = "compute under `with optimizer.attempt():` (Keras: AttemptCallback)"


def late_rank(share: Share, backup_workers: int, world: int, where: str) -> str:
    """A rank's share of the rounds is far below what chance would give."""
    expected = share.rounds * (1 - backup_workers / world)
    return (
        f"rank {share.rank} hardly takes part: its gradient is in {share.contributed} of the last "
        f"{share.rounds} rounds of {where}; chance would give {expected:.0f} "
        f"(backup_workers={backup_workers} of {world} ranks). What it computes is thrown away. It "
        "is slower than the others, or it fell behind once and computes for rounds that are over. "
        f"To skip those, {_TO_SKIP}, if it does not yet; see docs/horovod.md. Or use late='carry', "
        "or backup_workers=0, which waits for it. HVD_BACKUP_LATE_WARNING=0 silences this warning"
    )


def full_window(round_: Round, rank: int, slowest: int, window: int, where: str) -> str:
    """A rank had to wait because another is too far behind."""
    return (
        f"rank {rank} waited {round_.waited_for_window_s:.2f} s in round {round_.number} of "
        f"{where} for rank {slowest}, which is far behind: the window of {window} results is "
        f"full, so rank {slowest} sets the pace of all. To skip the rounds that it has missed, "
        f"{_TO_SKIP}"
        "; or raise window="
    )
