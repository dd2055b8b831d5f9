"""Properties of partial_allreduce in worlds of every size, for every number of backup workers."""

import gc
import logging
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mpi.helpers import (
    EVERY_B,
    RANK,
    SIZE,
    assert_same_bits,
    contribution,
    delay,
    digest,
    mean,
    same_everywhere,
)

import hvd_backup as hb
from hvd_backup.world import runtime

pytestmark = pytest.mark.mpi

# Above 64 KB a round reads the ranks' private memory instead of a staged copy.
SIZES = (1, 5, 1000, 100003, 300000)
DTYPES = ("float16", "float32", "float64")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rank_gets_the_bits_of_the_mean_over_the_stated_contributors(dtype, size):
    seen = []
    for b in EVERY_B:
        for k in range(4 if size <= 1000 else 2):
            delay((dtype, size, b, k))
            mine = contribution(RANK, k, size, dtype)
            value, round_ = hb.partial_allreduce(mine, backup_workers=b)
            assert len(round_.contributors) == SIZE - b
            theirs = [contribution(rank, k, size, dtype) for rank in round_.contributors]
            assert_same_bits(value, mean(round_.contributors, theirs))
            seen.append((digest(value), round_.contributors, round_.number))
    same_everywhere(seen)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("size", [1, 300000])
def test_a_sleeping_rank_is_late_and_gets_the_result_all_the_same(size):
    late = 0
    for b in range(1, SIZE):
        for k in range(4):
            hb.barrier()
            sleeper = (b + k) % SIZE
            if sleeper == RANK:
                time.sleep(0.03)
            mine = contribution(RANK, k, size, "float32")
            value, round_ = hb.partial_allreduce(mine, backup_workers=b, name="asleep")
            theirs = [contribution(rank, k, size, "float32") for rank in round_.contributors]
            assert_same_bits(value, mean(round_.contributors, theirs))
            assert round_.contributed == (RANK in round_.contributors)
            late += sleeper not in round_.contributors
    # Not in every round: the machine may hold up the others for as long.
    assert late >= 2 * (SIZE - 1)


def test_a_rank_that_is_always_behind_gets_every_result():
    for b in EVERY_B:
        seen = []
        for k in range(30):
            if SIZE - 1 == RANK:
                time.sleep(0.001)
            mine = contribution(RANK, k, 64, "float64")
            value, round_ = hb.partial_allreduce(mine, backup_workers=b, name="behind", window=3)
            theirs = [contribution(rank, k, 64, "float64") for rank in round_.contributors]
            assert_same_bits(value, mean(round_.contributors, theirs))
            seen.append((round_.number, round_.contributors, digest(value)))
        assert [number for number, _, _ in seen] == list(range(30))
        same_everywhere(seen)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [7, 100003])
def test_contributions_count_by_their_weights(dtype, size):
    weights = [1.0, 0.5, 3.0, 2.0, 0.1, 17.0, 1e-3]
    for b in EVERY_B:
        for k in range(2):
            delay((dtype, size, b, k))
            mine = contribution(RANK, k, size, dtype)
            value, round_ = hb.partial_allreduce(mine, backup_workers=b, weight=weights[RANK])
            theirs = [contribution(rank, k, size, dtype) for rank in round_.contributors]
            counted = [weights[rank] for rank in round_.contributors]
            assert_same_bits(value, mean(round_.contributors, theirs, counted))
            assert round_.weight == pytest.approx(sum(counted), rel=1e-15)


def test_a_list_is_one_contribution():
    shapes = [("float32", (3, 4)), ("float64", ()), ("float16", (5,)), ("float32", (0, 2)),
              ("float32", (70, 300)), ("float64", (1, 1, 9)), ("float16", ())]  # fmt: skip
    seen = []
    for b in EVERY_B:
        for k in range(3):
            delay(("list", b, k), chance=1)
            batch = [contribution(RANK, i, shape, dtype) for i, (dtype, shape) in enumerate(shapes)]
            values, round_ = hb.partial_allreduce(batch, backup_workers=b)
            assert len(round_.contributors) == SIZE - b
            for i, (value, (dtype, shape)) in enumerate(zip(values, shapes, strict=True)):
                theirs = [contribution(rank, i, shape, dtype) for rank in round_.contributors]
                assert_same_bits(value, mean(round_.contributors, theirs))
            seen.append((round_.contributors, digest(*values)))
    same_everywhere(seen)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3)])
