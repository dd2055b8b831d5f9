"""Models of all kinds: dtypes, layouts, shared, frozen and late parameters."""

import pytest
import torch
from mpi.helpers import RANK, SIZE
from mpi.training import assert_replicas, batch, distribute, small_model, train
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_any_float_dtype(dtype):
    model = small_model().to(dtype)
    opt = distribute(model, backup_workers=SIZE - 1)
    for step in range(10):
        x, y = batch(step, dtype=dtype)
        opt.zero_grad()
        nn.functional.cross_entropy(model(x).float(), y).backward()
        opt.step()
        assert all(p.grad.dtype == dtype for p in model.parameters())
    assert_replicas(model, opt)
    opt.close()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_mean_of_half_types_is_summed_in_float32(dtype):
    p = nn.Parameter(torch.zeros(100, dtype=dtype))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0))
    grads = [torch.randn(100, generator=torch.Generator().manual_seed(r)) for r in range(SIZE)]
    grads = [grad.to(dtype) for grad in grads]
    p.grad = grads[RANK].clone()
    opt.step()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = torch.zeros(100, dtype=wide)
    for grad in grads:
        total += grad.to(wide)
    assert torch.equal(p.grad, (total / SIZE).to(dtype))
    opt.close()


def test_a_model_of_mixed_dtypes():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6).double(), nn.Linear(6, 2).bfloat16())
    opt = distribute(model, optim.Adam, backup_workers=SIZE - 1)
    for step in range(5):
        x, _ = batch(step)
        opt.zero_grad()
        model[2](model[1](model[0](x[:, :4]).double()).bfloat16()).float().pow(2).sum().backward()
        opt.step()
    assert_replicas(model, opt)
    opt.close()


def test_a_channels_last_model_keeps_its_layout():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    model(torch.zeros(2, 3, 6, 6))
    model = model.to(memory_format=torch.channels_last)
    strides = model[0].weight.stride()
    opt = distribute(model, options={"momentum": 0.9}, backup_workers=SIZE - 1)
    for _ in range(5):
        x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
        opt.zero_grad()
        model(x).pow(2).sum().backward()
        opt.step()
        assert model[0].weight.stride() == strides
        assert model[0].weight.grad.stride() == strides
    assert_replicas(model[0], None)
    assert_replicas(model[4], opt)
    opt.close()


def test_gradients_of_transposed_and_empty_and_scalar_parameters():
    params = [
        nn.Parameter(torch.randn(3, 4).t()),
        nn.Parameter(torch.zeros(0, 2)),
        nn.Parameter(torch.tensor(2.0)),
        nn.Parameter(torch.randn(2, 6)[:, ::2]),
    ]
    opt = hvd.DistributedOptimizer(optim.SGD(params, lr=0.1))
    for _ in range(3):
        opt.zero_grad()
        sum(((RANK + 1) * p).sum() for p in params).backward()
        opt.step()
        for p in params:
            torch.testing.assert_close(p.grad, torch.full_like(p, (SIZE + 1) / 2))
    opt.close()


def test_tied_weights():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    opt = distribute(model, backup_workers=SIZE - 1)
    for step in range(5):
        with opt.attempt():
            opt.zero_grad()
            model(batch(step)[0]).pow(2).sum().backward()
        opt.step()
    assert_replicas(model, opt)
    opt.close()


def test_parameters_may_be_frozen_and_thawed_between_steps():
    model = small_model()
    opt = distribute(model, options={"momentum": 0.9}, backup_workers=SIZE - 1)
    for phase, frozen in enumerate([True, False, True, False]):
        model[0].weight.requires_grad_(not frozen)
        train(model, opt, 4, first=4 * phase, attempt=True)
        assert (model[0].weight.grad is None) == frozen
    assert opt.stats().rounds == 16
    assert_replicas(model, opt)
    opt.close()


def test_a_gradient_left_on_a_frozen_parameter_is_the_same_everywhere():
    model = small_model()
    opt = distribute(model)
    train(model, opt, 2)
    model[0].weight.requires_grad_(False)
    for step in range(3):
        for p in model.parameters():
            if p.requires_grad:
                p.grad = None
        nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        opt.step()
    assert_replicas(model, opt)
    opt.close()


def test_parameter_groups_may_be_added_during_training():
    model = small_model()
    hvd.broadcast_parameters(model.state_dict())
    opt = hvd.DistributedOptimizer(
        optim.Adam(model[5].parameters(), lr=0.01), backup_workers=SIZE - 1
    )
    train(model, opt, 5, attempt=True)
    opt.add_param_group({"params": list(model[3].parameters()), "lr": 0.001})
    for p in model.parameters():
        p.grad = None
    train(model, opt, 5, attempt=True, first=5)
    assert opt.stats().rounds == 10
    same = nn.Sequential(model[3], model[5])
    assert_replicas(same, opt)
    opt.close()


def test_a_step_without_any_gradient_is_a_round():
    model = small_model()
    opt = distribute(model, backup_workers=SIZE - 1)
    for _ in range(3):
        opt.step()
        assert all(p.grad is None for p in model.parameters())
    assert opt.last_round.number == 2
    opt.close()


def test_many_small_parameters():
    params = [nn.Parameter(torch.full((1 + i % 5,), float(RANK))) for i in range(300)]
    opt = hvd.DistributedOptimizer(optim.SGD(params, lr=0.1))
    for _ in range(3):
        opt.zero_grad()
        sum((i * p).sum() for i, p in enumerate(params)).backward()
        opt.step()
    assert all(torch.equal(p.grad, torch.full_like(p, float(i))) for i, p in enumerate(params))
    opt.close()
