"""Round, RoundRecord and Stats, in a world of one."""

import pickle
import time

import numpy as np
import pytest

import hvd_backup as hb
from hvd_backup.rounds.reports import Stats


@pytest.fixture(scope="module", autouse=True)
def world():
    hb.init()
    yield
    hb.shutdown()


def made_round(number, *, arrived_ns=1_000_000_000, contributed=True):
    round_ = hb.Round.__new__(hb.Round)
    sealed_ns, waited_ns = 2_000_000_000, 500_000_000
    times = (0, sealed_ns, arrived_ns, waited_ns, 0)
    round_.__setstate__((number, [0], [arrived_ns], contributed, 1.0, *times))
    return round_


def test_stats_count_what_became_of_the_rounds():
    stats = Stats()
    assert (stats.rounds, stats.contributed, stats.late, stats.skipped) == (0, 0, 0, 0)
    stats.add(made_round(0))
    stats.add(made_round(1, contributed=False))
    stats.add(made_round(2, arrived_ns=0, contributed=False))
    assert (stats.rounds, stats.contributed, stats.late, stats.skipped) == (3, 1, 2, 1)
    assert [r.number for r in stats.history] == [0, 1, 2]
    assert [r.skipped for r in stats.history] == [False, False, True]
    assert repr(stats) == "Stats(rounds=3, contributed=1, late=2, skipped=1, abstained=0)"


def test_a_record_tells_the_times_of_its_round():
    stats = Stats()
    before = time.monotonic()
    stats.add(made_round(7))
    after = time.monotonic()
    record = stats.history[-1]
    times = (record.arrived_at_s, record.sealed_at_s, record.waited_s)
    assert (record.number, *times, record.contributed) == (7, 1.0, 2.0, 0.5, True)
    assert before <= record.stepped_at_s <= after


def test_a_history_is_read_like_a_list():
    stats = Stats()
    for number in range(5):
        stats.add(made_round(number))
    assert [r.number for r in stats.history[1:3]] == [1, 2]
    assert [r.number for r in reversed(stats.history)] == [4, 3, 2, 1, 0]
    with pytest.raises(IndexError):
        stats.history[5]


def test_a_long_history_forgets_its_beginning_and_keeps_its_sums():
    stats = Stats()
    for number in range(100_005):
        stats.add(made_round(number))
    assert stats.rounds == stats.contributed == 100_005
    assert len(stats.history) == 100_000
    assert stats.history[0].number == 5


def test_a_round_says_what_it_is():
    _, round_ = hb.partial_allreduce(np.ones(3))
    assert (round_.number, round_.contributors, round_.contributed) == (0, (0,), True)
    assert round_.weight == 1.0
    assert round_.arrivals_s == {0: 0.0}
    assert round_.sealed_s >= 0
    assert round_.waited_s >= 0
    assert "number=0" in repr(round_)


def test_a_round_cannot_be_changed():
    _, round_ = hb.partial_allreduce(np.ones(3))
    with pytest.raises(AttributeError):
        round_.number = 5


def test_a_round_travels():
    _, round_ = hb.partial_allreduce(np.ones(3), weight=2.5)
    copy = pickle.loads(pickle.dumps(round_))
    for field in ("number", "contributors", "contributed", "weight", "arrivals_s", "sealed_s"):
        assert getattr(copy, field) == getattr(round_, field)
    assert copy.waited_s == round_.waited_s


def test_the_value_and_its_round_have_names():
    one = hb.partial_allreduce(np.ones(3))
    assert one.value.shape == (3,)
    assert one.round.contributed
    many = hb.partial_allreduce([np.ones(3), np.ones((2, 2))])
    assert [value.shape for value in many.value] == [(3,), (2, 2)]