def test_an_array_of_any_shape_keeps_it(shape):
    for b in EVERY_B:
        mine = contribution(RANK, 1, shape, "float32")
        value, round_ = hb.partial_allreduce(mine, backup_workers=b)
        theirs = [contribution(rank, 1, shape, "float32") for rank in round_.contributors]
        assert isinstance(value, np.ndarray)
        assert_same_bits(value, mean(round_.contributors, theirs))


@pytest.mark.parametrize("size", [8, 100003])
def test_values_are_fresh_and_arguments_stay_as_they_were(size):
    values, copies = [], []
    mine = contribution(RANK, 0, size, "float32")
    before = mine.copy()
    for k in range(8):
        value, _ = hb.partial_allreduce(mine, backup_workers=SIZE - 1, name="fresh")
        values.append(value)
        copies.append(value.copy())
        assert_same_bits(mine, before)
        mine *= 2  # the caller's again as soon as the call returns
        before *= 2
        assert k < 1 or value is not values[-2]
    for value, copy in zip(values, copies, strict=True):
        assert_same_bits(value, copy)


@pytest.mark.parametrize("size", [3, 100003])
def test_infinities_and_nans_are_numbers_like_others(size):
    mine = np.full(size, RANK, np.float32)
    mine[0], mine[-1], mine[1] = np.inf, np.nan, -np.inf if RANK == 0 else 1
    value, _ = hb.partial_allreduce(mine)
    assert value[0] == np.inf
    assert np.isnan(value[-1])
    assert value[1] == -np.inf


def test_names_are_sequences_of_their_own():
    array = np.ones(4, np.float32)
    for k in range(5):
        _, first = hb.partial_allreduce(array, name="first")
        _, second = hb.partial_allreduce(array, name="second")
        _, again = hb.partial_allreduce(array, name="first")
        assert (first.number, second.number, again.number) == (2 * k, k, 2 * k + 1)


def test_more_kinds_of_calls_than_are_kept_give_right_results():
    for turn in range(2):
        for size in range(1, 41):
            mine = contribution(RANK, turn, size, "float32")
            value, round_ = hb.partial_allreduce(mine, backup_workers=size % SIZE)
            theirs = [contribution(rank, turn, size, "float32") for rank in round_.contributors]
            assert_same_bits(value, mean(round_.contributors, theirs))


@pytest.mark.parametrize("b", sorted({0, SIZE - 1}))
def test_interleaved_kinds_of_calls_do_not_mix(b):
    rng = random.Random(b)  # all ranks draw alike
    rounds = dict.fromkeys((10, 11, 20000, 30000), 0)
    seen = []
    for k in range(60):
        size = rng.choice(list(rounds))
        delay(("interleaved", k), seconds=0.002, chance=0.2)
        mine = contribution(RANK, k, size, "float32")
        value, round_ = hb.partial_allreduce(mine, backup_workers=b, name="interleaved")
        theirs = [contribution(rank, k, size, "float32") for rank in round_.contributors]
        assert_same_bits(value, mean(round_.contributors, theirs))
        assert round_.number == rounds[size]
        rounds[size] += 1
        seen.append(round_.contributors)
    same_everywhere(seen)


def test_a_round_stays_open_for_its_grace():
    for b in EVERY_B:
        hb.barrier()
        if SIZE - 1 == RANK:
            time.sleep(0.02)
        start = time.monotonic()
        _, round_ = hb.partial_allreduce(np.ones(3), backup_workers=b, grace=20.0)
        assert round_.contributors == tuple(range(SIZE))
        assert time.monotonic() - start < 15  # ended by the last arrival, not by the clock


@pytest.mark.mpi(min_size=2)
def test_a_round_ends_with_its_grace():
    mine = contribution(RANK, 0, 10, "float32")
    ended = 0
    for b in range(1, SIZE):
        hb.partial_allreduce(mine, backup_workers=b, grace=0.03)  # the first one sets up
        hb.barrier()
        if SIZE - 1 == RANK:
            time.sleep(0.15)
        value, round_ = hb.partial_allreduce(mine, backup_workers=b, grace=0.03)
        assert SIZE - b <= len(round_.contributors) <= SIZE
        ended += SIZE - 1 not in round_.contributors
        theirs = [contribution(rank, 0, 10, "float32") for rank in round_.contributors]
        assert_same_bits(value, mean(round_.contributors, theirs))
        same_everywhere(round_.contributors)
    assert ended >= SIZE // 2


