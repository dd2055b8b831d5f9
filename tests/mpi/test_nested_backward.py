"""A backward() within a backward pass is a part of it, and no pass too many."""

import copy

import pytest
import torch
from mpi.helpers import RANK, SIZE
from mpi.training import assert_replicas
from torch import nn, optim
from torch.utils.checkpoint import checkpoint

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def inputs(step, rank=RANK):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randn(3, 4, generator=generator).requires_grad_() for _ in range(3)]


def triplet(encode, data):
    a, b, c = map(encode, data)
    return (a - b).square().mean() - (a - c).square().mean()


def mean_gradients(model, step, loss):
    """Of all ranks, by a copy on this rank, without any checkpoints."""
    alone = copy.deepcopy(model)
    total = sum(loss(alone, inputs(step, rank)) for rank in range(SIZE)) / SIZE
    return torch.autograd.grad(total, list(alone.parameters()))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("passes", [1, 2])
def test_checkpoints_of_a_shared_module_are_one_pass(reentrant, passes):
    model = encoder()
    opt = hvd.DistributedOptimizer(
        optim.SGD(model.parameters(), lr=0.5), backward_passes_per_step=passes
    )

    def encode(x):
        return checkpoint(model, x, use_reentrant=reentrant)

    for step in range(3):
        expected = mean_gradients(model, step, triplet)
        opt.zero_grad()
        for _ in range(passes):
            triplet(encode, inputs(step)).backward()
        opt.step()
        for p, grad in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, passes * grad, rtol=1e-4, atol=1e-6)
    assert_replicas(model, opt)
    opt.close()


def test_a_checkpoint_within_a_checkpoint_beside_a_direct_use_is_one_pass():
    model = encoder()
    opt = hvd.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.5))

    def inner(x):
        return checkpoint(model, x, use_reentrant=True)

    def encode(x):
        return checkpoint(inner, x, use_reentrant=True) + model(x)

    for step in range(2):
        expected = mean_gradients(model, step, lambda m, data: 4 * triplet(m, data))
        opt.zero_grad()
        triplet(encode, inputs(step)).backward()
        opt.step()
        for p, grad in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)
    opt.close()


def test_a_hook_that_calls_backward_belongs_to_the_pass_that_runs_it():
    p = nn.Parameter(torch.zeros(3))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0))

    def add_ten(grad):
        with torch.enable_grad():
            (p * 10.0).sum().backward()

    for _ in range(2):
        opt.zero_grad()
        x = torch.ones(3, requires_grad=True)
        y = x * 2.0
        y.register_hook(add_ten)
        (y * p).sum().backward()
        opt.step()
        assert p.grad.tolist() == [12.0] * 3
    opt.close()


@pytest.mark.parametrize(
    "use", [lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=False)]
)
def test_a_second_pass_of_the_users_is_still_one_too_many(use):
    model = encoder()
    opt = hvd.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.5))
    triplet(lambda x: use(model, x), inputs(0)).backward()
    with pytest.raises(AssertionError, match="more than backward_passes_per_step times"):
        triplet(lambda x: use(model, x), inputs(0)).backward()
    opt.step()
    assert_replicas(model, opt)
    opt.close()
