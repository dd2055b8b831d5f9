"""Embeddings with sparse gradients: in the same round as everything else."""

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import assert_replicas, numbers_of_backups, tensor_bits
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi

ROWS, WIDTH = 11, 3


def touched(rank, step):
    """The rows that a rank looks up in a step, some of them twice."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randint(0, ROWS - 1, (4,), generator=generator)  # the last row: nobody ever


def gradient(rank, step):
    """What SparseEmbedding's backward pass gives, dense, and the rows it touches."""
    whole, rows = torch.zeros(ROWS, WIDTH), touched(rank, step)
    whole.index_add_(0, rows, torch.full((4, WIDTH), 1.0 + rank))
    return whole, set(rows.tolist())


def table_and_optimizer(make=optim.SGD, **ours):
    torch.manual_seed(0)
    table = nn.Embedding(ROWS, WIDTH, sparse=True)
    plain = make(list(table.parameters()), lr=0.5)
    return table, hvd.DistributedOptimizer(plain, table.named_parameters(), **ours)


def look_up(table, step):
    ((1.0 + RANK) * table(touched(RANK, step))).sum().backward()


@pytest.mark.parametrize("sparse_mean", ["contributors", "rows"])
def test_the_result_has_the_rows_that_contributors_touched_and_their_mean(sparse_mean):
    for b in numbers_of_backups():
        table, opt = table_and_optimizer(backup_workers=b, sparse_mean=sparse_mean)
        for step in range(5):
            opt.zero_grad()
            look_up(table, step)
            opt.weight = 1.0 + RANK % 2
            opt.step()
            among = opt.last_round.contributors
            weights = {rank: 1.0 + rank % 2 for rank in among}
            total = sum(weights[rank] * gradient(rank, step)[0] for rank in among)
            share = torch.zeros(ROWS)
            for rank in among:
                share[list(gradient(rank, step)[1])] += weights[rank]
            grad = table.weight.grad
            assert grad.is_sparse
            assert grad.is_coalesced()
            assert grad.indices()[0].tolist() == share.nonzero().flatten().tolist()
            by = share.clamp(min=1)[:, None] if sparse_mean == "rows" else sum(weights.values())
            torch.testing.assert_close(grad.to_dense(), total / by)
            same_everywhere(tensor_bits(grad.values()), tensor_bits(table.weight))
        opt.close()


def test_op_sum_adds_up_by_index():
    table, opt = table_and_optimizer(op=hvd.Sum)
    look_up(table, 0)
    opt.step()
    expected = sum(gradient(rank, 0)[0] for rank in range(SIZE))
    torch.testing.assert_close(table.weight.grad.to_dense(), expected)
    opt.close()


@pytest.mark.parametrize("sparse_as_dense", [False, True])
@pytest.mark.parametrize("late", ["drop", "carry"])
def test_sparse_adam_with_stragglers_leaves_replicas_identical(sparse_as_dense, late):
    for b in {0, SIZE - 1}:
        table, opt = table_and_optimizer(
            optim.SparseAdam, sparse_as_dense=sparse_as_dense, backup_workers=b, late=late
        )
        before = table.weight[ROWS - 1].tolist()
        for step in range(12):
            with opt.attempt():
                opt.zero_grad()
                look_up(table, step)
            opt.step()
            assert table.weight.grad.is_sparse
            assert ROWS - 1 not in table.weight.grad.indices()[0]
        assert table.weight[ROWS - 1].tolist() == before
        same_everywhere(tensor_bits(table.weight))
        opt.close()


