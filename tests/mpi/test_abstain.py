"""Gradients with NaN or inf: contributed, left out of the round, or an error."""

import logging

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import assert_replicas, backward, batch, distribute, small_model, tensor_bits
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi


def one_parameter(**ours):
    p = nn.Parameter(torch.zeros(70))
    return p, hvd.DistributedOptimizer(optim.SGD([p], lr=1.0), [("w", p)], **ours)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_by_default_everybody_gets_what_overflowed_anywhere(poison):
    p, opt = one_parameter()
    p.grad = torch.full((70,), poison if RANK == SIZE - 1 else 1.0)
    opt.step()
    assert not torch.isfinite(p.grad).any()
    assert opt.stats().abstained == 0
    opt.close()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("compression", [hvd.Compression.none, hvd.Compression.fp16])
def test_who_abstains_is_left_out_of_the_mean_without_holding_up_the_round(poison, compression):
    p, opt = one_parameter(on_nonfinite="abstain", compression=compression)
    for step in range(4):
        out = step % SIZE  # another rank each time; alone in the world, every time
        p.grad = torch.full((70,), float(RANK + 1))
        if out == RANK:
            p.grad[69] = poison
        opt.step()
        others = [rank + 1 for rank in range(SIZE) if rank != out]
        assert opt.last_round.weight == len(others)
        if others:
            expected = torch.full((70,), sum(others) / len(others))
            torch.testing.assert_close(p.grad, expected, rtol=1e-3, atol=0)
        else:
            assert p.grad is None
    stats = opt.stats()
    assert stats.abstained == sum(step % SIZE == RANK for step in range(4))
    assert stats.contributed == 4 - stats.abstained
    assert stats.late == 0
    opt.close()


def test_fp16_overflow_in_compression_counts_as_not_finite():
    p, opt = one_parameter(on_nonfinite="abstain", compression=hvd.Compression.fp16)
    p.grad = torch.full((70,), 1e6 if RANK == 0 else 2.0)
    opt.step()
    assert opt.stats().abstained == (RANK == 0)
    if SIZE > 1:
        assert torch.equal(p.grad, torch.full((70,), 2.0))
    opt.close()


def test_if_all_abstain_nobodys_parameters_change_and_all_are_told_once(caplog):
    for b in {0, SIZE - 1}:
        model = small_model()
        opt = distribute(
            model,
            optim.SGD,
            options={"momentum": 0.9, "weight_decay": 0.1},
            on_nonfinite="abstain",
            backup_workers=b,
        )
        before = [tensor_bits(p) for p in model.parameters()]
        with caplog.at_level(logging.WARNING, "hvd_backup"):
            caplog.clear()
            for step in range(3):
                backward(model, batch(step))
                for p in model.parameters():
                    p.grad.fill_(float("nan"))
                opt.step()
                assert opt.last_round.weight == 0
                assert all(p.grad is None for p in model.parameters())
        said = [record.getMessage() for record in caplog.records]
        assert sum("every contributor abstained" in words for words in said) == 1
        assert sum("this rank abstains" in words for words in said) == 1
        assert "'0.weight' 96 of 96 elements are not finite (96 NaN, 0 infinite)" in " ".join(said)
        assert before == [tensor_bits(p) for p in model.parameters()]
        opt.zero_grad()
        backward(model, batch(4))
        opt.step()
        assert opt.last_round.weight == SIZE - b
        assert_replicas(model, opt)
        opt.close()


def test_training_with_stragglers_and_overflows_leaves_replicas_identical():
    for late in ("drop", "carry"):
        model = small_model()
        opt = distribute(
            model,
            optim.Adam,
            lr=0.01,
            on_nonfinite="abstain",
            backup_workers=min(1, SIZE - 1),
            late=late,
        )
        for step in range(40):
            with opt.attempt():
                opt.zero_grad()
                backward(model, batch(step))
                if (step + RANK) % 5 == 0:
                    model[0].weight.grad[0, 0] = float("nan")
            opt.step()
            same_everywhere(opt.last_round.contributors, opt.last_round.weight)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert opt.stats().contributed + opt.stats().abstained + opt.stats().late == 40
        assert_replicas(model, opt)
        opt.close()


def test_raise_says_which_parameter_before_anything_is_sent():
    p, opt = one_parameter(on_nonfinite="raise")
    p.grad = torch.ones(70)
    if RANK == 0:
        p.grad[3:5] = torch.tensor([float("nan"), float("inf")])
        with pytest.raises(
            FloatingPointError,
            match=r"round 0, rank 0: of the gradient of parameter 'w' 2 of 70 elements are not "
            r"finite \(1 NaN, 1 infinite\); nothing was sent",
        ):
            opt.step()
        p.grad = torch.ones(70)
    opt.step()
    assert torch.equal(p.grad, torch.ones(70))
    opt.close()


def test_a_sparse_gradient_that_is_not_finite_abstains_too():
    table = nn.Embedding(6, 2, sparse=True)
    opt = hvd.DistributedOptimizer(optim.SGD(table.parameters(), lr=1.0), on_nonfinite="abstain")
    for step in range(2):
        opt.zero_grad()
        loss = table(torch.tensor([RANK % 6])).sum()
        (loss * (float("nan") if RANK == 0 and step == 0 else 1.0)).backward()
        opt.step()
        assert opt.last_round.weight == SIZE - (step == 0)
    assert opt.stats().abstained == (RANK == 0)
    opt.close()
