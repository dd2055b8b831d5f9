"""Round, RoundRecord and Stats, in a world of one."""

import pickle

import numpy as np
import pytest

import hvd_backup as hb
from hvd_backup.reports import RoundRecord, Stats


@pytest.fixture(scope="module", autouse=True)
def world():
    hb.init()
    yield
    hb.shutdown()


def record(number, *, arrived=1.0, contributed=True):
    return RoundRecord(number, arrived, 2.0, 3.0, 0.5, contributed)


def test_stats_count_what_became_of_the_rounds():
    stats = Stats()
    assert (stats.rounds, stats.contributed, stats.late, stats.skipped) == (0, 0, 0, 0)
    stats.add(record(0))
    stats.add(record(1, contributed=False))
    stats.add(record(2, arrived=None, contributed=False))
    assert (stats.rounds, stats.contributed, stats.late, stats.skipped) == (3, 1, 2, 1)
    assert [r.number for r in stats.history] == [0, 1, 2]
    assert [r.skipped for r in stats.history] == [False, False, True]
    assert repr(stats) == "Stats(rounds=3, contributed=1, late=2, skipped=1)"


def test_a_long_history_forgets_its_beginning_and_keeps_its_sums():
    stats = Stats()
    for number in range(100_005):
        stats.add(record(number))
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
