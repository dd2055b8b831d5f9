"""What a run of the demo measures, from runs made up by hand."""

import dataclasses

import numpy as np
import pytest
from study_runs import run_backup, run_full, settings

from hvd_backup.study.experiment import PRESETS, Run, Settings
from hvd_backup.study.stragglers import DelayModel


def test_steps_are_timed_from_seal_to_seal_without_the_first_round():
    assert run_full().step_s == pytest.approx([0.3, 0.6, 0.3])
    assert run_backup().step_s == pytest.approx([0.2, 0.3, 0.2])


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


def test_each_repeat_has_a_seed_of_its_own():
    assert list(settings(seed=3, repeats=2).seeds) == [3, 4]
    with pytest.raises(ValueError, match="0 repeats: take 1 or more"):
        settings(repeats=0)


def test_by_chance_a_rank_is_late_in_b_of_r_rounds():
    assert settings().chance_of_being_late(1) == pytest.approx(1 / 3)
    assert settings().chance_of_being_late(0) == 0


def test_a_single_round_cannot_be_timed():
    with pytest.raises(ValueError, match="take 2 or more"):
        settings(rounds=1)


def test_every_data_set_has_a_preset():
    assert set(PRESETS) == {"digits", "mnist", "cifar10"}
    assert all(0 < preset.quick().target_accuracy < 1 for preset in PRESETS.values())
