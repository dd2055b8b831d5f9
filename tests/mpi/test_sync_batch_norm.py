"""SyncBatchNorm is BatchNorm on the batches of all ranks."""

import copy

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import tensor_bits
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi


def inputs(rank, step, *, shape=(3, 4), dtype=torch.float32):
    generator = torch.Generator().manual_seed(10 * rank + step)
    size = 2 + rank  # batches of all sizes
    x = 3 + 2 * torch.randn(size, 5, *shape, generator=generator)
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False, "eps": 0.1}])
def test_it_is_batch_norm_on_the_large_batch(dtype, options):
    torch.manual_seed(0)
    ours = hvd.SyncBatchNorm(5, **options).to(dtype)
    theirs = nn.BatchNorm2d(5, **options).to(dtype)
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    bounds = [sum(2 + rank for rank in range(r)) for r in range(SIZE + 1)]
    for step in range(3):
        mine = inputs(RANK, step, dtype=dtype).requires_grad_()
        large = torch.cat([inputs(r, step, dtype=dtype) for r in range(SIZE)]).requires_grad_()
        there, here = theirs(large), ours(mine)
        part = slice(bounds[RANK], bounds[RANK + 1])
        torch.testing.assert_close(here, there[part], rtol=1e-4, atol=1e-5)
        slope = torch.linspace(-1, 2, large.numel(), dtype=dtype).view_as(large)
        (there * slope).sum().backward()
        (here * slope[part]).sum().backward()
        torch.testing.assert_close(mine.grad, large.grad[part], rtol=1e-3, atol=1e-5)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            total = hvd.allreduce(p.grad, op=hvd.Sum)
            torch.testing.assert_close(total, q.grad, rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    same_everywhere(tensor_bits(ours.running_var))
    ours.eval(), theirs.eval()
    x = inputs(0, 9, dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x))  # no collective: ranks may differ


def test_training_with_it_keeps_replicas():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), hvd.SyncBatchNorm(8), nn.ReLU(), nn.Linear(8, 2))
    opt = hvd.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1))
    for step in range(4):
        opt.zero_grad()
        model(inputs(RANK, step, shape=())).pow(2).mean().backward()
        opt.step()
    same_everywhere([tensor_bits(t) for t in model.state_dict().values()])
    opt.close()


@pytest.mark.mpi(min_size=2)
def test_backup_workers_are_refused_with_the_reason():
    model = nn.Sequential(nn.Linear(5, 8), hvd.SyncBatchNorm(8))
    sgd = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"backup_workers=1, but parameter '1.weight' is of a Sync"
    ):
        hvd.DistributedOptimizer(sgd, model.named_parameters(), backup_workers=1)
    hvd.DistributedOptimizer(sgd, model.named_parameters(), backup_workers=0).close()
    for other in (
        copy.deepcopy(model),
        nn.Sequential(nn.Linear(5, 8), hvd.SyncBatchNorm(8, affine=False)),
    ):
        opt = hvd.DistributedOptimizer(optim.SGD(other.parameters(), lr=0.1), backup_workers=1)
        with pytest.raises(
            RuntimeError, match=r"backup_workers=1, but the model has a SyncBatchNorm"
        ):
            other(torch.ones(2, 5))
        opt.close()
    hvd.SyncBatchNorm(5, affine=False)(torch.rand(3, 5))  # nobody has backups any more


def test_what_has_no_channels_is_refused():
    with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
        hvd.SyncBatchNorm(5)(torch.ones(5))
