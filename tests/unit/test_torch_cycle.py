"""The states of a DistributedOptimizer between two steps."""

import contextlib
import itertools

import pytest

from hvd_backup.torch.cycle import Cycle, State


def one_step(cycle):
    contributes = cycle.begin_round("step()")
    cycle.end_round()
    assert cycle.state is State.AGREED
    cycle.begin_step()
    assert cycle.state is State.STEPPING
    cycle.end_step()
    assert cycle.state is State.COMPUTING
    return contributes


def test_a_step_is_a_round_and_the_optimizers_own_step():
    cycle = Cycle()
    assert one_step(cycle)
    assert one_step(cycle)


def test_an_attempt_that_was_overtaken_contributes_nothing_to_one_round():
    cycle = Cycle()
    cycle.begin_attempt()
    cycle.end_attempt(overtaken=True)
    assert cycle.state is State.OVERTAKEN
    assert not one_step(cycle)
    assert one_step(cycle)


def test_an_attempt_that_ran_to_its_end_contributes():
    cycle = Cycle()
    cycle.begin_attempt()
    cycle.end_attempt(overtaken=False)
    assert one_step(cycle)


@pytest.mark.parametrize("call", ["step()", "synchronize()"])
def test_no_round_is_made_within_an_attempt(call):
    cycle = Cycle()
    cycle.begin_attempt()
    with pytest.raises(RuntimeError, match=rf"{call[:-2]}\(\) belongs after the attempt\(\) block"):
        cycle.begin_round(call)
    with pytest.raises(RuntimeError, match="one block per step"):
        cycle.begin_attempt()
    assert cycle.state is State.ATTEMPTING


def test_after_a_round_that_raised_the_gradients_are_the_ranks_own():
    cycle = Cycle()
    one_step(cycle)
    cycle.begin_round("step()")  # and no end_round()
    assert cycle.state is State.COMPUTING


def test_a_retired_one_refuses_whatever_it_is_asked_until_it_is_closed():
    cycle = Cycle()
    cycle.retire("another has taken over")
    for call in (cycle.begin_attempt, cycle.check_not_retired, lambda: cycle.begin_round("step()")):
        with pytest.raises(RuntimeError, match="another has taken over"):
            call()
    cycle.close()
    cycle.check_not_retired()
    assert cycle.state is State.CLOSED


EVENTS = {
    "begin_attempt": Cycle.begin_attempt,
    "end_attempt": lambda cycle: cycle.end_attempt(overtaken=True),
    "begin_round": lambda cycle: cycle.begin_round("step()"),
    "end_round": Cycle.end_round,
    "begin_step": Cycle.begin_step,
    "end_step": Cycle.end_step,
    "start_anew": Cycle.start_anew,
}


@pytest.mark.parametrize("events", list(itertools.permutations(EVENTS, 3)), ids="-".join)
def test_nothing_takes_a_closed_or_retired_one_back(events):
    for end, state in ((Cycle.close, State.CLOSED), (lambda c: c.retire("!"), State.RETIRED)):
        cycle = Cycle()
        end(cycle)
        for name in events:
            with contextlib.suppress(RuntimeError):
                EVENTS[name](cycle)
            assert cycle.state is state
