"""DistributedOptimizer's arguments that are Horovod's: op, compression, groups, process_set."""

import types

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import assert_replicas, backward, batch, distribute, small_model, train
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi


def gradient(rank, step, dtype=torch.float32, count=130):
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(count, generator=generator).to(dtype)


def test_op_sum_is_the_sum_over_all_ranks_without_backups():
    p = nn.Parameter(torch.zeros(130))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), op=hvd.Sum)
    for step in range(3):
        p.grad = gradient(RANK, step)
        opt.step()
        expected = torch.stack([gradient(rank, step) for rank in range(SIZE)]).sum(0)
        torch.testing.assert_close(p.grad, expected, rtol=1e-6, atol=1e-6)
        same_everywhere(p.grad.tolist())
    opt.close()


def test_op_sum_is_the_weighted_sum_over_the_contributors_with_backups():
    p = nn.Parameter(torch.zeros(130))
    opt = hvd.DistributedOptimizer(
        optim.SGD([p], lr=1.0), op=hvd.Sum, backup_workers=min(1, SIZE - 1)
    )
    for step in range(6):
        p.grad = gradient(RANK, step)
        opt.weight = 1.0 + RANK
        opt.step()
        among = opt.last_round.contributors
        expected = sum((1.0 + rank) * gradient(rank, step) for rank in among)
        torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=1e-5)
    opt.close()


def test_ranks_that_differ_in_op_raise_mismatch():
    if SIZE == 1:
        return
    p = nn.Parameter(torch.zeros(2))
    op = hvd.Sum if RANK == 0 else hvd.Average
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), op=op)
    with pytest.raises(hvd.Mismatch, match=r"rank 0: .*op=Sum"):
        opt.step()
    opt.close()


def test_predivision_and_groups_change_nothing():
    def trained(**given):
        model = small_model()
        opt = distribute(model, **given)
        train(model, opt, 3)
        opt.close()
        return [p.detach().clone() for p in model.parameters()]

    plain = trained()
    with pytest.warns(DeprecationWarning, match="num_groups"):
        grouped = trained(num_groups=2)
    for other in (grouped, trained(groups=3), trained(gradient_predivide_factor=4.0)):
        assert all(map(torch.equal, plain, other))


def test_a_process_set_of_horovods_is_all_ranks_or_refused():
    def sgd():
        return optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)

    some = types.SimpleNamespace(process_set_id=1, ranks=[0, SIZE])
    with pytest.raises(TypeError, match="process_set must be a ProcessSet of hvd_backup's"):
        hvd.DistributedOptimizer(sgd(), process_set=some)
    for every in (
        types.SimpleNamespace(process_set_id=0),
        types.SimpleNamespace(process_set_id=3, ranks=list(range(SIZE))),
    ):
        hvd.DistributedOptimizer(sgd(), process_set=every).close()


@pytest.mark.parametrize(
    ("compression", "sent"),
    [(hvd.Compression.fp16, torch.float16), (hvd.Compression.bf16, torch.bfloat16)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compressed_gradients_travel_in_16_bits_and_come_back_in_theirs(compression, sent, dtype):
    p = nn.Parameter(torch.zeros(130, dtype=dtype))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), compression=compression)
    for step in range(2):
        p.grad = gradient(RANK, step, dtype)
        opt.step()
        total = torch.zeros(130)
        for rank in range(SIZE):
            total += gradient(rank, step, dtype).to(sent).float()
        assert p.grad.dtype == dtype
        assert torch.equal(p.grad, (total / SIZE).to(sent).to(dtype))
    opt.close()


@pytest.mark.parametrize("compression", [hvd.Compression.fp16, hvd.Compression.bf16])
def test_training_with_compression_and_stragglers_leaves_replicas_identical(compression):
    model = small_model()
    opt = distribute(model, optim.Adam, lr=0.01, compression=compression, backup_workers=SIZE - 1)
    train(model, opt, 30, attempt=True)
    assert_replicas(model, opt)
    opt.close()


class Halves(hvd.Compressor):
    """A user's own: every second element travels, in float64."""

    @staticmethod
    def compress(tensor):
        return tensor.reshape(-1)[::2].double(), (tensor.shape, tensor.dtype)

    @staticmethod
    def decompress(tensor, ctx):
        shape, dtype = ctx
        return torch.repeat_interleave(tensor, 2)[: shape.numel()].reshape(shape).to(dtype)


def test_a_compressor_of_the_user():
    p = nn.Parameter(torch.zeros(2, 3))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), compression=Halves)
    p.grad = torch.arange(6.0).reshape(2, 3) * (RANK + 1)
    opt.step()
    expected = torch.tensor([[0.0, 0, 2], [2, 4, 4]]) * (SIZE + 1) / 2
    torch.testing.assert_close(p.grad, expected)
    opt.close()


def test_a_compressor_that_changes_its_mind_is_refused_before_anything_is_sent():
    class Fickle(hvd.Compressor):
        @staticmethod
        def compress(tensor):
            return (tensor.half() if tensor.any() else tensor), tensor.dtype

        @staticmethod
        def decompress(tensor, ctx):
            return tensor.to(ctx)

    p = nn.Parameter(torch.zeros(3))
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), [("w", p)], compression=Fickle)
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"Fickle makes torch.float16\[3\] of .* 'w', but of zeros"):
        opt.step()
    p.grad = torch.zeros(3)
    opt.step()
    opt.close()


def test_compression_and_the_model_of_a_user_that_clips_before_the_exchange():
    model = small_model()
    opt = distribute(model, compression=hvd.Compression.fp16)
    for step in range(3):
        opt.zero_grad()
        backward(model, batch(step))
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        opt.step()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert norm <= 0.01 * (1 + 1e-2)
    assert_replicas(model, opt)
    opt.close()
