"""What a rank can tell of the rounds it has been through."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from hvd_backup._core import Round

__all__ = ["Round", "RoundRecord", "Stats"]

_HISTORY = 100_000  # rounds; a training run of months must not fill the memory


class RoundRecord(NamedTuple):
    """A round in a rank's history. Points in time are on the host's CLOCK_MONOTONIC, in seconds."""

    number: int
    arrived_at_s: float | None
    """When this rank's gradient was complete; None when it skipped the round."""
    sealed_at_s: float
    stepped_at_s: float
    """When this rank had the result."""
    waited_s: float
    """How long it was blocked in the exchange."""
    contributed: bool

    @property
    def skipped(self) -> bool:
        """The round was over before this rank had computed its gradient."""
        return self.arrived_at_s is None


class Stats:
    """The rounds of one optimizer on one rank."""

    def __init__(self) -> None:
        self.rounds = 0
        """Rounds gone through, one per step."""
        self.contributed = 0
        """Rounds with this rank's gradient in the mean."""
        self.skipped = 0
        """Late rounds that this rank did not even compute."""
        self.history: deque[RoundRecord] = deque(maxlen=_HISTORY)
        """The last 100,000 rounds."""

    @property
    def late(self) -> int:
        """Rounds without this rank's gradient, skipped ones included."""
        return self.rounds - self.contributed

    def add(self, record: RoundRecord) -> None:
        self.rounds += 1
        self.contributed += record.contributed
        self.skipped += record.skipped
        self.history.append(record)

    def __repr__(self) -> str:
        return (
            f"Stats(rounds={self.rounds}, contributed={self.contributed}, late={self.late}, "
            f"skipped={self.skipped})"
        )
