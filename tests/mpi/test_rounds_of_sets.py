"""DistributedOptimizer on a process set: its ranks train among themselves."""

import copy
import time

import pytest
import torch
from mpi.helpers import NODE_OF, RANK, SIZE
from mpi.training import LATE_WORDS, batch, replica, small_model, tensor_bits, train

import hvd_backup as hb
import hvd_backup.torch as hvd
from hvd_backup.world import runtime

pytestmark = [pytest.mark.mpi(min_size=2), pytest.mark.timeout(120)]

HALVES = [[r for r in range(SIZE) if r % 2 == odd] for odd in (0, 1)]


@pytest.fixture
def half():
    """The set of this rank's half: the ranks with even numbers, or those with odd ones."""
    made = [hvd.add_process_set(ranks) for ranks in HALVES]
    yield made[RANK % 2]
    for one in made:
        assert hvd.remove_process_set(one)


@pytest.fixture
def again():
    """The world has failed in the test, and is left and joined again."""
    yield
    hb.shutdown()
    hb.init()


def distribute(model, process_set, **options):
    for param in model.parameters():
        hvd.broadcast_(param.data, process_set.ranks[0], process_set=process_set)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return hvd.DistributedOptimizer(
        optimizer, model.named_parameters(), process_set=process_set, **options
    )


@pytest.mark.parametrize("late", LATE_WORDS)
def test_each_half_has_replicas_of_its_own(half, late):
    model, b = small_model(seed=RANK), min(1, half.size() - 1)
    model.load_state_dict(hvd.broadcast_object(model.state_dict(), 0))
    optimizer = distribute(model, half, backup_workers=b, late=late)
    train(model, optimizer, 25, attempt=b > 0)
    everybody = hvd.allgather_object(replica(model, optimizer))
    for rank, theirs in enumerate(everybody):
        assert (theirs == everybody[RANK]) == (rank % 2 == RANK % 2), rank
    round_ = optimizer.last_round
    assert len(round_.contributors) == half.size() - b
    assert set(round_.contributors) <= set(range(half.size()))
    stats = optimizer.stats()
    assert stats.rounds == stats.contributed + stats.late == 25
    optimizer.close()


def test_without_backups_a_half_trains_on_its_own_large_batch(half):
    model = small_model(seed=3)
    alone = copy.deepcopy(model)
    optimizer = distribute(model, half)
    local = torch.optim.SGD(alone.parameters(), lr=0.05, momentum=0.9)
    for step in range(5):
        train(model, optimizer, 1, first=step)
        parts = [batch(step, rank) for rank in half.ranks]
        x, y = (torch.cat(part) for part in zip(*parts, strict=True))
        local.zero_grad()
        torch.nn.functional.cross_entropy(alone(x), y).backward()
        local.step()
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    optimizer.close()


def test_sets_go_through_different_numbers_of_rounds_and_the_world_through_its_own(half):
    ours, all_of_us = small_model(seed=1), small_model(seed=2)
    of_half = distribute(ours, half)
    of_all = distribute(all_of_us, hvd.global_process_set)
    train(ours, of_half, 4 + 3 * (RANK % 2))
    train(all_of_us, of_all, 3)
    train(ours, of_half, 2)
    hvd.barrier()
    assert of_half.stats().rounds == 6 + 3 * (RANK % 2)
    assert of_all.stats().rounds == 3
    bits = hvd.allgather_object([tensor_bits(p) for p in all_of_us.parameters()])
    assert all(theirs == bits[0] for theirs in bits)
    of_half.close()
    of_all.close()


