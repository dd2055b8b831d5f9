"""What users do to gradients between backward and step, and after it."""

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


def gradients_of(model, rank, step):
    """What `rank` computes in a step, by a copy of the model on this rank."""
    alone = small_model()
    alone.load_state_dict(model.state_dict())
    backward(alone, batch(step, rank))
    return [p.grad for p in alone.parameters()]


def mean_over(per_rank):
    return [torch.stack(grads).mean(0) for grads in zip(*per_rank, strict=True)]


def assert_gradients(model, expected):
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-7)


def test_after_step_grad_is_the_mean():
    model = small_model()
    opt = distribute(model)
    for step in range(4):
        expected = mean_over([gradients_of(model, rank, step) for rank in range(SIZE)])
        opt.zero_grad()
        backward(model, batch(step))
        opt.step()
        assert_gradients(model, expected)
        assert_replicas(model, opt)
    opt.close()


def test_parameters_unused_on_all_ranks_keep_no_gradient():
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    opt = distribute(model, optim.AdamW)
    before = tensor_bits(model["unused"].weight)
    for _ in range(3):
        opt.zero_grad()
        model["used"](torch.ones(2, 3)).sum().backward()
        opt.step()
        assert model["unused"].weight.grad is None
        assert tensor_bits(model["unused"].weight) == before  # no weight decay either
    assert_replicas(model, opt)
    opt.close()


def test_parameters_used_on_some_ranks_get_a_mean_with_zeros():
    model = nn.ModuleDict({"first": nn.Linear(3, 1), "others": nn.Linear(3, 1)})
    opt = distribute(model)
    for step in range(4):
        opt.zero_grad()
        used = "first" if (RANK + step) % SIZE == 0 else "others"
        model[used](torch.full((1, 3), float(RANK + 1))).sum().backward()
        opt.step()
        first = (-step) % SIZE  # the rank that used it
        torch.testing.assert_close(
            model["first"].weight.grad, torch.full((1, 3), (first + 1) / SIZE)
        )
        if SIZE == 1:
            assert model["others"].weight.grad is None
        else:
            others = sum(range(1, SIZE + 1)) - (first + 1)
            expected = torch.full((1, 3), others / SIZE)
            torch.testing.assert_close(model["others"].weight.grad, expected)
        assert_replicas(model, opt)
    opt.close()


def accumulated(model, rank, step):
    micro = [gradients_of(model, rank, 10 * step + k) for k in range(3)]
    return [sum(grads) for grads in zip(*micro, strict=True)]


def test_gradients_accumulate_over_several_backward_passes():
    model = small_model()
    opt = distribute(model, backward_passes_per_step=3)
    for step in range(3):
        expected = mean_over([accumulated(model, rank, step) for rank in range(SIZE)])
        opt.zero_grad()
        for k in range(3):
            backward(model, batch(10 * step + k))
        opt.step()
        assert_gradients(model, expected)
    assert_replicas(model, opt)
    opt.close()


@pytest.mark.parametrize("attempt", [False, True])
def test_gradients_are_clipped_before_the_exchange(attempt):
    model = small_model()
    opt = distribute(model, backup_workers=SIZE - 1 if attempt else 0)
    for step in range(5):
        with opt.attempt():
            opt.zero_grad()
            backward(model, batch(step))
            assert nn.utils.clip_grad_norm_(model.parameters(), 0.01) > 0.01
        opt.step()
        mean = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert mean.norm() <= 0.01 * (1 + 1e-4)
    assert_replicas(model, opt)
    opt.close()


@pytest.mark.parametrize("set_to_none", [False, True])
def test_zero_grad_of_both_kinds(set_to_none):
    model = small_model()
    opt = distribute(model)
    for step in range(4):
        expected = mean_over([gradients_of(model, rank, step) for rank in range(SIZE)])
        opt.zero_grad(set_to_none=set_to_none)
        for p in model.parameters():
            assert p.grad is None if set_to_none or step == 0 else not p.grad.any()
        backward(model, batch(step))
        opt.step()
        assert_gradients(model, expected)
    assert_replicas(model, opt)
    opt.close()


def test_without_zero_grad_the_next_gradient_is_added_to_the_mean():
    model = small_model()
    opt = distribute(model)
    kept = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(4):
        new = mean_over([gradients_of(model, rank, step) for rank in range(SIZE)])
        backward(model, batch(step))
        opt.step()
        kept = [old + grad for old, grad in zip(kept, new, strict=True)]
        assert_gradients(model, kept)
    assert_replicas(model, opt)
    opt.close()


def scale(p):
    p.grad.mul_(RANK + 2)


def scale_data(p):
    p.grad.data.mul_(RANK + 2)


def scale_as_numpy(p):
    p.grad.numpy()[...] *= RANK + 2


def replace(p):
    p.grad = p.grad * (RANK + 2)


def drop(p):
    p.grad = None


