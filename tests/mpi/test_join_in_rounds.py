"""Uneven data: a rank that has none left calls join(), and abstains in the others' rounds."""

import gc
import time

import numpy as np
import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import (
    LATE_WORDS,
    assert_replicas,
    backward,
    batch,
    distribute,
    numbers_of_backups,
    small_model,
    train,
)
from torch import nn, optim

import hvd_backup as hb
import hvd_backup.torch as hvd
from hvd_backup.collectives.group import Group
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.world import runtime

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(90)]

# How many batches the ranks have: the last one has the most, the first one, or all alike.
SHARES = {
    "ascending": [2 + rank for rank in range(SIZE)],
    "descending": [1 + SIZE - rank for rank in range(SIZE)],
    "alike": [3] * SIZE,
}


def furthest(batches):
    return max(range(SIZE), key=lambda rank: (batches[rank], rank))


def gradients(rank, steps):
    """What the rank's parameter has as its gradient in each step."""
    return [torch.arange(3.0) + 10 * rank + step for step in range(steps)]


@pytest.mark.parametrize("shares", SHARES)
def test_the_mean_is_over_the_ranks_that_have_data(shares):
    batches = SHARES[shares]
    p = nn.Parameter(torch.zeros(3))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), named_parameters=[("p", p)])
    for gradient in gradients(RANK, batches[RANK]):
        opt.zero_grad()
        (p * gradient).sum().backward()
        opt.step()
    assert hvd.join() == furthest(batches)
    expected = torch.zeros(3)
    for step in range(max(batches)):
        have = [gradients(r, step + 1)[step] for r in range(SIZE) if batches[r] > step]
        expected -= torch.stack(have).mean(0)
    torch.testing.assert_close(p.detach(), expected)
    same_everywhere(p.tolist())


@pytest.mark.parametrize("make", [optim.Adam, optim.SGD], ids=["adam", "momentum"])
@pytest.mark.parametrize("late", LATE_WORDS)
@pytest.mark.parametrize("b", numbers_of_backups())
def test_models_and_state_are_equal_after_every_epoch(b, late, make):
    model = small_model()
    options = {"momentum": 0.9} if make is optim.SGD else {}
    opt = distribute(model, make, options=options, backup_workers=b, late=late)
    for epoch, shares in enumerate(("ascending", "descending", "alike")):
        train(model, opt, SHARES[shares][RANK], first=100 * epoch)
        if epoch % SIZE == RANK:
            opt.param_groups[0]["lr"] *= 1.5  # the others get what the last one has
        same_everywhere(hvd.join())
        opt.zero_grad()
        if shares != "alike":
            assert_replicas(model, opt)
        elif b == 0:
            same_everywhere([p.tolist() for p in model.parameters()])
        assert opt.stats().rounds >= sum(SHARES[s][RANK] for s in list(SHARES)[: epoch + 1])
        same_everywhere(opt.stats().rounds)


def test_two_optimizers_that_take_turns_are_both_equal():
    models = [small_model(seed) for seed in (1, 2)]
    opts = [distribute(model, optim.Adam) for model in models]
    for step in range(1 + SIZE - RANK):
        for model, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            backward(model, batch(step))
            opt.step()
    assert hvd.join() == 0
    for model, opt in zip(models, opts, strict=True):
        opt.zero_grad()
        assert_replicas(model, opt)


def test_other_collectives_go_on_meanwhile():
    model = small_model()
    opt = distribute(model)
    for step in range(1 + RANK):
        train(model, opt, 1, first=step)
        have = hvd.allreduce(torch.ones(1), op=hvd.Sum, name=f"metric {step}")
        assert have.item() == SIZE - step
        means = hb.partial_allreduce(np.full(3, 1.0 + step), backup_workers=0, name="mean")
        np.testing.assert_array_equal(means.value, np.full(3, 1.0 + step))
    assert hvd.join() == SIZE - 1
    opt.zero_grad()
    assert_replicas(model, opt)
    for word in ("mean", "other"):
        after = hb.partial_allreduce(np.full(3, RANK + 1.0), backup_workers=0, name=word)
        np.testing.assert_allclose(after.value, np.full(3, (SIZE + 1) / 2))


@pytest.mark.parametrize("collected", [True, False])
def test_the_optimizer_may_be_gone_on_ranks_that_have_joined(collected):
    """Whether Python has collected it makes no difference."""
    model = small_model()

    def epoch():
        opt = distribute(model, optim.Adam)
        train(model, opt, 1 + SIZE - RANK)

    gc.disable()
    try:
        for _ in range(2):
            epoch()
            if collected and RANK == SIZE - 1:
                gc.collect()
            assert hvd.join() == 0
            for p in model.parameters():
                same_everywhere(p.tolist())
            for p in model.parameters():
                p.grad = None
            model = small_model()
    finally:
        gc.enable()


def test_a_model_that_is_gone_everywhere_needs_no_care():
    def epoch():
        model = small_model()
        train(model, distribute(model), 1 + SIZE - RANK)

    for _ in range(2):
        epoch()
        if RANK % 2:
            gc.collect()
        assert hvd.join() == 0


