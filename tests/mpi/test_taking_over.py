"""A second DistributedOptimizer on a model takes over, whatever the garbage collector did."""

import gc

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import (
    assert_replicas,
    backward,
    batch,
    distribute,
    small_model,
    tensor_bits,
    train,
)
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("collect", ["on no rank", "on one", "on all"])
@pytest.mark.parametrize("b", [0, SIZE - 1])
def test_a_model_trained_in_phases_has_equal_replicas(collect, b):
    model = small_model()

    def phase(lr, first):
        opt = distribute(model, optim.Adam, lr=lr, backup_workers=b)
        train(model, opt, 3, first=first, attempt=b > 0)
        assert_replicas(model, opt)
        assert opt.stats().rounds == 3

    gc.disable()
    try:
        for k, lr in enumerate((0.1, 0.01, 0.001)):
            phase(lr, 3 * k)
            if collect == "on all" or (collect == "on one" and k % SIZE == RANK):
                gc.collect()
    finally:
        gc.enable()


def test_phases_that_unfreeze_more_and_more_are_as_in_one_process():
    model, alone = small_model(), small_model()
    layers = [m for m in model if isinstance(m, nn.Linear)]
    layers_alone = [m for m in alone if isinstance(m, nn.Linear)]
    for phase in (1, 2, 3):
        params = [p for layer in layers[-phase:] for p in layer.parameters()]
        opt = hvd.DistributedOptimizer(optim.SGD(params, lr=0.1, momentum=0.9))
        local = optim.SGD(
            [p for layer in layers_alone[-phase:] for p in layer.parameters()], 0.1, 0.9
        )
        for step in range(3):
            model.zero_grad()
            backward(model, batch(10 * phase + step))
            opt.step()
            alone.zero_grad()
            parts = [batch(10 * phase + step, rank) for rank in range(SIZE)]
            backward(alone, [torch.cat(part) for part in zip(*parts, strict=True)])
            local.step()
        same_everywhere([tensor_bits(p) for p in model.parameters()])
        for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_former_optimizer_is_refused_until_it_is_closed():
    model = small_model()
    former = distribute(model)
    train(model, former, 1)
    later = distribute(model)
    for call in (former.step, former.synchronize, former.attempt):
        with pytest.raises(RuntimeError, match="has taken over parameters of this one; step that"):
            call()
    train(model, later, 2)
    assert_replicas(model, later)
    former.close()
    assert later.stats().rounds == 2
    train(model, later, 1)
    later.close()
    backward(model, batch(0))
    former.step()  # a local one
    assert former.stats().rounds == 1


def test_the_same_optimizer_may_be_wrapped_again_as_in_a_notebook():
    model = small_model()
    plain = optim.SGD(model.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(plain, 1, 0.5)
    for _ in range(3):
        opt = hvd.DistributedOptimizer(plain, model.named_parameters())
        assert opt is plain
        train(model, opt, 2, scheduler=scheduler)
        assert opt.stats().rounds == 2
    assert_replicas(model, opt)
    opt.close()
    backward(model, batch(0))
    opt.zero_grad()  # no guard of a closed one is left


def test_one_that_shares_some_parameters_takes_over():
    model = small_model()
    whole = distribute(model)
    train(model, whole, 1)
    part = hvd.DistributedOptimizer(optim.SGD(model[-1].parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="has taken over"):
        whole.step()
    model.zero_grad()
    backward(model, batch(0))
    part.step()
    assert_replicas(model[-1], part)
    part.close()


@pytest.mark.mpi(min_size=2)
def test_a_rank_outside_the_process_set_is_a_local_one_also_after_an_optimizer_of_all():
    p = nn.Parameter(torch.zeros(3))
    plain = optim.SGD([p], lr=1.0)
    hvd.DistributedOptimizer(plain)
    some = hvd.add_process_set([0])
    opt = hvd.DistributedOptimizer(plain, process_set=some)
    (p * float(RANK)).sum().backward()
    opt.step()
    assert p.tolist() == [-float(RANK)] * 3
    opt.close()
    hvd.barrier()
    hvd.remove_process_set(some)
