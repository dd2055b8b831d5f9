"""The figures of the demo, from runs made up by hand."""

import dataclasses
import json

import numpy as np
import pytest
from study_runs import run_backup, run_full, settings

from hvd_backup.study.experiment import (
    PRESETS,
    Run,
    Settings,
    compare,
    percentiles_ms,
    summarize,
    time_to_accuracy_s,
)
from hvd_backup.study.stragglers import DelayModel


def test_steps_are_timed_from_seal_to_seal_without_the_first_round():
    assert run_full().step_s == pytest.approx([0.3, 0.6, 0.3])
    assert run_backup().step_s == pytest.approx([0.2, 0.3, 0.2])


def test_percentiles_are_in_milliseconds():
    values = percentiles_ms(np.linspace(0.001, 0.101, 101))
    assert values == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "mean": 51.0}


def test_the_loss_of_a_round_is_that_of_its_contributors():
    assert run_full().round_loss.tolist() == [2, 2, 2, 2]
    assert run_backup().round_loss.tolist() == [2.5, 2.5, 2, 2.5]


def test_arrivals_count_from_the_opening_of_the_round():
    assert run_full().kth_arrival_s()[1] == pytest.approx([0.1, 0.2, 0.6])


def test_the_last_arrival_is_the_step_time_without_backup_workers():
    run = run_full()
    assert run.kth_arrival_s()[:, -1] == pytest.approx(run.step_s)


def test_with_a_backup_worker_the_last_arrival_is_not_observed():
    run = run_backup()
    kth = run.kth_arrival_s()
    assert kth[:, 1] == pytest.approx(run.step_s)
    assert np.isinf(kth[:, 2]).all()


def test_the_time_to_an_accuracy_is_that_of_the_first_snapshot_to_reach_it():
    assert time_to_accuracy_s(run_full(), 0.5) == 0.3  # after two rounds
    assert time_to_accuracy_s(run_full(), 0.9) == 1.2  # after four
    assert time_to_accuracy_s(run_backup(), 0.9) == 0.7


def test_an_accuracy_never_reached_has_no_time():
    assert time_to_accuracy_s(run_full(), 0.99) is None


def test_a_later_dip_does_not_undo_an_accuracy():
    run = dataclasses.replace(run_full(), test_accuracy=np.array([0.95, 0.85]))
    assert time_to_accuracy_s(run, 0.9) == 0.3


def test_the_speedup_is_the_ratio_of_the_times():
    speedup, note = compare(run_full(), run_backup(), 0.9)
    assert speedup == pytest.approx(1.2 / 0.7, abs=1e-3)
    assert "90.0% test accuracy, b0 / b1" in note


def test_without_reaching_the_target_there_is_no_speedup_but_a_reason():
    poor = dataclasses.replace(run_backup(), test_accuracy=np.array([0.1, 0.2]))
    assert compare(run_full(), poor, 0.9) == (None, "b1 never reached 90.0% test accuracy")
    assert "b0 and b1 never" in compare(run_full(), poor, 0.99)[1]


def test_the_summary_has_what_the_issue_asks_for():
    summary = summarize(run_full(), run_backup(), settings())
    assert summary == json.loads(json.dumps(summary))
    for name in ("b0", "b1"):
        assert {"p50", "p95", "p99"} <= set(summary[name]["step_ms"])
        assert summary[name]["final_accuracy"] == 0.95
    assert summary["b0"]["dropped_per_rank"] == [0, 0, 0]
    assert summary["b1"]["dropped_per_rank"] == [0, 1, 3]
    assert summary["b1"]["skipped_per_rank"] == [0, 1, 0]
    assert summary["b1"]["time_to_accuracy_s"] == 0.7
    assert summary["b1"]["rounds_to_accuracy"] == 4
    assert summary["replicas_identical"] is True
    assert summary["settings"]["delay"]["tail_shape"] == 2.5


def test_the_summary_lists_arrivals_only_where_they_were_observed():
    summary = summarize(run_full(), run_backup(), settings())
    assert list(summary["b0"]["kth_arrival_ms"]) == ["1", "2", "3"]
    assert list(summary["b1"]["kth_arrival_ms"]) == ["1", "2"]
    assert list(summary["b1"]["kth_arrival_after_first_ms"]) == ["1", "2"]
    assert summary["b1"]["kth_arrival_after_first_ms"]["1"]["p99"] == 0
    assert summary["b1"]["kth_arrival_after_first_ms"]["2"]["p50"] == 100  # 0.1, 0.1, 0.1 s


def test_the_normalized_speedup_charges_for_the_dropped_gradients():
    summary = summarize(run_full(), run_backup(), settings())
    ratio = (1.2 / 3) / (0.7 / 3)
    assert summary["step_time_ratio"]["mean"] == pytest.approx(ratio, abs=1e-3)
    assert summary["normalized_speedup"] == pytest.approx(ratio * 2 / 3, abs=1e-3)


def test_one_deviating_replica_is_told():
    odd = dataclasses.replace(run_backup(), digests=("a", "a", "b"))
    assert summarize(run_full(), odd, settings())["replicas_identical"] is False


def test_a_run_survives_being_saved(tmp_path):
    run = run_backup()
    run.save(tmp_path / "b1.npz")
    loaded = Run.load(tmp_path / "b1.npz")
    for field in dataclasses.fields(Run):
        before, after = getattr(run, field.name), getattr(loaded, field.name)
        assert np.array_equal(before, after, equal_nan=isinstance(before, np.ndarray))
        assert type(before) is type(after)


def test_settings_survive_being_saved(tmp_path):
    written = settings(delay=DelayModel(tail_probability=0.1), data="/some/where")
    written.save(tmp_path / "settings.json")
    assert Settings.load(tmp_path / "settings.json") == written


def test_the_learning_rate_follows_the_number_of_gradients_in_a_round():
    assert settings().scaled_learning_rate(0) == pytest.approx(0.03)
    assert settings().scaled_learning_rate(1) == pytest.approx(0.02)


@pytest.mark.parametrize("workers", [0, 3, -1])
def test_backup_workers_must_leave_a_quorum(workers):
    with pytest.raises(ValueError, match="at least 1 and at most 2"):
        settings(backup_workers=workers)


def test_a_single_round_cannot_be_timed():
    with pytest.raises(ValueError, match="take 2 or more"):
        settings(rounds=1)


def test_every_data_set_has_a_preset():
    assert set(PRESETS) == {"digits", "mnist", "cifar10"}
    assert all(0 < preset.quick().target_accuracy < 1 for preset in PRESETS.values())
