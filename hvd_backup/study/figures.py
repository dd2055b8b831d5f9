"""The figures of the demo, drawn from the runs of all its seeds.

Pure functions: no clock, no MPI, no torch. Times are seconds unless a name says `_ms`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hvd_backup.study.experiment import Run, Settings
from hvd_backup.study.stragglers import Floats, observed

SMOOTH_SNAPSHOTS = 5


@dataclasses.dataclass(frozen=True)
class Series:
    """The runs of one setting of `backup_workers`, one per seed, in the order of the seeds."""

    runs: tuple[Run, ...]

    @property
    def backup_workers(self) -> int:
        """The same for all runs."""
        return self.runs[0].backup_workers

    @property
    def name(self) -> str:
        """`b0`, `b1`, ...: the key in summary.json."""
        return f"b{self.backup_workers}"

    @property
    def step_s(self) -> Floats:
        """The step times of all runs, float64 [runs * (rounds - 1)]."""
        return np.concatenate([run.step_s for run in self.runs])

    def kth_arrival_s(self) -> Floats:
        """`Run.kth_arrival_s` of all runs, [runs * (rounds - 1), ranks]."""
        return np.concatenate([run.kth_arrival_s() for run in self.runs])

    def late_share(self) -> Floats:
        """Share of all rounds that each rank was late in, 0 to 1, [ranks]."""
        share: Floats = 1 - np.concatenate([run.contributed for run in self.runs]).mean(axis=0)
        return share


def percentiles_ms(seconds: Floats) -> dict[str, float]:
    """p50, p95, p99 and mean of durations in seconds, as milliseconds."""
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    named = {"p50": p50, "p95": p95, "p99": p99, "mean": seconds.mean()}
    return {name: round(1e3 * float(value), 2) for name, value in named.items()}


def smooth_accuracy(run: Run) -> tuple[Floats, slice]:
    """Means of five neighboring snapshots, and which snapshots they are centered at.

    A single test is off by a percent or so: its first touch of a target is luck. Fewer than five
    snapshots stay as they are.
    """
    if len(run.test_accuracy) < SMOOTH_SNAPSHOTS:
        return run.test_accuracy, slice(None)
    ends = SMOOTH_SNAPSHOTS // 2
    weights = np.full(SMOOTH_SNAPSHOTS, 1 / SMOOTH_SNAPSHOTS)
    return np.convolve(run.test_accuracy, weights, mode="valid"), slice(ends, -ends)


def first_reaching(run: Run, target: float) -> int | None:
    """Index of the first snapshot whose smoothed accuracy is `target` or more, None without one."""
    smooth, centers = smooth_accuracy(run)
    reached = np.flatnonzero(smooth >= target - 1e-12)
    return int(reached[0]) + (centers.start or 0) if reached.size else None


def time_to_accuracy_s(run: Run, target: float) -> float | None:
    """Training time until `target` smoothed test accuracy, None if the run never reached it."""
    index = first_reaching(run, target)
    return None if index is None else round(float(run.snapshot_s[index]), 3)


def rounds_to_accuracy(run: Run, target: float) -> int | None:
    """Rounds until `target` smoothed test accuracy, None if the run never reached it."""
    index = first_reaching(run, target)
    return None if index is None else int(run.snapshot_round[index])


def middle(values: Sequence[float | None]) -> float | None:
    """The median, with None as the largest of all; None if it is one, or lies beside one."""
    found = float(np.median([np.inf if value is None else value for value in values]))
    return round(found, 3) if np.isfinite(found) else None


def kth_percentiles(kth_s: Floats) -> dict[str, dict[str, float]]:
    """`percentiles_ms` of each column that was observed in every round, by k (from 1)."""
    return {str(k): percentiles_ms(kth_s[:, k - 1]) for k in observed(kth_s)}


def summarize_series(series: Series, settings: Settings) -> dict[str, Any]:
    """The figures of the runs with one b, as they stand in summary.json."""
    target, runs = settings.target_accuracy, series.runs
    times = [time_to_accuracy_s(run, target) for run in runs]
    kth = series.kth_arrival_s()
    return {
        "step_ms": percentiles_ms(series.step_s),
        "time_to_accuracy_s": middle(times),
        "time_to_accuracy_by_seed_s": times,
        "rounds_to_accuracy": middle([rounds_to_accuracy(run, target) for run in runs]),
        "final_accuracy": _mean(runs, lambda run: run.test_accuracy[-1]),
        "final_test_loss": _mean(runs, lambda run: run.test_loss[-1]),
        "training_s": _mean(runs, lambda run: run.sealed_s[-1]),
        "dropped_per_rank": np.sum([~run.contributed for run in runs], axis=(0, 1)).tolist(),
        "skipped_per_rank": np.sum([run.skipped for run in runs], axis=(0, 1)).tolist(),
        "late_percent_per_rank": [round(100 * x, 1) for x in series.late_share().tolist()],
        "late_percent_by_chance": round(
            100 * settings.chance_of_being_late(series.backup_workers), 1
        ),
        "learning_rate": settings.scaled_learning_rate(series.backup_workers),
        "kth_arrival_ms": kth_percentiles(kth),
        "kth_arrival_after_first_ms": kth_percentiles(kth - kth[:, :1]),
        "replicas_identical": all(run.replicas_identical for run in runs),
    }


def _mean(runs: Sequence[Run], value: Callable[[Run], Any]) -> float:
    return round(float(np.mean([value(run) for run in runs])), 4)


def summarize(full: Series, backup: Series, settings: Settings) -> dict[str, Any]:
    """All of summary.json; `full` are the runs without backup workers."""
    both = {series.name: summarize_series(series, settings) for series in (full, backup)}
    mean_ratio = float(full.step_s.mean() / backup.step_s.mean())
    p50_ratio = float(np.median(full.step_s) / np.median(backup.step_s))
    kept = settings.quorum(backup.backup_workers) / settings.ranks
    return {
        **both,
        **compare(full, backup, settings.target_accuracy),
        "step_time_ratio": {"mean": round(mean_ratio, 3), "p50": round(p50_ratio, 3)},
        "normalized_speedup": round(mean_ratio * kept, 3),
        "replicas_identical": all(figures["replicas_identical"] for figures in both.values()),
        "settings": dataclasses.asdict(settings),
    }


def compare(full: Series, backup: Series, target: float) -> dict[str, Any]:
    """`speedup`: ratio of the times to `target`, median over the seeds; of each; and what it is.

    None, with the reason, unless every run of both reached the target: to leave out a seed that
    did not would flatter.
    """
    times = [[time_to_accuracy_s(run, target) for run in s.runs] for s in (full, backup)]
    nothing: dict[str, Any] = {"speedup": None, "speedup_by_seed": []}
    missing = [
        f"{series.name} in {of.count(None)} of {len(of)} runs"
        for series, of in zip((full, backup), times, strict=True)
        if None in of
    ]
    if missing:
        note = f"{target:.1%} test accuracy was never reached by {' and '.join(missing)}"
        return nothing | {"speedup_note": note}
    pairs = [(before or 0.0, after or 0.0) for before, after in zip(*times, strict=True)]
    if not all(after for _, after in pairs):
        note = f"{backup.name} reached {target:.1%} test accuracy before the clock started"
        return nothing | {"speedup_note": note}
    ratios = [round(before / after, 3) for before, after in pairs]
    return {
        "speedup": middle(ratios),
        "speedup_by_seed": ratios,
        "speedup_note": f"time to {target:.1%} test accuracy, {full.name} / {backup.name}, "
        "median over the seeds",
    }
