"""Stragglers cost the others nothing: the figures of the project's first promise.

A machine that others use can spoil one measurement: a figure that is missed is measured once more,
with a warning.
"""

import warnings
from itertools import pairwise

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, percentile, told

pytestmark = pytest.mark.timed

CASES = ("four alone", "always slow", "b=1", "b=0")
OTHERS = range(4)


def measure(folder, *cases):
    """Case -> rank -> what the rank told of it."""
    run = run_ranks(5, PROGRAMS / "stragglers.py", folder, *cases, timeout=120)
    assert run.returncode == 0, str(run)
    ranks = [{facts["case"]: facts for facts in rank} for rank in told(folder, 5)]
    return {case: [rank[case] for rank in ranks if case in rank] for case in cases}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("stragglers"), *CASES)


def check_twice_at_most(check, measured, folder, *cases):
    try:
        check(measured)
    except AssertionError as missed:
        warnings.warn(f"measured again: {missed}", stacklevel=2)
        check(measure(folder, *cases))


def step_times(ranks):
    """Seconds from step to step of the four ranks that are not slow."""
    histories = [ranks[rank]["stepped_at"] for rank in OTHERS]
    return [b - a for history in histories for a, b in pairwise(history)]


def rounds_per_second(ranks):
    history = ranks[0]["stepped_at"]
    return (len(history) - 1) / (history[-1] - history[0])


def test_now_and_then_20_times_slower_costs_nothing_with_a_backup(measured, tmp_path):
    def check(measured):
        times = step_times(measured["b=1"])
        assert percentile(times, 99) < 1.5 * percentile(times, 50)

    check_twice_at_most(check, measured, tmp_path, "b=1")


def test_now_and_then_20_times_slower_costs_its_time_without_backups(measured):
    times = step_times(measured["b=0"])
    assert percentile(times, 99) > 10 * percentile(times, 50)


def test_always_10_times_slower_costs_nothing_with_attempt(measured, tmp_path):
    def check(measured):
        alone = rounds_per_second(measured["four alone"])
        assert rounds_per_second(measured["always slow"]) > 0.9 * alone

    check_twice_at_most(check, measured, tmp_path, "four alone", "always slow")


@pytest.mark.parametrize("case", ["always slow", "b=1"])
def test_the_slow_rank_never_falls_out_of_the_window(measured, case):
    # Nobody ever waited for it; 0.1 s is what a busy machine can make of looking.
    assert max(rank["waited_for_window"] for rank in measured[case]) < 0.1
    slow = measured[case][-1]
    behind = [
        sum(sealed < stepped for sealed in slow["sealed_at"]) - (round_ + 1)
        for round_, stepped in enumerate(slow["stepped_at"])
    ]
    assert max(behind) < 40  # of 64; 20 is what it sleeps through
    assert behind[-1] == 0


def test_the_slow_rank_works_for_rounds_that_are_open(measured):
    slow = measured["always slow"][-1]
    assert slow["skipped"] >= 55  # it leaves nearly every attempt: its gradient takes ten rounds
    assert slow["useful_share"] > 0.5
    assert measured["b=1"][-1]["contributed"] > 50  # in its quick steps it contributes


@pytest.mark.parametrize("case", CASES)
def test_all_replicas_are_identical_all_the_same(measured, case):
    assert len({rank["digest"] for rank in measured[case]}) == 1