def test_a_round_tells_how_it_went():
    for k in range(3):
        if RANK == 0:
            time.sleep(0.01)
        start = time.monotonic()
        _, round_ = hb.partial_allreduce(np.zeros(3), name="told")
        assert round_.number == k
        assert round_.contributed
        assert round_.weight == SIZE
        assert list(round_.arrivals_s) == list(round_.contributors) == list(range(SIZE))
        assert min(round_.arrivals_s.values()) == 0
        assert max(round_.arrivals_s.values()) <= round_.sealed_s + 1e-9
        assert 0 <= round_.waited_s <= time.monotonic() - start
        same_everywhere(round_.arrivals_s, round_.sealed_s, round_.weight)


def test_a_refused_argument_on_one_rank_disturbs_nobody():
    array = np.ones(5, np.float32)
    if RANK == 0:
        for weight in (float("nan"), float("inf"), -1.0):
            with pytest.raises(ValueError, match=r"to abstain. or between"):
                hb.partial_allreduce([array], name="refused", weight=weight)
        with pytest.raises(TypeError, match="int64"):
            hb.partial_allreduce(np.ones(5, np.int64))
        with pytest.raises(ValueError, match="backup_workers"):
            hb.partial_allreduce(array, backup_workers=SIZE)
    value, _ = hb.partial_allreduce([array], name="refused")
    assert_same_bits(value[0], array)


def test_the_environment_gives_the_default_of_b(monkeypatch):
    hb.shutdown()
    monkeypatch.setenv("HVD_BACKUP_WORKERS", str(SIZE - 1))
    hb.init()
    try:
        _, round_ = hb.partial_allreduce(np.ones(3))
        assert len(round_.contributors) == 1
        _, round_ = hb.partial_allreduce(np.ones(3), backup_workers=0)
        assert len(round_.contributors) == SIZE
    finally:
        hb.shutdown()
        monkeypatch.delenv("HVD_BACKUP_WORKERS")
        hb.init()


def test_plans_that_are_no_longer_kept_give_their_memory_back():
    def open_files():
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    def twenty_plans(first):
        for size in range(first, first + 20):
            hb.partial_allreduce([np.zeros(size)], name="given back")

    twenty_plans(1)
    before = open_files()
    twenty_plans(100)
    until = time.monotonic() + 5  # between nodes the service looks for what is over now and then
    while open_files() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert open_files() <= before


def test_where_the_kernel_forbids_reading_other_processes_arrays_are_copied(monkeypatch):
    monkeypatch.setattr(runtime.current(), "remote_reads", False)
    for b in EVERY_B:
        mine = contribution(RANK, b, 300000, "float32")
        value, round_ = hb.partial_allreduce(mine, backup_workers=b, name="staged")
        theirs = [contribution(rank, b, 300000, "float32") for rank in round_.contributors]
        assert_same_bits(value, mean(round_.contributors, theirs))
        same_everywhere(digest(value))


@pytest.mark.skipif(SIZE > 1, reason="threads of several ranks take turns in different orders")
def test_threads_of_a_process_take_turns():
    totals = dict.fromkeys(range(4), 0.0)

    def go(k):
        for _ in range(50):
            totals[k] += float(hb.partial_allreduce(np.full(10 + k, 1.0)).value.sum())
            totals[k] += float(hb.allreduce(np.full(10 + k, 1.0)).sum())

    threads = [threading.Thread(target=go, args=(k,)) for k in totals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == {k: 100.0 * (10 + k) for k in totals}


@pytest.mark.mpi(min_size=2)
def test_a_wait_that_stalls_is_warned_of_after_the_configured_time(caplog, monkeypatch):
    world = runtime.current()
    monkeypatch.setattr(world, "config", replace(world.config, stall_warning=0.3))
    hb.partial_allreduce(np.ones(3), name="stalls")
    with caplog.at_level(logging.WARNING, "hvd_backup"):
        if RANK == SIZE - 1:
            time.sleep(1)
        hb.partial_allreduce(np.ones(3), name="stalls")
    said = [r.getMessage() for r in caplog.records if "'stalls'" in r.getMessage()]
    if RANK == SIZE - 1:
        assert said == []
    else:
        assert len(said) == 1
        assert f"missing rank {SIZE - 1}" in said[0]
