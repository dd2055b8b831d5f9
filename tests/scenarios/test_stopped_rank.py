"""A rank that SIGSTOP holds for a while."""

import os
import random
import signal
import time

import pytest
from launching import run_ranks, start_ranks
from scenarios.told import PROGRAMS, assert_waited, told

pytestmark = pytest.mark.timed

STOP_S = 2


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """What ranks 0, 1 and 2 told in every phase; rank 2 is stopped before its 20th round."""
    folder = tmp_path_factory.mktemp("stopped")
    run = run_ranks(3, PROGRAMS / "stopped_rank.py", folder, timeout=60)
    assert run.returncode == 0, str(run)
    return [{facts["case"]: facts for facts in rank} for rank in told(folder, 3)]


def longest_round(facts):
    return max(end - begin for begin, end in facts["times"])


@pytest.mark.parametrize("case", ["room", "little room", "no backup"])
def test_all_ranks_end_with_the_same_bits(phases, case):
    assert len({rank[case]["digest"] for rank in phases}) == 1


def test_with_a_backup_and_room_in_the_window_nobody_notices(phases):
    assert longest_round(phases[0]["room"]) < 0.5
    assert longest_round(phases[1]["room"]) < 0.5
    assert phases[2]["room"]["late"] > 100  # the rounds it had missed
    assert phases[2]["room"]["times"][-1][1] > phases[0]["room"]["times"][-1][1]


@pytest.mark.parametrize("rank", [0, 1])
def test_when_the_window_is_full_the_others_wait_for_it(phases, rank):
    lengths = [end - begin for begin, end in phases[rank]["little room"]["times"]]
    blocked = lengths.index(max(lengths))
    assert lengths[blocked] > STOP_S / 2
    # Round 19 was the last one it had loaded: 30 results in the window, and the one being made.
    assert blocked in (20 + 30, 20 + 31)
    assert max(lengths[:blocked] + lengths[blocked + 1 :]) < 0.5


@pytest.mark.parametrize("rank", [0, 1])
def test_without_backups_the_others_wait_for_it(phases, rank):
    lengths = [end - begin for begin, end in phases[rank]["no backup"]["times"]]
    assert lengths.index(max(lengths)) == 20
    assert max(lengths) > STOP_S - 0.5


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_after_the_time_out_all_raise_an_error_that_names_it(phases, rank):
    facts = phases[rank]["time-out"]
    assert facts["error"] == "RoundTimeout"
    words = "2 of 3 contributions after {} s; missing rank 2"
    assert_waited(facts["text"], words, 0.7, facts["at"] - facts["began"])
    assert "raise timeout= or backup_workers=" in facts["text"]
    if rank != 2:
        assert 0.7 <= facts["at"] - facts["began"] < 2


def test_stops_at_random_moments_spoil_no_result_and_hold_up_nobody(tmp_path):
    rng = random.Random(5)
    stops = 0
    with start_ranks(3, PROGRAMS / "tight_loop.py", tmp_path, 6) as ranks:
        pids = ranks.pids()
        while not all(told(tmp_path, 3)):
            time.sleep(0.05)
        until = time.monotonic() + 5.5
        while time.monotonic() < until:
            victim = rng.choice(pids)
            os.kill(victim, signal.SIGSTOP)
            time.sleep(rng.uniform(0.005, 0.3))
            os.kill(victim, signal.SIGCONT)
            stops += 1
            time.sleep(rng.uniform(0.01, 0.05))
        run = ranks.wait(60)
    assert run.returncode == 0, str(run)
    facts = [rank[-1] for rank in told(tmp_path, 3)]
    assert stops > 15
    assert [rank["wrong"] for rank in facts] == [0, 0, 0]
    assert len({(rank["rounds"], rank["digest"]) for rank in facts}) == 1
    assert facts[0]["rounds"] > 500
    # A stop amid the work costs the others 0.1 s until they do it again, and no more.
    assert max(rank["longest"] for rank in facts) < 1
