"""Collectives on tensors."""

import numpy as np
import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import assert_replicas, backward, batch, small_model, tensor_bits
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def mine(rank, dtype=torch.float32, shape=(3, 4)):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(rank)) * 10).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (3, 4), (0, 2)])
def test_allreduce_averages(dtype, shape):
    tensor = mine(RANK, dtype, shape)
    before = tensor.clone()
    value = hvd.allreduce(tensor)
    expected = sum(mine(rank, dtype, shape).double() for rank in range(SIZE)) / SIZE
    assert value.dtype == dtype
    assert value.shape == tensor.shape
    torch.testing.assert_close(value.double(), expected, rtol=1e-2, atol=0.05)
    assert torch.equal(tensor, before)
    assert hvd.allreduce_(tensor) is tensor
    assert torch.equal(tensor, value)
    same_everywhere(tensor_bits(value))


def test_allreduce_of_other_operations_and_integers():
    tensor = torch.tensor([RANK, -RANK, 3])
    assert hvd.allreduce(tensor, op=hvd.Sum)[2] == 3 * SIZE
    assert hvd.allreduce(tensor, op=hvd.Max).tolist() == [SIZE - 1, 0, 3]
    assert hvd.allreduce(tensor, op=hvd.Min).tolist() == [0, 1 - SIZE, 3]


def test_tensors_of_any_layout_and_with_gradients():
    p = nn.Parameter(mine(RANK).t()[::2])
    expected = torch.stack([mine(rank).t()[::2] for rank in range(SIZE)])
    torch.testing.assert_close(hvd.allreduce(p), expected.mean(0))
    assert torch.equal(hvd.broadcast(p, root_rank=SIZE - 1), expected[-1])
    assert torch.equal(hvd.allgather(p), expected.flatten(0, 1))
    hvd.broadcast_(p, root_rank=0)
    assert torch.equal(p, expected[0])
    assert p.requires_grad
    assert p.is_leaf


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bool, torch.int64, torch.uint8, torch.complex64])
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3)])
def test_broadcast_and_allgather_keep_the_bits(dtype, shape):
    tensor = mine(RANK, torch.float32, shape).to(dtype)
    for root in range(SIZE):
        value = hvd.broadcast(tensor, root_rank=root)
        assert value.dtype == dtype
        assert value.shape == tensor.shape
        assert tensor_bits(value) == tensor_bits(mine(root, torch.float32, shape).to(dtype))
    if shape:
        value = hvd.allgather(tensor)
        everybody = torch.cat([mine(rank, torch.float32, shape).to(dtype) for rank in range(SIZE)])
        assert value.shape == everybody.shape
        assert tensor_bits(value) == tensor_bits(everybody)


def test_allgather_of_different_lengths():
    value = hvd.allgather(torch.full((RANK % 3, 2), float(RANK)))
    expected = torch.cat([torch.full((rank % 3, 2), float(rank)) for rank in range(SIZE)])
    assert torch.equal(value, expected)
    with pytest.raises(ValueError, match="at least one axis"):
        hvd.allgather(torch.tensor(1.0))


@pytest.mark.parametrize("root", sorted({0, SIZE - 1}))
def test_broadcast_parameters_makes_replicas(root):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1).bfloat16())
    for p in model.parameters():
        nn.init.normal_(p, mean=RANK)
    model[1].running_mean.fill_(RANK)
    hvd.broadcast_parameters(model.state_dict(), root_rank=root)
    assert_replicas(model)
    assert torch.equal(model[1].running_mean, torch.full((4,), float(root)))
    for p in model.parameters():
        nn.init.normal_(p, mean=RANK)
    hvd.broadcast_parameters(model.named_parameters(), root_rank=root)
    assert_replicas(model)


def test_broadcast_parameters_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match="'epoch' is int"):
        hvd.broadcast_parameters({"epoch": 3})


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("what", ["shape", "name", "dtype", "count"])
def test_broadcast_parameters_of_different_models_raises_mismatch_on_every_rank(what):
    odd = RANK == SIZE - 1
    params = {"w": torch.zeros(2), "v": torch.zeros(3)}
    if odd:
        params = {
            "shape": {"w": torch.zeros(2), "v": torch.zeros(4)},
            "name": {"w": torch.zeros(2), "u": torch.zeros(3)},
            "dtype": {"w": torch.zeros(2), "v": torch.zeros(3).double()},
            "count": {"w": torch.zeros(2)},
        }[what]
    with pytest.raises(hvd.Mismatch, match=r"v: float32\[3\]"):
        hvd.broadcast_parameters(params)


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW, optim.Adagrad, optim.LBFGS])
def test_broadcast_optimizer_state_makes_replicas(make):
    model = small_model()
    opt = make(model.parameters(), lr=0.1 / (1 + RANK))
    for step in range(RANK + 1 if make is not optim.LBFGS else 0):
        opt.zero_grad()
        backward(model, batch(step))
        opt.step()
    hvd.broadcast_parameters(model.state_dict())
    hvd.broadcast_optimizer_state(opt)
    opt.zero_grad()
    assert_replicas(model, opt)
    assert opt.param_groups[0]["lr"] == 0.1


def test_broadcast_optimizer_state_into_a_fresh_optimizer():
    """As after a restart: rank 0 has loaded a checkpoint, the others have not."""
    model = small_model()
    opt = optim.Adam(model.parameters())
    if RANK == 0:
        backward(model, batch(0))
        opt.step()
    hvd.broadcast_parameters(model.state_dict())
    hvd.broadcast_optimizer_state(opt)
    opt.zero_grad()
    assert_replicas(model, opt)


@pytest.mark.parametrize("call", [hvd.allreduce, hvd.allreduce_, hvd.broadcast, hvd.allgather])
def test_what_is_no_tensor_is_refused(call):
    with pytest.raises(TypeError, match="a torch tensor, not ndarray"):
        call(np.ones(3))


def test_broadcast_parameters_of_a_model_says_what_to_pass():
    with pytest.raises(TypeError, match=r"model\.state_dict\(\), not the model"):
        hvd.broadcast_parameters(torch.nn.Linear(2, 2))
