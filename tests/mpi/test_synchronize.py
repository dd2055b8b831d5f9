"""synchronize(), skip_synchronize(), backward passes: Horovod's idioms of a step."""

import copy
import warnings

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.test_gradients import assert_gradients, gradients_of, mean_over
from mpi.training import (
    assert_replicas,
    backward,
    batch,
    distribute,
    numbers_of_backups,
    small_model,
    tensor_bits,
)
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi


def test_clipping_after_synchronize_acts_on_the_agreed_mean_alike_on_all_ranks():
    for b in numbers_of_backups():
        model = small_model()
        opt = distribute(model, backup_workers=b)
        for step in range(4):
            with opt.attempt():
                opt.zero_grad()
                backward(model, batch(step))
            opt.synchronize()
            agreed = [p.grad.clone() for p in model.parameters()]
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            torch.testing.assert_close(norm, torch.cat([g.flatten() for g in agreed]).norm())
            same_everywhere(float(norm), [tensor_bits(p.grad) for p in model.parameters()])
            before = [p.detach().clone() for p in model.parameters()]
            with opt.skip_synchronize():
                opt.step()
            for p, old, grad in zip(model.parameters(), before, agreed, strict=True):
                clipped = grad * (0.01 / (norm + 1e-6)).clamp(max=1.0)
                torch.testing.assert_close(p.detach(), old - 0.05 * clipped)
        assert opt.stats().rounds == 4
        assert_replicas(model, opt)
        opt.close()


def test_without_backups_the_clipped_mean_is_that_of_the_large_batch():
    model, alone = small_model(), small_model()
    opt = distribute(model, lr=0.1)
    local = optim.SGD(alone.parameters(), lr=0.1)
    for step in range(5):
        opt.zero_grad()
        backward(model, batch(step))
        opt.synchronize()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        with opt.skip_synchronize():
            opt.step()
        local.zero_grad()
        parts = [batch(step, rank) for rank in range(SIZE)]
        backward(alone, [torch.cat(part) for part in zip(*parts, strict=True)])
        nn.utils.clip_grad_norm_(alone.parameters(), 0.05)
        local.step()
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    opt.close()


def test_step_after_synchronize_without_skip_warns_and_is_another_round_of_the_same_mean():
    model = small_model()
    opt = distribute(model)
    expected = mean_over([gradients_of(model, rank, 0) for rank in range(SIZE)])
    backward(model, batch(0))
    opt.synchronize()
    with pytest.warns(UserWarning, match=r"step\(\) called without optimizer.skip_synchronize\(\)"):
        opt.step()
    assert opt.stats().rounds == 2
    assert_gradients(model, expected)
    with warnings.catch_warnings():  # the next one is a step like any other
        warnings.simplefilter("error")
        opt.zero_grad()
        backward(model, batch(1))
        opt.step()
    assert_replicas(model, opt)
    opt.close()


def test_a_step_that_would_part_the_replicas_is_refused():
    model = small_model()
    opt = distribute(model)
    backward(model, batch(0))
    with (
        opt.skip_synchronize(),
        pytest.raises(RuntimeError, match=r"without synchronize\(\) before it"),
    ):
        opt.step()
    with pytest.raises(RuntimeError, match=r"synchronize\(\) belongs after"), opt.attempt():
        opt.synchronize()
    opt.step()
    assert opt.stats().rounds == 1
    opt.close()


def test_more_backward_passes_than_said_are_refused_at_the_pass_that_is_too_many():
    model = small_model()
    opt = distribute(model, backward_passes_per_step=2)
    for step in range(2):
        opt.zero_grad()
        backward(model, batch(step))
        backward(model, batch(step))
        with pytest.raises(AssertionError, match="more than backward_passes_per_step times"):
            backward(model, batch(step))
        opt.step()
    for _ in range(2):
        backward(model, batch(0))
    with pytest.raises(AssertionError, match=r"backward_passes_per_step=2, parameter '5\.bias'"):
        backward(model, batch(0))
    opt.step()
    opt.close()


def test_the_number_of_passes_may_change_between_steps_and_fewer_are_fine():
    model = small_model()
    opt = distribute(model)
    for passes in (1, 3, 2):
        opt.set_backward_passes_per_step(passes)
        for made in {1, passes}:
            opt.zero_grad()
            per_rank = [
                [gradients_of(model, rank, 10 * k) for k in range(made)] for rank in range(SIZE)
            ]
            sums = [[sum(parts) for parts in zip(*grads, strict=True)] for grads in per_rank]
            for k in range(made):
                backward(model, batch(10 * k))
            opt.step()
            assert_gradients(model, mean_over(sums))  # summed over passes, a mean over ranks
    with pytest.raises(ValueError, match="must be > 0, not 0"):
        opt.set_backward_passes_per_step(0)
    assert_replicas(model, opt)
    opt.close()


def test_zero_grad_between_backward_and_step_is_refused_as_in_horovod():
    model = small_model()
    opt = distribute(model)
    for step in range(2):
        opt.zero_grad()
        opt.zero_grad(set_to_none=False)
        backward(model, batch(step))
        with pytest.raises(AssertionError, match=r"after loss.backward\(\) but before"):
            opt.zero_grad()
        if step:
            opt.step()
        else:
            opt.synchronize()
            opt.zero_grad()  # Horovod allows it here, for whatever it may be good
            with opt.skip_synchronize():
                opt.step()
    opt.close()
    backward(model, batch(0))
    opt.zero_grad()  # closed, it is a local optimizer


def test_loading_a_state_dict_forgets_what_was_under_way():
    model = small_model()
    opt = distribute(model, optim.Adam)
    state = copy.deepcopy(opt.state_dict())
    backward(model, batch(0))
    opt.load_state_dict(state)
    opt.zero_grad()
    backward(model, batch(0))
    opt.step()
    assert_replicas(model, opt)
    opt.close()


def test_a_scheduler_made_before_or_after_sees_its_optimizer():
    for early in (True, False):
        model = small_model()
        plain = optim.SGD(model.parameters(), lr=1.0)
        if early:
            scheduler = optim.lr_scheduler.StepLR(plain, 1, 0.5)
        opt = hvd.DistributedOptimizer(plain, model.named_parameters())
        if not early:
            scheduler = optim.lr_scheduler.StepLR(opt, 1, 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(3):
                opt.zero_grad()
                backward(model, batch(step))
                opt.step()
                scheduler.step()
        assert opt.param_groups[0]["lr"] == 0.125
        assert opt.stats().rounds == 3
        opt.close()
        backward(model, batch(0))
        opt.step()  # a local one
        assert opt.stats().rounds == 3


def test_unequal_batches_weighted_by_their_sizes_give_the_large_batchs_gradient():
    model, alone = small_model(), small_model()
    opt = distribute(model)
    for step in range(3):
        sizes = [(rank + step) % SIZE * 3 + 1 for rank in range(SIZE)]
        if SIZE > 1 and step == 2:
            sizes[0] = 0  # nothing left for rank 0: it abstains
        opt.zero_grad()
        if sizes[RANK]:
            backward(model, batch(step, size=sizes[RANK]))
        opt.weight = sizes[RANK]
        opt.step()
        alone.zero_grad()
        parts = [batch(step, rank, size) for rank, size in enumerate(sizes) if size]
        backward(alone, [torch.cat(part) for part in zip(*parts, strict=True)])
        for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)
        alone.load_state_dict(model.state_dict())
        assert opt.last_round.weight == sum(sizes)
    opt.close()