@pytest.mark.parametrize("spoil", [scale, scale_data, scale_as_numpy, replace, drop])
@pytest.mark.parametrize("backups", ["none", "all but one"])
def test_what_a_rank_does_to_its_gradients_after_step_is_its_own_affair(spoil, backups):
    model = small_model()
    opt = distribute(
        model, optim.AdamW, backup_workers=0 if backups == "none" else SIZE - 1, window=2
    )

    def spoil_all(step):
        expected = [tensor_bits(p.grad) for p in model.parameters()]
        same_everywhere(expected)
        if step % 3 != 2:
            for p in model.parameters():
                spoil(p)

    train(model, opt, 12, after_step=spoil_all)
    same_everywhere([tensor_bits(p) for p in model.parameters()])
    opt.close()


def test_gradients_of_the_last_step_stay_readable_after_close():
    model = small_model()
    opt = distribute(model)
    train(model, opt, 2)
    before = [tensor_bits(p.grad) for p in model.parameters()]
    opt.close()
    train_alone = [tensor_bits(p.grad) for p in model.parameters()]
    assert train_alone == before
    for p in model.parameters():
        p.grad.zero_()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_backward_that_keeps_a_graph():
    model = small_model()
    opt = distribute(model)
    for step in range(3):
        opt.zero_grad()
        x, y = batch(step)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(create_graph=True)
        opt.step()
        assert all(p.grad.grad_fn is None for p in model.parameters())
    assert_replicas(model, opt)
    opt.close()


def test_a_gradient_that_was_given_other_memory_is_exchanged_all_the_same():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    optimizer = distribute(model, lr=1.0)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        model.weight.grad.data = torch.full((1, 2), float(RANK))
        optimizer.step()
        expected = torch.full((1, 2), -(step + 1) * (SIZE - 1) / 2)
        torch.testing.assert_close(model.weight.detach(), expected)
        model.weight.grad.data = torch.zeros(1, 2)


def test_a_model_may_be_converted_between_steps():
    model = small_model()
    optimizer = distribute(model)
    train(model, optimizer, 2)
    model.double()
    for step in range(2):
        optimizer.zero_grad()
        backward(model, batch(step, dtype=torch.float64))
        optimizer.step()
    assert_replicas(model, optimizer)


@pytest.mark.parametrize("frozen", ["one layer", "all"])
def test_what_is_frozen_after_backward_is_exchanged_all_the_same(frozen):
    model = small_model()
    opt = distribute(model)
    part = model[0] if frozen == "one layer" else model
    for step in range(3):
        expected = mean_over([gradients_of(model, rank, step) for rank in range(SIZE)])
        opt.zero_grad()
        backward(model, batch(step))
        part.requires_grad_(False)
        opt.step()
        part.requires_grad_(True)
        assert_gradients(model, expected)
        assert_replicas(model, opt)
    opt.close()


def test_what_ranks_freeze_by_themselves_counts_as_zeros():
    params = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    opt = hvd.DistributedOptimizer(optim.SGD(params, lr=1.0))
    for step in range(4):
        if step == 2:
            params[RANK % 3].requires_grad_(False)
        opt.zero_grad()
        sum((p * float(RANK + 1)).sum() for p in params).backward()
        opt.step()
        for i, p in enumerate(params):
            there = [rank + 1 for rank in range(SIZE) if step < 2 or rank % 3 != i]
            if there:
                torch.testing.assert_close(p.grad, torch.full((2,), sum(there) / SIZE))
            else:
                assert p.grad is None
    same_everywhere([p.tolist() for p in params])
    opt.close()


def test_gradients_of_parameters_that_never_needed_one_are_exchanged():
    model = nn.Linear(2, 2).requires_grad_(False)
    opt = distribute(model, lr=1.0)
    before = model.weight.clone()
    for step in range(3):
        for p in model.parameters():
            p.grad = torch.full_like(p, float(step + RANK))  # estimated, say
        opt.step()
    expected = before - sum(step + (SIZE - 1) / 2 for step in range(3))
    torch.testing.assert_close(model.weight, expected)
    same_everywhere(tensor_bits(model.weight))
    opt.close()


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_there_twice_has_one_gradient():
    p = nn.Parameter(torch.zeros(2))
    opt = hvd.DistributedOptimizer(optim.SGD([p, p], lr=1.0))
    for _ in range(2):
        opt.zero_grad()
        (p * float(RANK)).sum().backward()
        opt.step()
        assert p.grad.tolist() == [(SIZE - 1) / 2] * 2
    opt.close()


def test_a_gradient_that_was_set_to_none_begins_anew():
    real, fake = small_model(), small_model(1)
    opt, other = distribute(real), distribute(fake, backward_passes_per_step=2)
    for step in range(3):  # as torch's tutorial trains a GAN
        fake.zero_grad()
        backward(fake, batch(step))
        backward(fake, batch(step + 100))
        other.step()
        real.zero_grad()
        x, y = batch(step)
        nn.functional.cross_entropy(fake(torch.cat([real(x), real(x)], 1)), y).backward()
        opt.step()
    assert_replicas(real, opt)
    with pytest.raises(RuntimeError, match="mid-way"):
        fail_amid_backward(real)
    real.zero_grad()
    backward(real, batch(9))
    opt.step()
    assert_replicas(real, opt)
    opt.close()
    other.close()


def fail_amid_backward(model):
    handle = model[0].weight.register_hook(
        lambda grad: (_ for _ in ()).throw(RuntimeError("mid-way"))
    )
    try:
        backward(model, batch(0))
    finally:
        handle.remove()
