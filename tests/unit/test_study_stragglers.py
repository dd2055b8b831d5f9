"""The delays of the demo, and the order statistics of arrivals."""

import numpy as np
import pytest

from hvd_backup.study.stragglers import DelayModel, kth_arrivals, observed

INF, NAN = np.inf, np.nan


@pytest.fixture(scope="module")
def delays() -> np.ndarray:
    return DelayModel().table_s(seed=3, ranks=5, steps=4000)


def test_a_delay_depends_on_seed_rank_and_step_alone():
    model = DelayModel()
    once = model.delay_s(seed=1, rank=2, step=3)
    assert once == DelayModel().delay_s(seed=1, rank=2, step=3)
    others = [model.delay_s(*key) for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2))]
    assert len({once, *others}) == 5


def test_a_longer_run_or_a_larger_world_meets_the_same_delays():
    model = DelayModel()
    small, large = model.table_s(7, ranks=2, steps=20), model.table_s(7, ranks=4, steps=30)
    assert np.array_equal(small, large[:20, :2])


def test_the_body_is_narrow_and_the_tail_heavy(delays):
    p50, p90, p99 = np.percentile(delays, [50, 90, 99])
    assert p50 == pytest.approx(0.010, rel=0.05)
    assert p90 < 2.2 * p50
    assert p99 > 15 * p50
    assert delays.max() > 60 * p50


def test_the_share_and_the_least_delay_of_stragglers_are_as_stated(delays):
    straggling = delays > 0.2
    assert straggling.mean() == pytest.approx(0.02, rel=0.15)
    assert not ((delays > 0.1) & ~straggling).any()


def test_the_tail_falls_with_the_stated_exponent():
    tail = DelayModel(jitter_median_s=0, tail_probability=1).table_s(0, ranks=1, steps=20000)
    hill = 1 / np.log(tail / 0.2).mean()  # Hill's estimator
    assert hill == pytest.approx(2.5, rel=0.05)


def test_the_mean_is_the_expected_delay(delays):
    assert delays.mean() == pytest.approx(DelayModel().mean_s, rel=0.1)


def test_ranks_straggle_independently(delays):
    correlation = np.corrcoef(delays.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.06


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"jitter_median_s": -1.0}, "cannot be negative"),
        ({"tail_scale_s": -0.1}, "cannot be negative"),
        ({"tail_probability": 1.5}, "0 to 1"),
        ({"tail_shape": 1.0}, "above 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DelayModel(**wrong)


def test_the_model_describes_itself_in_milliseconds_and_percent():
    assert "median 10 ms" in str(DelayModel())
    assert "2 % of the steps" in str(DelayModel())


def test_arrivals_are_sorted_within_each_round():
    arrived = np.array([[3.0, 1.0, 2.0], [4.0, 6.0, 5.0]])
    kth = kth_arrivals(arrived, np.ones((2, 3), bool))
    assert kth.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert observed(kth) == [1, 2, 3]


def test_a_rank_that_gave_up_counts_as_later_than_all_others():
    arrived = np.array([[NAN, 1.0, 2.0], [4.0, 3.0, NAN]])
    kth = kth_arrivals(arrived, ~np.isnan(arrived))
    assert kth.tolist() == [[1, 2, INF], [3, 4, INF]]
    assert observed(kth) == [1, 2]


def test_an_arrival_after_the_seal_is_not_observed_although_it_has_a_time():
    arrived = np.array([[9.0, 1.0, 2.0], [4.0, 3.0, NAN]])
    contributed = np.array([[False, True, True], [True, True, False]])
    assert kth_arrivals(arrived, contributed)[:, 2].tolist() == [INF, INF]


def test_one_censored_round_is_enough_to_leave_a_curve_out():
    arrived = np.array([[1.0, 2.0], [1.0, NAN], [1.0, 3.0]])
    assert observed(kth_arrivals(arrived, ~np.isnan(arrived))) == [1]