class Classifier(nn.Module):
    """A dense and a sparse half: one decision for both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.EmbeddingBag(ROWS, WIDTH, mode="sum", sparse=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, rows):
        return self.head(self.table(rows[None]))


def test_dense_and_sparse_gradients_are_in_one_round():
    for compression in (hvd.Compression.none, hvd.Compression.bf16):
        model = Classifier()
        opt = hvd.DistributedOptimizer(
            optim.SGD(model.parameters(), lr=0.1),
            model.named_parameters(),
            compression=compression,
            backup_workers=min(1, SIZE - 1),
        )
        for step in range(8):
            opt.zero_grad()
            model(touched(RANK, step)).pow(2).sum().backward()
            opt.step()
            assert model.table.weight.grad.is_sparse
            assert not model.head.weight.grad.is_sparse
            rows = set(model.table.weight.grad.indices()[0].tolist())
            among = [gradient(rank, step)[1] for rank in opt.last_round.contributors]
            assert rows <= set().union(*among)
        assert opt.stats().rounds == 8
        same_everywhere([tensor_bits(p) for p in model.parameters()])
        opt.close()


def test_sparse_on_one_rank_dense_or_none_on_others():
    for step in range(3):
        table, opt = table_and_optimizer()
        kinds = [("sparse", "dense", "none")[(rank + step) % 3] for rank in range(SIZE)]
        for again in range(3):  # what is left in the slot of one kind must not show in another
            kind = kinds[(RANK + again) % SIZE]
            opt.zero_grad()
            if kind != "none":
                look_up(table, again)
            if kind == "dense":
                table.weight.grad = table.weight.grad.to_dense()
            opt.step()
            now = [kinds[(rank + again) % SIZE] for rank in range(SIZE)]
            grad = table.weight.grad
            if set(now) == {"none"}:
                assert grad is None
                continue
            assert grad.is_sparse == ("dense" not in now)
            there = [rank for rank in range(SIZE) if now[rank] != "none"]
            expected = sum(gradient(rank, again)[0] for rank in there) / SIZE
            torch.testing.assert_close(grad.to_dense() if grad.is_sparse else grad, expected)
        same_everywhere(tensor_bits(table.weight))
        opt.close()


def test_sparse_gradients_accumulate_over_passes_and_without_zero_grad():
    table, opt = table_and_optimizer(backward_passes_per_step=2)
    look_up(table, 0)
    look_up(table, 1)
    opt.step()
    first = sum(gradient(rank, step)[0] for rank in range(SIZE) for step in (0, 1)) / SIZE
    torch.testing.assert_close(table.weight.grad.to_dense(), first)
    look_up(table, 2)  # on top of the mean
    opt.step()
    second = first + sum(gradient(rank, 2)[0] for rank in range(SIZE)) / SIZE
    torch.testing.assert_close(table.weight.grad.to_dense(), second)
    opt.close()
    table.weight.grad.values().zero_()  # its own memory


def test_a_gradient_that_touches_no_row_and_those_of_one_axis_or_all():
    table, opt = table_and_optimizer()
    table.weight.grad = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, WIDTH), (ROWS, WIDTH)
    )
    opt.step()
    assert table.weight.grad.is_sparse
    assert table.weight.grad._nnz() == 0
    opt.close()
    line, plane = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(4, 3))
    opt = hvd.DistributedOptimizer(optim.SGD([line, plane], lr=1.0))
    for _ in range(2):
        opt.zero_grad()
        (
            torch.gather(line, 0, torch.tensor([2, 2]), sparse_grad=True).sum()
            + torch.gather(plane, 1, torch.tensor([[1], [2]]), sparse_grad=True).sum()
        ).backward()
        opt.step()
        assert line.grad.to_dense().tolist() == [0, 0, 2, 0, 0]
        assert plane.grad.to_dense()[:2].tolist() == [[0, 1, 0], [0, 0, 1]]
        assert plane.grad.coalesce().indices()[0].unique().tolist() == [0, 1]
    opt.close()


def test_dense_rows_of_a_model_without_sparse_gradients_are_as_ever():
    model = nn.Embedding(ROWS, WIDTH)
    opt = hvd.DistributedOptimizer(optim.Adam(model.parameters()), model.named_parameters())
    for step in range(2):
        opt.zero_grad()
        look_up(model, step)
        opt.step()
        assert not model.weight.grad.is_sparse
    assert_replicas(model, opt)
    opt.close()
