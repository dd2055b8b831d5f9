"""The figures of the demo, from runs made up by hand."""

import dataclasses
import json

import numpy as np
import pytest
from study_runs import backup_series, full_series, run_backup, run_full, settings

from hvd_backup.study.experiment import Run
from hvd_backup.study.figures import (
    Series,
    compare,
    first_reaching,
    middle,
    percentiles_ms,
    rounds_to_accuracy,
    summarize,
    time_to_accuracy_s,
)


def run_with(accuracy: list[float]) -> Run:
    """A run with a snapshot after every second round, at 0.1 s a round."""
    snapshots = len(accuracy)
    return dataclasses.replace(
        run_full(),
        sealed_s=np.arange(2 * snapshots) / 10,
        snapshot_round=np.arange(1, snapshots + 1) * 2,
        test_accuracy=np.array(accuracy),
        test_loss=np.ones(snapshots),
    )


def test_percentiles_are_in_milliseconds():
    values = percentiles_ms(np.linspace(0.001, 0.101, 101))
    assert values == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "mean": 51.0}


def test_a_single_lucky_test_does_not_reach_a_target():
    lucky = run_with([0.5, 0.9, 0.5, 0.5, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])
    assert first_reaching(lucky, 0.8) == 6  # the five tests around it are the first with that mean
    assert time_to_accuracy_s(lucky, 0.8) == 1.3
    assert rounds_to_accuracy(lucky, 0.8) == 14
    assert time_to_accuracy_s(lucky, 0.9) is None


def test_a_single_bad_test_does_not_put_a_target_off_for_long():
    good = [0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    dip = [0.5, 0.9, 0.9, 0.9, 0.89, 0.91, 0.9, 0.9, 0.9]
    assert first_reaching(run_with(dip), 0.9) == first_reaching(run_with(good), 0.9) == 3


def test_fewer_than_five_tests_are_not_smoothed():
    assert time_to_accuracy_s(run_full(), 0.5) == 0.3  # after two rounds
    assert time_to_accuracy_s(run_full(), 0.9) == 1.2  # after four
    assert time_to_accuracy_s(run_full(), 0.99) is None


def test_the_median_counts_a_target_never_reached_as_the_longest_time():
    assert middle([3.0, 1.0, None]) == 3.0
    assert middle([1.0, None, None]) is None
    assert middle([1.0, None]) is None
    assert middle([1.0, 2.0]) == 1.5


def test_the_speedup_is_the_median_of_the_ratios_of_the_seeds():
    result = compare(full_series(), backup_series(), 0.9)
    ratios = [1.2 / 0.7, 2.4 / 0.7]
    assert result["speedup_by_seed"] == pytest.approx(ratios, abs=1e-3)
    assert result["speedup"] == pytest.approx(sum(ratios) / 2, abs=2e-3)
    assert "90.0% test accuracy, b0 / b1, median over the seeds" in result["speedup_note"]


def test_if_one_seed_never_reaches_the_target_there_is_no_speedup_but_a_reason():
    poor = dataclasses.replace(run_backup(), test_accuracy=np.array([0.1, 0.2]))
    result = compare(full_series(), Series((run_backup(), poor)), 0.9)
    assert result["speedup"] is None
    assert result["speedup_by_seed"] == []
    assert result["speedup_note"] == "90.0% test accuracy was never reached by b1 in 1 of 2 runs"
    both = compare(full_series(), backup_series(), 0.99)["speedup_note"]
    assert both.endswith("b0 in 2 of 2 runs and b1 in 2 of 2 runs")


def test_the_summary_has_the_figures_of_all_seeds():
    summary = summarize(full_series(), backup_series(), settings())
    assert summary == json.loads(json.dumps(summary))
    full, backup = summary["b0"], summary["b1"]
    for figures in (full, backup):
        assert {"p50", "p95", "p99"} <= set(figures["step_ms"])
        assert figures["final_accuracy"] == 0.95
    assert full["time_to_accuracy_by_seed_s"] == [1.2, 2.4]
    assert full["time_to_accuracy_s"] == 1.8
    assert backup["rounds_to_accuracy"] == 4
    assert full["dropped_per_rank"] == [0, 0, 0]
    assert backup["dropped_per_rank"] == [0, 2, 6]
    assert backup["skipped_per_rank"] == [0, 2, 0]
    assert summary["replicas_identical"] is True
    assert summary["settings"]["delay"]["tail_shape"] == 2.5


def test_who_is_late_is_told_in_percent_beside_what_chance_gives():
    summary = summarize(full_series(), backup_series(), settings())
    assert summary["b1"]["late_percent_per_rank"] == [0, 25, 75]
    assert summary["b1"]["late_percent_by_chance"] == 33.3
    assert summary["b0"]["late_percent_by_chance"] == 0


def test_the_summary_lists_arrivals_only_where_they_were_observed():
    summary = summarize(full_series(), backup_series(), settings())
    assert list(summary["b0"]["kth_arrival_ms"]) == ["1", "2", "3"]
    assert list(summary["b1"]["kth_arrival_ms"]) == ["1", "2"]
    assert list(summary["b1"]["kth_arrival_after_first_ms"]) == ["1", "2"]
    assert summary["b1"]["kth_arrival_after_first_ms"]["1"]["p99"] == 0
    assert summary["b1"]["kth_arrival_after_first_ms"]["2"]["p50"] == 100  # 0.1, 0.1, 0.1 s


def test_the_normalized_speedup_charges_for_the_dropped_gradients():
    summary = summarize(Series((run_full(),)), Series((run_backup(),)), settings())
    ratio = (1.2 / 3) / (0.7 / 3)
    assert summary["step_time_ratio"]["mean"] == pytest.approx(ratio, abs=1e-3)
    assert summary["normalized_speedup"] == pytest.approx(ratio * 2 / 3, abs=1e-3)


def test_one_deviating_replica_of_one_seed_is_told():
    odd = dataclasses.replace(run_backup(), digests=("a", "a", "b"))
    summary = summarize(full_series(), Series((run_backup(), odd)), settings())
    assert summary["replicas_identical"] is False
