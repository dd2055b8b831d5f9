"""Horovod's DistributedOptimizer for torch. `make test-launchers` runs this against it, too."""

import warnings

import pytest
import torch
from mpi.helpers import RANK, SIZE
from torch import nn

pytestmark = pytest.mark.mpi

LR = 0.5


def gradient_of(rank, step=0, count=6):
    """Whole numbers: sums are exact, whatever their order."""
    return ((torch.arange(count) * 5 + 3 * rank + 7 * step) % 11 - 4).float()


def mean_of(step=0, ranks=range(SIZE)):
    return torch.stack([gradient_of(rank, step) for rank in ranks]).mean(0)


def vector(count=6):
    return nn.Parameter(torch.zeros(count))


def backward(p, step=0):
    """Leaves this rank's gradient of that step in p.grad, as any loss would."""
    (p * gradient_of(RANK, step, p.numel())).sum().backward()


def distribute(hvd, params, **options):
    named = [(f"p{i}", p) for i, p in enumerate(params)]
    return hvd.DistributedOptimizer(torch.optim.SGD(params, lr=LR), named, **options)


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def steps(hvd, count=3, **options):
    """A vector after so many steps, each of which is checked by its gradient."""
    p = vector()
    optimizer = distribute(hvd, [p], **options)
    for step in range(count):
        optimizer.zero_grad()
        backward(p, step)
        optimizer.step()
        yield step, p
    if hasattr(optimizer, "close"):
        optimizer.close()


def test_a_step_applies_the_mean(hvd):
    total = torch.zeros(6)
    for step, p in steps(hvd):
        total += mean_of(step)
        assert_close(p.detach(), -LR * total)


def test_a_step_applies_the_sum_if_asked_to(hvd):
    for step, p in steps(hvd, op=hvd.Sum):
        assert_close(p.grad, SIZE * mean_of(step))


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_predivision_gives_the_mean(hvd, factor):
    for step, p in steps(hvd, gradient_predivide_factor=factor):
        assert_close(p.grad, mean_of(step))


def test_half_precision_on_the_way_gives_the_mean_in_full(hvd):
    for step, p in steps(hvd, compression=hvd.Compression.fp16):
        assert p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, mean_of(step), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("groups", [1, 2, "list"])
def test_groups_give_the_mean(hvd, groups):
    params = [vector(), vector(2), vector(9)]
    groups = [params[:2]] if groups == "list" else groups
    optimizer = distribute(hvd, params, groups=groups)
    for step in range(2):
        optimizer.zero_grad()
        for p in params:
            backward(p, step)
        optimizer.step()
        for p in params:
            expected = [gradient_of(rank, step, p.numel()) for rank in range(SIZE)]
            assert_close(p.grad, torch.stack(expected).mean(0))


def test_gradients_of_several_passes_are_summed(hvd):
    p = vector()
    optimizer = distribute(hvd, [p], backward_passes_per_step=2)
    for step in (0, 2):
        optimizer.zero_grad()
        backward(p, step)
        backward(p, step + 1)
        optimizer.step()
        assert_close(p.grad, mean_of(step) + mean_of(step + 1))
    optimizer.set_backward_passes_per_step(1)
    optimizer.zero_grad()
    backward(p, 5)
    optimizer.step()
    assert_close(p.grad, mean_of(5))


@pytest.mark.mpi(min_size=2)
def test_a_pass_too_many_is_an_assertion_error(hvd):
    p = vector()
    optimizer = distribute(hvd, [p])
    backward(p)
    with pytest.raises(AssertionError, match="backward_passes_per_step"):
        backward(p)
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()


