"""The way of gradients on a GPU, with CPU gradients and the kernels' twins."""

import logging

import numpy as np
import pytest
import torch
from mpi.helpers import RANK, SIZE, digest, same_everywhere

import hvd_backup.torch as hvd
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.torch import staging
from hvd_backup.torch.compression import Compression
from hvd_backup.torch.encoding import Codec, Encoding
from hvd_backup.torch.means import Means
from hvd_backup.torch.on_host import OnHost
from hvd_backup.torch.staged import Staged
from hvd_backup.world import runtime

pytestmark = pytest.mark.mpi


@pytest.fixture(params=[True, False], ids=["pinned", "by_a_buffer"])
def staged(request, monkeypatch):
    monkeypatch.setattr(staging, "STAGE_ON_CPU", True)
    monkeypatch.setattr(staging, "PIN", request.param)
    return request.param


def train(late="drop", steps=6, *, b=0):
    """Digest of the parameters after some steps, with a parameter that now and then has no grad."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(9, 20), torch.nn.Linear(20, 5).to(torch.float64), torch.nn.Conv2d(2, 3, 3)
    )
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), backup_workers=b, late=late
    )
    for step in range(steps):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        rows = torch.from_numpy(np.random.default_rng((RANK, step)).random((4, 9)))
        hidden = model[0](rows.float())
        loss = hidden.square().mean()
        if step % 3:
            loss = loss + model[1](hidden.double()).square().mean()
        if step % 3 == 1 and RANK == SIZE - 1:
            image = torch.full((1, 2, 4, 4), float(step)).to(memory_format=torch.channels_last)
            loss = loss + model[2](image).square().mean()
        loss.backward()
        optimizer.step()
    optimizer.close()
    return digest(*(p.detach().numpy() for p in model.parameters()))


def test_staged_gradients_give_the_bits_of_gradients_in_place(monkeypatch):
    monkeypatch.setattr(staging, "STAGE_ON_CPU", False)
    expected = train()
    for pin in (True, False):
        monkeypatch.setattr(staging, "STAGE_ON_CPU", True)
        monkeypatch.setattr(staging, "PIN", pin)
        assert train() == expected


@pytest.mark.parametrize("late", ["drop", "carry"])
def test_replicas_stay_equal_with_backup_workers(staged, late):
    same_everywhere(train(late, 12, b=SIZE - 1))


def test_that_memory_is_not_pinned_is_said_once_with_the_reason(staged, caplog):
    with caplog.at_level(logging.WARNING, "hvd_backup"):
        train()
    said = [text for text in caplog.messages if "cannot be pinned" in text]
    assert len(said) == (0 if staged else 1)
    assert all("it was not to be tried" in text for text in said)


def test_some_parameters_can_be_staged_and_others_be_in_place():
    params = [torch.full((n,), 1.0, requires_grad=True) for n in (3, 17, 0, 5, 40)]
    names = [f"p{i}" for i in range(len(params))]
    kind = Encoding(Compression.none, sparse_as_dense=False, sparse_mean="contributors")
    layout, contexts = kind.plan(params, names)
    with runtime.current().failing_together():
        exchange = Exchange(layout.flats, name="mixed", signature=layout.signature)
    codecs = [
        Codec(name, slot, ctx, kind)
        for name, slot, ctx in zip(names, layout.gradients(exchange.slots), contexts, strict=True)
    ]
    means = Means(params, codecs)
    ways = [
        Staged(means, layout, exchange, [0, 1, 4], pin=False),
        OnHost(means, layout, exchange, [2, 3]),
    ]
    marks = layout.marks(exchange.slots)
    for turn in range(3):
        for i, param in enumerate(params):
            param.grad = torch.full_like(param, RANK + 10.0 * i + turn)
        dense, sparse = [False] * 5, [False] * 5
        for way in ways:
            way.stage(dense, sparse)
        assert (dense, sparse) == ([True] * 5, [False] * 5)
        marks.dense[:] = dense
        exchange.arrive_and_wait()
        for way in ways:
            way.load()
        for i, param in enumerate(params):
            expected = torch.full_like(param, (SIZE - 1) / 2 + 10.0 * i + turn)
            assert torch.equal(param.grad, expected)
    for way in ways:
        way.own_gradients()
    exchange.close()


def table_and_matrix(steps=5, **options):
    """Digest of an embedding and a matrix that were trained, sparse gradients and others."""
    torch.manual_seed(0)
    table, matrix = torch.nn.Embedding(13, 4, sparse=True), torch.nn.Linear(4, 3)
    params = [*table.parameters(), *matrix.parameters()]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(params, 0.3), **options)
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        if step % 3 != 1 or RANK == 0:
            words = torch.tensor([(RANK + 5 * step) % 13, step, (3 * RANK + step) % 13])
            matrix(table(words)).square().mean().backward()
        if step == 3 and 0 < RANK == SIZE - 1:  # of one rank, all would abstain
            matrix.bias.grad[1] = float("nan")
        if step == 4 and RANK == 0:  # then the result is dense everywhere
            table.weight.grad = table.weight.grad.to_dense()
        optimizer.step()
        grad = table.weight.grad
        seen += [str(grad.layout), grad.is_sparse and grad._indices().tolist()]
        seen.append(grad.to_dense())
    optimizer.close()
    return digest(repr(seen).encode(), *(p.detach().numpy() for p in params))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparse_mean": "rows"},
        {"sparse_as_dense": True},
        {"compression": Compression.bf16},
        {"compression": Compression.fp16, "sparse_mean": "rows"},
        {"late": "carry"},
    ],
    ids=str,
)
def test_sparse_and_compressed_gradients_have_the_bits_of_those_in_place(options, monkeypatch):
    monkeypatch.setattr(staging, "STAGE_ON_CPU", False)
    expected = table_and_matrix(on_nonfinite="abstain", **options)
    monkeypatch.setattr(staging, "STAGE_ON_CPU", True)
    assert table_and_matrix(on_nonfinite="abstain", **options) == expected


def test_what_is_not_finite_is_found_in_what_was_staged(staged):
    param = torch.nn.Parameter(torch.ones(5))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([param], 1.0), on_nonfinite="raise", compression=Compression.fp16
    )
    param.grad = torch.tensor([1.0, 1e6, float("nan"), 0.0, 2.0])
    with pytest.raises(FloatingPointError, match=r"2 of 5 elements .*\(1 NaN, 1 infinite\)"):
        optimizer.step()
    param.grad = torch.full((5,), float(SIZE))
    optimizer.step()
    assert param.tolist() == [1.0 - SIZE] * 5
    optimizer.close()
