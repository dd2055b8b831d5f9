"""What a rank can tell of the rounds it has been through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvd_backup._core import RoundReport


@dataclass(frozen=True)
class Round:
    """One round, as one rank saw it. All ranks agree on all but the last two fields."""

    number: int
    """Counted from 0 by each collective."""
    contributors: tuple[int, ...]
    """The ranks whose contribution is in the result, ascending."""
    weight: float
    """Sum of the contributors' weights; the result is divided by it."""
    arrivals_s: dict[int, float]
    """Contributor -> seconds from the first arrival of the round to its own."""
    sealed_s: float
    """Seconds from the first arrival to the seal."""
    contributed: bool
    """Whether this rank is a contributor; False: it was late, or skipped."""
    waited_s: float
    """Seconds this rank was blocked in the exchange."""

    @classmethod
    def from_report(cls, report: RoundReport) -> Round:
        first = report.first_at_s
        arrivals = zip(report.contributors, report.arrived_at_s, strict=True)
        return cls(
            number=report.number,
            contributors=tuple(report.contributors),
            weight=report.weight,
            arrivals_s={rank: at - first for rank, at in arrivals},
            sealed_s=report.sealed_at_s - first,
            contributed=report.contributed,
            waited_s=report.waited_s,
        )


@dataclass(frozen=True)
class RoundRecord:
    """A round in a rank's history. Points in time are on the host's CLOCK_MONOTONIC, in seconds."""

    number: int
    arrived_at_s: float | None
    """When this rank's gradient was complete; None when it skipped the round."""
    sealed_at_s: float
    stepped_at_s: float
    """When this rank had the result."""
    waited_s: float
    contributed: bool

    @property
    def skipped(self) -> bool:
        """The round was over before this rank had computed its gradient."""
        return self.arrived_at_s is None


@dataclass
class Stats:
    """The rounds of one optimizer on one rank."""

    history: list[RoundRecord] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return len(self.history)

    @property
    def contributed(self) -> int:
        """Rounds with this rank's gradient in the mean."""
        return sum(record.contributed for record in self.history)

    @property
    def late(self) -> int:
        """Rounds without this rank's gradient, skipped ones included."""
        return self.rounds - self.contributed

    @property
    def skipped(self) -> int:
        """Late rounds that this rank did not even compute."""
        return sum(record.skipped for record in self.history)
