"""Training: every replica stays the same, bit for bit, whoever is late."""

import time

import pytest
import torch
from mpi.helpers import RANK, SIZE, digest, same_everywhere, same_on_each_node
from mpi.training import (
    LATE_WORDS,
    Delay,
    assert_replicas,
    backward,
    batch,
    distribute,
    numbers_of_backups,
    small_model,
    train,
)
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi

OPTIMIZERS = {
    "momentum": (optim.SGD, {"momentum": 0.9, "weight_decay": 1e-3}),
    "adamw": (optim.AdamW, {"amsgrad": True}),
    "rmsprop": (optim.RMSprop, {"momentum": 0.5, "centered": True}),
    "adagrad": (optim.Adagrad, {"lr_decay": 1e-3}),
}
SCHEDULES = {
    "momentum": lambda opt: optim.lr_scheduler.StepLR(opt, 50, 0.5),
    "adamw": lambda opt: optim.lr_scheduler.OneCycleLR(opt, 0.05, total_steps=200),
    "rmsprop": lambda opt: optim.lr_scheduler.CosineAnnealingLR(opt, 200),
    "adagrad": lambda opt: optim.lr_scheduler.LinearLR(opt, 0.1),
}


@pytest.mark.parametrize(
    ("name", "attempt", "late", "backups"),
    [
        ("momentum", False, "drop", [1]),
        ("momentum", True, "carry", numbers_of_backups()),
        ("adamw", True, "drop", [SIZE - 1]),
        ("rmsprop", False, "carry", [SIZE - 1]),
        ("adagrad", True, "drop", [SIZE // 2]),
    ],
)
def test_200_steps_with_random_delays_leave_replicas_identical(name, attempt, late, backups):
    for b in backups:
        b = min(b, SIZE - 1)
        model = small_model(seed=RANK)
        make, options = OPTIMIZERS[name]
        opt = distribute(model, make, lr=0.01, options=options, backup_workers=b, late=late)
        train(model, opt, 200, attempt=attempt, scheduler=SCHEDULES[name](opt))
        assert_replicas(model, opt)
        assert opt.last_round.number == 199
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert_stats_fit_together(opt, b)
        opt.close()


def assert_stats_fit_together(opt, b):
    stats = opt.stats()
    assert stats.rounds == 200
    assert [record.number for record in stats.history] == list(range(200))
    assert stats.contributed == sum(record.contributed for record in stats.history)
    assert stats.skipped == sum(record.skipped for record in stats.history)
    assert stats.contributed + stats.late == stats.rounds
    assert stats.skipped <= stats.late
    for record in stats.history:
        assert record.stepped_at_s >= record.sealed_at_s
        assert record.waited_s >= 0
        assert record.skipped == (record.arrived_at_s is None)
        # Arrivals are stamped after the fact, in Python: not before the seal by much.
        assert not record.contributed or record.arrived_at_s is not None
    # Every round has N contributors, and the ranks of a node agree on when it was sealed.
    everybody = hvd.allgather_object(stats.contributed)
    assert sum(everybody) == 200 * (SIZE - b)
    same_on_each_node(digest([record.sealed_at_s for record in stats.history]))
    same_everywhere(opt.last_round.contributors, opt.last_round.weight, opt.last_round.number)


def test_without_backups_it_is_training_on_the_large_batch():
    model = small_model()
    opt = distribute(model, lr=0.1, options={"momentum": 0.9}, backup_workers=0)
    alone = small_model()
    local = optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for step in range(60):
        opt.zero_grad()
        backward(model, batch(step))
        opt.step()
        batches = [batch(step, rank) for rank in range(SIZE)]
        local.zero_grad()
        backward(alone, [torch.cat(parts) for parts in zip(*batches, strict=True)])
        local.step()
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    opt.close()


def test_the_model_learns_with_backups():
    torch.manual_seed(7)
    truth = torch.randn(6, 3)
    model = small_model()
    opt = distribute(model, optim.Adam, lr=0.01, backup_workers=SIZE - 1)
    for step in range(150):
        x, _ = batch(step, size=32)
        with opt.attempt():
            opt.zero_grad()
            backward(model, (x, (x @ truth).argmax(1)))
        opt.step()
    x, _ = batch(-1, size=500)
    accuracy = ((model(x).argmax(1)) == (x @ truth).argmax(1)).float().mean()
    assert accuracy > 0.8
    assert_replicas(model, opt)
    opt.close()


@pytest.mark.parametrize("late", LATE_WORDS)
def test_a_rank_that_is_always_slow_skips_ahead_and_stays_a_replica(late):
    model = small_model()
    opt = distribute(model, backup_workers=min(1, SIZE - 1), late=late)
    # Long beside a round of many ranks, on several nodes, on few cores.
    model[1] = Delay(seconds=0.03, chance=1 if SIZE - 1 == RANK else 0)
    train(model, opt, 60, attempt=True)
    assert_replicas(model, opt)
    skipped = hvd.allgather_object(opt.stats().skipped)
    if SIZE > 1:
        assert skipped[-1] > 20
    opt.close()


def test_a_slow_rank_without_attempt_is_a_replica_too():
    model = small_model()
    opt = distribute(model, backup_workers=SIZE - 1, window=2)
    model[1] = Delay(seconds=0.002, chance=1 if SIZE - 1 == RANK else 0)
    train(model, opt, 60)
    assert opt.stats().skipped == 0
    assert_replicas(model, opt)
    opt.close()


def test_a_carried_gradient_counts_with_its_weight():
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), backup_workers=SIZE // 2, late="carry")
    waiting = {rank: [] for rank in range(SIZE)}  # every rank's gradients that are in no round yet
    carried = 0
    for r in range(40):
        if r % 4 == 0:  # all catch up, then another rank is late
            hvd.barrier()
            time.sleep(0.02 if (r // 4) % SIZE == RANK else 0)
        p.grad = torch.full_like(p, float(10 * RANK + r))
        opt.step()
        for rank, gradients in waiting.items():
            gradients.append(10 * rank + r)
        counted = [g for rank in opt.last_round.contributors for g in waiting[rank]]
        carried += len(counted) - len(opt.last_round.contributors)
        for rank in opt.last_round.contributors:
            waiting[rank].clear()
        assert opt.last_round.weight == len(counted)
        expected = torch.full_like(p, sum(counted) / len(counted))
        torch.testing.assert_close(p.grad, expected, rtol=1e-12, atol=0)
    assert carried > 0 or SIZE == 1
    opt.close()


def test_ranks_count_by_their_weights():
    p = nn.Parameter(torch.zeros(2))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0))
    for r in range(3):
        opt.weight = float(RANK + 1 + r)
        p.grad = torch.full_like(p, float(RANK))
        opt.step()
        weights = [rank + 1 + r for rank in range(SIZE)]
        expected = sum(w * rank for rank, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(p.grad, torch.full_like(p, expected))
        assert opt.last_round.weight == sum(weights)
    opt.close()


def test_two_optimizers_take_turns():
    left, right = small_model(1), small_model(2)
    one = distribute(left, backup_workers=SIZE - 1)
    two = distribute(right, optim.Adam, lr=0.01)
    for step in range(30):
        train(left, one, 1, attempt=True, first=step)
        train(right, two, 1 + step % 2, first=step)
    assert (one.stats().rounds, two.stats().rounds) == (30, 45)
    assert_replicas(left, one)
    assert_replicas(right, two)
    one.close()
    two.close()