def test_outside_of_the_set_the_optimizer_is_a_local_one():
    some = hvd.add_process_set(range(SIZE - 1))
    model = small_model(seed=0)
    alone = copy.deepcopy(model)
    optimizer = distribute(model, some) if some.included() else None
    if optimizer is None:
        plain = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        optimizer = hvd.DistributedOptimizer(plain, process_set=some)
        assert optimizer is plain
    train(model, optimizer, 3, attempt=True)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(batch(3)[0]), batch(3)[1]).backward()
    optimizer.synchronize()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    with optimizer.skip_synchronize():
        optimizer.step()
    assert optimizer.stats().rounds == (4 if some.included() else 0)
    if not some.included():
        assert optimizer.last_round is None
        local = torch.optim.SGD(alone.parameters(), lr=0.05, momentum=0.9)
        for step in range(4):
            local.zero_grad()
            torch.nn.functional.cross_entropy(alone(batch(step)[0]), batch(step)[1]).backward()
            local.step()
        assert replica(model) == replica(alone)
    optimizer.close()
    assert hvd.remove_process_set(some)


def test_backups_are_counted_in_the_set():
    one = hvd.add_process_set([SIZE - 1])
    plain = torch.optim.SGD(small_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="backup_workers=1"):
        hvd.DistributedOptimizer(plain, process_set=one, backup_workers=1)
    optimizer = hvd.DistributedOptimizer(plain, process_set=one)
    plain.step()
    assert optimizer.stats().rounds == int(one.included())
    optimizer.close()
    assert hvd.remove_process_set(one)


def test_a_set_that_is_not_registered_is_refused_and_one_that_was_removed_ends_its_rounds():
    plain = torch.optim.SGD(small_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"ranks=\[0\].* is not registered"):
        hvd.DistributedOptimizer(plain, process_set=hvd.ProcessSet([0]))
    some = hvd.add_process_set([0])
    optimizer = hvd.DistributedOptimizer(plain, process_set=some)
    assert hvd.remove_process_set(some)
    if RANK == 0:
        with pytest.raises(ValueError, match="has not been registered"):
            optimizer.step()
    optimizer.close()
    some = hvd.add_process_set([0])
    optimizer = hvd.DistributedOptimizer(plain, process_set=some)
    optimizer.step()
    assert hvd.remove_process_set(some)
    if RANK == 0:
        with pytest.raises(hvd.Error, match="the process set of rank 0 was removed"):
            optimizer.step()
    optimizer.close()


@pytest.mark.mpi(min_size=3)
def test_ranks_of_a_set_that_disagree_are_told_so_with_the_set(half):
    if half.size() > 1:
        model = torch.nn.Linear(2 + half.rank() % 2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = hvd.DistributedOptimizer(optimizer, process_set=half)
        model(torch.ones(2 + half.rank() % 2)).backward()
        set_of = ", ".join(map(str, half.ranks))
        with pytest.raises(hvd.Mismatch, match=rf"\(in the process set of ranks {set_of}, counted"):
            optimizer.step()
        optimizer.close()


@pytest.mark.mpi(min_size=3)
def test_a_rank_that_never_comes_is_named_within_its_set_and_the_failure_is_the_worlds(again):
    some = hvd.add_process_set([0, SIZE - 1])
    model = small_model()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), process_set=some, timeout=0.5
    )
    train(model, optimizer, 2)
    words = rf"missing rank 1.*\(in the process set of ranks 0, {SIZE - 1}, counted from 0\)"
    if RANK == 0:
        with pytest.raises(hvd.RoundTimeout, match=words):
            train(model, optimizer, 1)
    else:  # not in a barrier: without MPI that hears of the failure itself
        while runtime.current().board.reason() is None:
            time.sleep(0.01)
    # On another node the news may come later than the round, in which rank 0's gradient is.
    if RANK == SIZE - 1 and NODE_OF[0] == NODE_OF[RANK]:
        with pytest.raises(hvd.RoundTimeout, match=f"rank 0 failed: .*{words}"):
            train(model, optimizer, 1)
    elif RANK != 0:
        with pytest.raises(hvd.RoundTimeout, match=f"rank 0 failed: .*{words}"):
            hvd.barrier()
    optimizer.close()
