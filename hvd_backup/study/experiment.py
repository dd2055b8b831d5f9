"""What the demo asks of a training run, and what the run measures.

Pure data and functions: no clock, no MPI, no torch. Times are seconds unless a name says `_ms`.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_backup.study.stragglers import DelayModel, Floats, kth_arrivals


@dataclass(frozen=True)
class Preset:
    """What suits a data set: see the fields of the same names in `Settings`."""

    learning_rate: float
    target_accuracy: float
    snapshot_every: int

    def quick(self) -> "Preset":
        """For a hundred rounds: learns faster, and aims lower."""
        return Preset(2 * self.learning_rate, round(self.target_accuracy - 0.15, 4), 5)


# Digits: 93 %, as the accuracy levels off at 95 to 96 %, where reaching it is a matter of luck.
PRESETS = {
    "digits": Preset(learning_rate=0.003, target_accuracy=0.93, snapshot_every=5),
    "mnist": Preset(learning_rate=0.004, target_accuracy=0.95, snapshot_every=20),
    "cifar10": Preset(learning_rate=0.004, target_accuracy=0.50, snapshot_every=20),
}


@dataclass(frozen=True)
class Settings:
    """One experiment: runs without and with backup workers, a pair for each seed, share all of it.

    seed, repeats: the seeds are seed, seed + 1, ...; each decides delays, data order and parameters
    data: folder of the images, None for scikit-learn's digits; dataset: their name
    target_accuracy: test accuracy to be reached, 0 to 1
    learning_rate: per contribution; a run multiplies it by its quorum (linear scaling)
    snapshot_every: rounds between two snapshots of the parameters, tested after the training
    batch_size: images per rank and step
    test_images: how many images of the test set are used, at most
    """

    ranks: int
    backup_workers: int
    rounds: int
    seed: int
    repeats: int
    data: str | None
    dataset: str
    target_accuracy: float
    learning_rate: float
    snapshot_every: int
    batch_size: int = 16
    momentum: float = 0.9
    test_images: int = 2000
    delay: DelayModel = dataclasses.field(default_factory=DelayModel)

    def __post_init__(self) -> None:
        if not 1 <= self.backup_workers < self.ranks:
            raise ValueError(
                f"{self.backup_workers} backup workers among {self.ranks} ranks: "
                f"there must be at least 1 and at most {self.ranks - 1}"
            )
        if self.repeats < 1:
            raise ValueError(f"{self.repeats} repeats: take 1 or more")
        if self.rounds < 2:
            raise ValueError(f"{self.rounds} rounds are too few to time a step: take 2 or more")

    @property
    def seeds(self) -> range:
        """The seeds of the repeats."""
        return range(self.seed, self.seed + self.repeats)

    def chance_of_being_late(self, backup_workers: int) -> float:
        """Share of the rounds that a rank misses if all ranks are alike: b / R."""
        return backup_workers / self.ranks

    def quorum(self, backup_workers: int) -> int:
        """Contributions that seal a round."""
        return self.ranks - backup_workers

    def scaled_learning_rate(self, backup_workers: int) -> float:
        """Linear scaling: the batch of a round has `quorum` parts, so has the learning rate."""
        return self.learning_rate * self.quorum(backup_workers)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read what `save` wrote."""
        values = json.loads(path.read_text())
        return cls(**{**values, "delay": DelayModel(**values["delay"])})


def run_name(backup_workers: int, seed: int) -> str:
    """The name of a run's files."""
    return f"b{backup_workers}-seed{seed}"


@dataclass(frozen=True)
class Run:
    """What one training run measured, on every rank.

    The clock starts at the seal of round 0: that round also pays for set-up and is left out.

    sealed_s: float64 [rounds]
    arrived_s: float64 [rounds, ranks], NaN where the rank gave the round up
    contributed, skipped: bool [rounds, ranks]
    loss: float64 [rounds, ranks], training loss of the rank's own batch, NaN where not computed
    snapshot_round: int64 [snapshots], how many rounds had been applied
    test_accuracy, test_loss: float64 [snapshots], accuracy in 0 to 1
    digests: one hash of parameters and optimizer state per rank
    """

    backup_workers: int
    sealed_s: Floats
    arrived_s: Floats
    contributed: NDArray[np.bool_]
    skipped: NDArray[np.bool_]
    loss: Floats
    snapshot_round: NDArray[np.int64]
    test_accuracy: Floats
    test_loss: Floats
    digests: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write as a numpy archive."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        np.savez_compressed(path, **values)

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Read what `save` wrote."""
        with np.load(path) as archive:
            values: dict[str, Any] = dict(archive)
        values["backup_workers"] = int(values["backup_workers"])
        values["digests"] = tuple(values["digests"].tolist())
        return cls(**values)

    @property
    def step_s(self) -> Floats:
        """Time from seal to seal, float64 [rounds - 1]: the pace of the whole world."""
        return np.diff(self.sealed_s)

    @property
    def round_loss(self) -> Floats:
        """Training loss over the batch of each round, that is its contributors', [rounds]."""
        loss: Floats = np.nanmean(np.where(self.contributed, self.loss, np.nan), axis=1)
        return loss

    @property
    def snapshot_s(self) -> Floats:
        """When the parameters of each snapshot were there, [snapshots]."""
        return self.sealed_s[self.snapshot_round - 1]

    @property
    def replicas_identical(self) -> bool:
        """True if all ranks ended with the same bits."""
        return len(set(self.digests)) == 1

    def kth_arrival_s(self) -> Floats:
        """When the k-th gradient was there, after the round opened, [rounds - 1, ranks].

        A round opens when the one before is sealed. Infinity means: later than the seal.
        """
        opened = self.sealed_s[:-1, np.newaxis]
        return kth_arrivals(self.arrived_s[1:] - opened, self.contributed[1:])


def percentiles_ms(seconds: Floats) -> dict[str, float]:
    """p50, p95, p99 and mean of durations in seconds, as milliseconds."""
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    named = {"p50": p50, "p95": p95, "p99": p99, "mean": seconds.mean()}
    return {name: round(1e3 * float(value), 2) for name, value in named.items()}
