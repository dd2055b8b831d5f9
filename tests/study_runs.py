"""Runs of the demo, made up by hand, for the tests of its figures and its report."""

import dataclasses

import numpy as np

from hvd_backup.study.experiment import Run, Settings
from hvd_backup.study.figures import Series

NAN = np.nan


def slower(run: Run) -> Run:
    """The same run, twice as slow."""
    return dataclasses.replace(run, sealed_s=2 * run.sealed_s, arrived_s=2 * run.arrived_s)


def full_series() -> Series:
    """Two seeds without backup workers: `run_full`, and that twice as slow."""
    return Series((run_full(), slower(run_full())))


def backup_series() -> Series:
    """Two seeds with one backup worker, alike."""
    return Series((run_backup(), run_backup()))


def settings(**changes) -> Settings:
    values = {
        "ranks": 3,
        "backup_workers": 1,
        "rounds": 4,
        "seed": 0,
        "repeats": 2,
        "data": None,
        "dataset": "digits",
        "target_accuracy": 0.9,
        "learning_rate": 0.01,
        "snapshot_every": 2,
    }
    return Settings(**(values | changes))


def run_full() -> Run:
    """Three ranks, four rounds, no backup workers; the last gradient seals each round."""
    arrived = np.array([[-0.2, -0.1, 0.0], [0.1, 0.2, 0.3], [0.5, 0.9, 0.4], [1.0, 1.1, 1.2]])
    return Run(
        backup_workers=0,
        sealed_s=arrived.max(axis=1),
        arrived_s=arrived,
        contributed=np.ones((4, 3), bool),
        skipped=np.zeros((4, 3), bool),
        loss=np.array([[3.0, 2.0, 1.0]] * 4),
        snapshot_round=np.array([2, 4]),
        test_accuracy=np.array([0.5, 0.95]),
        test_loss=np.array([1.0, 0.5]),
        digests=("a", "a", "a"),
    )


def run_backup() -> Run:
    """The same ranks with one backup worker; rank 1 gives up round 2, rank 2 is late otherwise."""
    contributed = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 1, 0]], bool)
    arrived = np.array([[-0.1, 0.0, 0.1], [0.1, 0.2, 0.3], [0.5, NAN, 0.4], [0.6, 0.7, 0.9]])
    return dataclasses.replace(
        run_full(),
        backup_workers=1,
        sealed_s=np.where(contributed, arrived, -np.inf).max(axis=1),
        arrived_s=arrived,
        contributed=contributed,
        skipped=np.isnan(arrived),
        loss=np.where(np.isnan(arrived), NAN, [3.0, 2.0, 1.0]),
    )