def test_a_clipped_mean_is_applied_in_skip_synchronize(hvd):
    p = vector()
    optimizer = distribute(hvd, [p])
    backward(p)
    optimizer.synchronize()
    assert_close(p.grad, mean_of())
    nn.utils.clip_grad_norm_([p], 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with optimizer.skip_synchronize():
            optimizer.step()
    mean = mean_of()
    assert_close(p.detach(), -LR * mean * min(1.0, 0.5 / (float(mean.norm()) + 1e-6)))


@pytest.mark.mpi(min_size=2)
def test_step_after_synchronize_without_the_context_warns(hvd):
    p = vector()
    optimizer = distribute(hvd, [p])
    backward(p)
    optimizer.synchronize()
    with pytest.warns(UserWarning, match=r"called without optimizer.skip_synchronize\(\) context"):
        optimizer.step()
    assert_close(p.detach(), -LR * mean_of())


@pytest.mark.mpi(min_size=2)
def test_zero_grad_between_backward_and_step_is_an_assertion_error(hvd):
    p = vector()
    optimizer = distribute(hvd, [p])
    backward(p)
    with pytest.raises(AssertionError, match=r"optimizer.zero_grad\(\) was called after"):
        optimizer.zero_grad()
    optimizer.step()


@pytest.mark.mpi(min_size=2)
def test_a_parameter_that_one_rank_does_not_use_gets_the_mean_with_a_zero(hvd):
    used, perhaps = vector(), vector()
    optimizer = distribute(hvd, [used, perhaps])
    backward(used)
    if RANK != 0:
        backward(perhaps)
    optimizer.step()
    expected = sum(gradient_of(rank) for rank in range(1, SIZE)) / SIZE
    assert_close(perhaps.grad, expected)
    assert_close(used.grad, mean_of())


@pytest.mark.parametrize("as_dense", [True, False])
def test_status_board_of_an_embedding_are_averaged_over_all_ranks(hvd, as_dense):
    table = nn.Embedding(8, 3, sparse=True)
    nn.init.zeros_(table.weight)
    optimizer = distribute(hvd, [table.weight], sparse_as_dense=as_dense)
    rows = [[rank % 8, (rank + 1) % 8, rank % 8] for rank in range(SIZE)]
    table(torch.tensor(rows[RANK])).sum().backward()
    optimizer.step()
    expected = torch.zeros(8, 3)
    for row in (row for of_rank in rows for row in of_rank):
        expected[row] += 1.0 / SIZE
    assert_close(table.weight.detach(), -LR * expected)


@pytest.mark.mpi(min_size=2)
def test_a_process_set_steps_by_itself_and_other_ranks_alone(hvd):
    some = hvd.add_process_set(list(range(SIZE - 1)))
    p = vector()
    optimizer = distribute(hvd, [p], process_set=some)
    total = torch.zeros(6)
    for step in range(3):
        optimizer.zero_grad()
        backward(p, step)
        optimizer.step()
        total += mean_of(step, some.ranks) if some.included() else gradient_of(RANK, step)
        assert_close(p.detach(), -LR * total)
    hvd.barrier()
    if hasattr(optimizer, "close"):
        optimizer.close()
    assert hvd.remove_process_set(some)


def test_state_and_parameters_come_from_the_root(hvd):
    p = nn.Parameter(torch.full((4,), float(RANK)))
    local = torch.optim.SGD([p], lr=0.1 * (RANK + 1), momentum=0.5 + 0.01 * RANK)
    p.grad = torch.full((4,), float(RANK + 1))
    local.step()
    hvd.broadcast_parameters([("p", p)], root_rank=0)
    hvd.broadcast_optimizer_state(local, root_rank=0)
    assert_close(p.detach(), torch.full((4,), -0.1))
    assert local.param_groups[0]["lr"] == pytest.approx(0.1)
    assert local.param_groups[0]["momentum"] == pytest.approx(0.5)
    assert_close(local.state[p]["momentum_buffer"], torch.ones(4))


def test_names_must_be_unique_and_complete(hvd):
    params = [vector(), vector()]
    plain = torch.optim.SGD(params, lr=LR)
    with pytest.raises(ValueError, match="Parameter names in named_parameters must be unique"):
        hvd.DistributedOptimizer(plain, [("p", params[0]), ("p", params[1])])
    with pytest.raises(ValueError, match="one or more model parameters were not named"):
        hvd.DistributedOptimizer(plain, [("p", params[0])])
    with pytest.raises(ValueError, match="should be a sequence of tuples"):
        hvd.DistributedOptimizer(plain, params)
    with pytest.raises(ValueError, match="gradient_predivide_factor not supported with op != Aver"):
        hvd.DistributedOptimizer(plain, gradient_predivide_factor=2.0, op=hvd.Sum)
