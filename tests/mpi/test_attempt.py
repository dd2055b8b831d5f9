"""attempt(): leaving work that can no longer count."""

import time

import pytest
import torch
from mpi.helpers import RANK, SIZE
from mpi.training import assert_replicas, backward, batch, distribute, small_model, train
from torch import nn

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi

SLOW = SIZE - 1
needs_company = pytest.mark.mpi(min_size=2)


class Probe(nn.Module):
    """Counts passes, forward and backward; sleeps where it is told to."""

    def __init__(self, *, forward_s=0.0, backward_s=0.0):
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += 1
        time.sleep(self.forward_s if RANK == SLOW else 0)
        x = x * 1
        if x.requires_grad:
            x.register_hook(self.back)
        return x

    def back(self, _):
        self.backwards += 1
        time.sleep(self.backward_s if RANK == SLOW else 0)


def overtaken_model(**delays):
    """The second probe is entered when the slow rank has been overtaken by far."""
    torch.manual_seed(0)
    first, last = Probe(**delays), Probe()
    model = nn.Sequential(nn.Linear(6, 4), last, nn.Linear(4, 4), first, nn.Linear(4, 3))
    if "forward_s" in delays:
        model[1], model[3] = first, last
    return model, last


@needs_company
@pytest.mark.parametrize("where", ["forward_s", "backward_s"])
def test_an_overtaken_rank_leaves_from_the_next_module(where):
    model, probe = overtaken_model(**{where: 0.1})
    opt = distribute(model, backup_workers=1)
    opt.step()  # sets up
    left = 0
    for step in range(4):
        hvd.barrier()
        with opt.attempt() as attempt:
            opt.zero_grad()
            backward(model, batch(step))
        left += not attempt.completed
        opt.step()
        assert attempt.completed == (opt.stats().history[-1].arrived_at_s is not None)
    if RANK == SLOW:
        assert left >= 3
        assert opt.stats().skipped == left
        passes = probe.forwards if where == "forward_s" else probe.backwards
        assert passes == 4 - left
    hvd.barrier()
    assert_replicas(model, opt)
    opt.close()


@needs_company
def test_check_leaves_from_code_outside_of_modules():
    model = small_model()
    opt = distribute(model, backup_workers=1)
    opt.step()
    hvd.barrier()
    with opt.attempt() as attempt:
        if RANK == SLOW:
            for _ in range(200):
                time.sleep(0.01)
                attempt.check()
            pytest.fail("nobody overtook this rank")
        backward(model, batch(0))
    opt.step()
    if RANK == SLOW:
        assert not opt.last_round.contributed
    assert_replicas(model, opt)
    opt.close()


def test_other_exceptions_pass_through_and_the_step_can_be_made():
    model = small_model()
    opt = distribute(model)
    backward(model, batch(0))
    with pytest.raises(ZeroDivisionError), opt.attempt() as attempt:
        raise ZeroDivisionError
    assert not attempt.completed
    opt.step()
    train(model, opt, 2, attempt=True)
    assert opt.stats().rounds == 3
    assert_replicas(model, opt)
    opt.close()


def test_blocks_do_not_nest_and_step_comes_after():
    model = small_model()
    opt = distribute(model)
    with opt.attempt():
        with pytest.raises(RuntimeError, match="one block per step"):
            opt.attempt()
        with pytest.raises(RuntimeError, match=r"step\(\) belongs after"):
            opt.step()
        backward(model, batch(0))
    opt.step()
    opt.close()


def test_modules_outside_of_a_block_are_left_alone():
    model, validation = small_model(), small_model()
    opt = distribute(model, backup_workers=SIZE - 1)
    for step in range(20):
        with opt.attempt():
            opt.zero_grad()
            backward(model, batch(step))
        assert validation(batch(step)[0]).shape == (8, 3)
        opt.step()
        assert validation(batch(step)[0]).shape == (8, 3)
    assert_replicas(model, opt)
    opt.close()


def test_without_backups_nobody_leaves():
    model = small_model()
    opt = distribute(model, backup_workers=0)
    for step in range(20):
        with opt.attempt() as attempt:
            opt.zero_grad()
            backward(model, batch(step))
        assert attempt.completed
        opt.step()
    assert opt.stats().contributed == 20
    opt.close()