def test_an_exchange_is_closed_at_the_next_set_up_once_it_is_gone_on_all_ranks():
    attended = runtime.current().attended

    def epoch():
        model = small_model()
        opt = distribute(model)
        train(model, opt, 1)
        return opt, max(attended)

    opt, first = epoch()
    if RANK == 0:
        del opt
        gc.collect()
    hvd.barrier()
    second = epoch()[1]
    assert (first in attended) == (SIZE > 1)
    opt = None
    gc.collect()
    hvd.barrier()
    kept, third = epoch()
    assert first not in attended
    assert second not in attended
    assert third in attended
    kept.close()
    assert third not in attended


def test_what_user_code_has_of_a_gradient_stays():
    p = nn.Parameter(torch.zeros(3))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), named_parameters=[("p", p)])
    for step in range(1 + RANK):
        opt.zero_grad()
        (p * (step + 1.0)).sum().backward()
        opt.step()
    hvd.join()
    assert p.grad.tolist() == [1.0 + RANK] * 3


def test_an_optimizer_of_a_process_set_goes_on_too():
    ranks = list(range(SIZE))[: max(1, SIZE - 1)]
    group = hvd.add_process_set(ranks) if len(ranks) < SIZE else hvd.global_process_set
    model = small_model()
    opt = distribute(model, optim.Adam, process_set=group)
    if group.included():
        train(model, opt, 1 + RANK)
    hvd.join()
    if group.included():
        opt.zero_grad()
        theirs = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        everybody = hvd.allgather(theirs[None], process_set=group)
        assert all(torch.equal(one, theirs) for one in everybody)
        train(model, opt, 1)
    if group is not hvd.global_process_set:
        hvd.remove_process_set(group)


@pytest.mark.mpi(min_size=2)
def test_a_first_step_after_a_rank_has_joined_is_an_error_on_all_with_the_way_out():
    model = small_model()
    opt = distribute(model)
    with pytest.raises(hvd.Mismatch, match=r"called join\(\) before.*optimizer\.weight = 0"):
        hvd.join() if RANK == 0 else train(model, opt, 1)
    train(model, opt, 1)
    assert_replicas(model, opt)


def go_through(exchange, rounds):
    for _ in range(rounds):
        exchange.arrive_and_wait()
    hb.join()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("b", [0, 1])
def test_rounds_that_no_rank_can_be_absent_from_are_an_error_on_all(b):
    hb.shutdown()  # after a failure nobody goes on in this world
    hb.init()
    try:
        exchange = Exchange([("float32", 4)], backup_workers=b, name="of another adapter")
        exchange.arrive_and_wait()
        rounds = 1 if RANK else 0
        with pytest.raises(hb.Mismatch, match=r"called join\(\).*optimizer\.weight = 0"):
            go_through(exchange, rounds)
    finally:
        hb.shutdown()
        hb.init()


@pytest.mark.mpi(min_size=3)
def test_a_call_of_a_process_set_with_a_rank_that_has_joined_is_an_error_on_all():
    hb.shutdown()  # after a failure nobody goes on in this world
    hb.init()
    try:
        group = hvd.add_process_set([0, 1])
        with pytest.raises(hvd.Mismatch, match=r"rank 0 has called join\(\).* before join"):
            hvd.barrier(group) if RANK == 1 else hvd.join()
    finally:
        hb.shutdown()
        hb.init()


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("what", ["a new optimizer", "rounds of another adapter"])
def test_rounds_of_a_process_set_with_a_rank_that_has_joined_are_an_error_on_all(what):
    hb.shutdown()  # after a failure nobody goes on in this world
    hb.init()
    try:
        group = hvd.add_process_set([1, 2])  # which count themselves from 0
        model = small_model()
        opt = distribute(model, process_set=group)
        other = small_model()
        new = distribute(other, process_set=group)
        if group.included():
            train(model, opt, 1)
            part = Group(group).world()
            exchange = Exchange([("float32", 4)], backup_workers=0, name="mean", world=part)

        def go_on():
            if RANK != 2:
                hvd.join()
            elif what == "a new optimizer":
                train(other, new, 1)
            else:
                exchange.arrive_and_wait()

        began = time.monotonic()
        with pytest.raises(hvd.Mismatch, match=r"rank 0 .*called join\(\)"):
            go_on()
        assert time.monotonic() - began < 10
    finally:
        hb.shutdown()
        hb.init()


@pytest.mark.mpi(min_size=3)
def test_a_mismatch_of_the_others_says_who_has_joined():
    model = small_model()
    train(model, distribute(model), 1)
    if RANK == 0:
        assert hvd.join() != 0
        return
    with pytest.raises(hvd.Mismatch, match=r"disagree.*; rank 0 has called join\(\)"):
        hvd.allreduce(torch.zeros(2 + RANK), name="of two shapes")
    hvd.join()


def test_the_way_out_that_errors_name_works():
    batches = SHARES["ascending"][RANK]
    model = small_model()
    opt = distribute(model)
    steps = int(hvd.allreduce(torch.tensor(batches), op=hvd.Max))
    for step in range(steps):
        opt.weight = 1.0 if step < batches else 0.0
        opt.zero_grad()
        if step < batches:
            backward(model, batch(step))
        opt.step()
    assert_replicas(model)
