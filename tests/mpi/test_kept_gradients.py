"""A tensor that user code got from p.grad changes only where it would in torch alone."""

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.test_gradients import assert_gradients, gradients_of, mean_over
from mpi.training import assert_replicas, backward, batch, distribute, small_model, tensor_bits
from torch import nn, optim

import hvd_backup.torch as hvd
from hvd_backup.torch.attempt import Overtaken

pytestmark = pytest.mark.mpi

MEAN = (SIZE - 1) / 2


def vector(count=3):
    return nn.Parameter(torch.zeros(count))


def distributed(*params, make=optim.SGD, **options):
    return hvd.DistributedOptimizer(make(params, lr=0.5), **options)


def put_gradient(p, value):
    (p * float(value)).sum().backward()


VIEWS = {
    "itself": lambda grad: grad,
    "detached": lambda grad: grad.detach(),
    "data": lambda grad: grad.data,
    "flat": lambda grad: grad.view(-1)[1:],
    "numpy": lambda grad: grad.numpy(),
}


@pytest.mark.parametrize("look", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("b", [0, SIZE - 1])
def test_means_kept_over_steps_stay_as_they_were(look, b):
    model = small_model()
    opt = distribute(model, optim.Adam, backup_workers=b, window=2)
    kept, copies = [], []
    for step in range(8):
        with opt.attempt():
            opt.zero_grad()
            backward(model, batch(step))
        opt.step()
        for p in model.parameters():
            kept.append(look(p.grad))
            copies.append(torch.as_tensor(look(p.grad)).clone())
    for was, now in zip(copies, kept, strict=True):
        assert torch.equal(was, torch.as_tensor(now))
    same_everywhere([tensor_bits(one) for one in copies])
    opt.close()
    for was, now in zip(copies, kept, strict=True):
        assert torch.equal(was, torch.as_tensor(now))


@pytest.mark.parametrize("look", VIEWS.values(), ids=VIEWS.keys())
def test_a_ranks_own_gradients_kept_from_before_the_step_stay_as_they_were(look):
    p = vector()
    opt = distributed(p)
    kept = []
    for step in range(5):
        opt.zero_grad()
        put_gradient(p, 10 * step + RANK)
        kept.append(look(p.grad))
        opt.step()
        assert p.grad.tolist() == [10 * step + MEAN] * 3
    assert [float(one[0]) for one in kept] == [10.0 * step + RANK for step in range(5)]
    opt.close()


@pytest.mark.parametrize("options", [{}, {"late": "carry"}, {"on_nonfinite": "abstain"}])
def test_gradients_of_several_tasks_are_kept_and_combined_by_hand(options):
    p = vector()
    opt = distributed(p, backward_passes_per_step=3, **options)
    for step in range(4):
        of_tasks = []
        for task in (1.0, 10.0, 100.0):
            p.grad = None
            put_gradient(p, task * (RANK + 1) + step)
            of_tasks.append(p.grad)
        p.grad = of_tasks[0] + of_tasks[1] - of_tasks[2]
        opt.step()
        own = [task * (RANK + 1) + step for task in (1.0, 10.0, 100.0)]
        assert [float(grad[0]) for grad in of_tasks] == own
        torch.testing.assert_close(p.grad, torch.full((3,), -89.0 * (MEAN + 1) + step))
    opt.close()


class Difference(optim.Optimizer):
    """Steps by the difference to the last gradient, which it keeps by reference."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                before = self.state[p].get("previous")
                p -= group["lr"] * (p.grad if before is None else p.grad - 0.5 * before)
                self.state[p]["previous"] = p.grad


def in_one_process(model, gradients, set_to_none):
    """The same optimizer in torch alone, given the mean of all ranks' gradients in each step."""
    opt = Difference(model.parameters(), 0.3)
    for of_step in gradients:
        opt.zero_grad(set_to_none=set_to_none)
        for p, grad in zip(model.parameters(), of_step, strict=True):
            p.grad = grad.clone() if p.grad is None else p.grad.add_(grad)
        opt.step()


@pytest.mark.parametrize("compression", [hvd.Compression.none, hvd.Compression.fp16])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("b", [0, 1])
def test_an_optimizer_that_keeps_the_last_gradient_is_as_in_one_process(
    b, set_to_none, compression
):
    model, alone = small_model(), small_model()
    opt = distribute(
        model, Difference, lr=0.3, backup_workers=min(b, SIZE - 1), compression=compression
    )
    means = []
    for step in range(6):
        opt.zero_grad(set_to_none=set_to_none)
        backward(model, batch(step))
        opt.step()
        means.append([p.grad.clone() for p in model.parameters()])
        assert_replicas(model)
    in_one_process(alone, means, set_to_none)
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    opt.close()


def test_with_grads_that_are_only_zeroed_it_is_one_tensor_for_ever_as_in_torch():
    p = vector()
    opt = distributed(p)
    put_gradient(p, RANK)
    opt.step()
    grad = p.grad
    for step in range(3):
        opt.zero_grad(set_to_none=False)
        assert grad.tolist() == [0.0] * 3
        put_gradient(p, step + RANK)
        opt.step()
        assert p.grad is grad
        assert grad.tolist() == [step + MEAN] * 3
    opt.close()


class KeepsAll:
    """A compressor that keeps, and returns, what it is given."""

    kept: list = []  # noqa: RUF012

    @classmethod
    def compress(cls, tensor):
        return tensor, None

    @classmethod
    def decompress(cls, tensor, ctx):
        cls.kept.append(tensor)
        return tensor


@pytest.mark.parametrize("compression", [KeepsAll, hvd.Compression.fp16, hvd.Compression.bf16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_a_compressor_returns_or_keeps_stays_as_it_was(compression, dtype):
    p = nn.Parameter(torch.zeros(3, dtype=dtype))
    opt = distributed(p, compression=compression)
    kept = []
    KeepsAll.kept.clear()
    for step in range(4):
        opt.zero_grad()
        put_gradient(p, step + RANK)
        opt.step()
        kept.append(p.grad)
    expected = [torch.full((3,), step + MEAN, dtype=dtype) for step in range(4)]
    for grad, want in zip(kept, expected, strict=True):
        torch.testing.assert_close(grad, want)
    for grad, want in zip(KeepsAll.kept[-4:], expected, strict=False):
        torch.testing.assert_close(grad, want)
    opt.close()


def test_sparse_means_kept_over_steps_stay_as_they_were():
    table = nn.Embedding(7, 2, sparse=True)
    opt = distributed(table.weight)
    kept, copies = [], []
    for step in range(5):
        opt.zero_grad()
        table(torch.tensor([(RANK + step) % 7, 3])).sum().backward()
        before = table.weight.grad
        own = before.to_dense().clone()
        opt.step()
        assert torch.equal(before.to_dense(), own)
        kept.append(table.weight.grad)
        copies.append(table.weight.grad.to_dense().clone())
    for now, was in zip(kept, copies, strict=True):
        assert torch.equal(now.to_dense(), was)
    opt.close()


def test_memory_of_a_kept_gradient_is_that_gradients_alone():
    large, small = vector(1 << 20), vector(3)
    opt = distributed(large, small)
    kept = []
    for step in range(3):
        opt.zero_grad()
        put_gradient(large, RANK)
        put_gradient(small, step)
        opt.step()
        kept.append(small.grad)
    assert all(grad.untyped_storage().nbytes() == 12 for grad in kept)
    opt.close()


def transposed_zeros(p):
    return torch.zeros_like(p.mT).mT if p.dim() == 2 else torch.zeros_like(p)


def views_of(flat, params):
    at = 0
    for p in params:
        p.grad = flat[at : at + p.numel()].view_as(p)
        at += p.numel()


@pytest.mark.parametrize("layout", ["flat", "one each", "transposed"])
def test_buffers_that_the_user_gave_stay_the_gradients_and_are_zeroed_through(layout):
    model = small_model()
    params = list(model.parameters())
    flat = torch.zeros(sum(p.numel() for p in params))
    if layout == "flat":
        views_of(flat, params)
    else:
        for p in params:
            wanted = torch.zeros_like(p) if layout == "one each" else transposed_zeros(p)
            p.grad = wanted
    given = [p.grad for p in params]
    opt = distribute(model)
    for step in range(4):
        expected = mean_over([gradients_of(model, rank, step) for rank in range(SIZE)])
        if layout == "flat":
            flat.zero_()
        else:
            torch._foreach_zero_(given)
        backward(model, batch(step))
        opt.step()
        assert_gradients(model, expected)
        assert all(p.grad is grad for p, grad in zip(params, given, strict=True))
    if layout == "flat":
        torch.testing.assert_close(flat, torch.cat([grad.flatten() for grad in expected]))
    assert_replicas(model, opt)
    opt.close()


@pytest.mark.parametrize("how", ["weight 0", "left out", "skipped"])
def test_given_buffers_stay_in_steps_to_which_a_rank_contributes_nothing(how):
    p = vector()
    given = p.grad = torch.zeros(3)
    opt = distributed(p, backup_workers=SIZE - 1 if how == "skipped" else 0)
    for step in range(6):
        opt.zero_grad(set_to_none=False)
        # A gradient that is there in a first step without backward() was put together by hand.
        first = how == "left out" and step == 0
        idle = SIZE > 1 and not first and (step + RANK) % SIZE == 0
        opt.weight = 0.0 if idle and how == "weight 0" else 1.0
        with opt.attempt():
            if not idle:
                put_gradient(p, step + RANK)
            elif how == "skipped":
                raise Overtaken
        opt.step()
        assert p.grad is given
        same_everywhere(given.tolist())
    opt.close()


def test_a_gradient_put_together_by_hand_is_not_written_to():
    p = vector()
    opt = distributed(p)
    for step in range(3):
        by_hand = torch.full((3,), float(step + RANK))
        p.grad = by_hand
        opt.step()
        assert by_hand.tolist() == [step + RANK] * 3
        assert p.grad.tolist() == [step + MEAN] * 3
    opt.close()


def test_as_views_gradients_are_the_same_bits():
    copied, viewed = small_model(), small_model()
    opts = [distribute(copied), distribute(viewed, gradient_as_bucket_view=True)]
    for step in range(4):
        for model, opt in zip((copied, viewed), opts, strict=True):
            opt.zero_grad(set_to_none=step % 2 == 0)
            backward(model, batch(step))
            opt.step()
        for mine, theirs in zip(copied.parameters(), viewed.parameters(), strict=True):
            assert torch.equal(mine, theirs)
            assert torch.equal(mine.grad, theirs.grad)
    assert_replicas(viewed)
    for opt in opts:
        opt.close()
