"""What is larger than MPI counts travels in pieces. Here pieces have a few bytes."""

import numpy as np
import pytest
import torch
from mpi.helpers import RANK, SIZE, assert_same_bits, same_everywhere

import hvd_backup as hb
import hvd_backup.torch as hvd
from hvd_backup.world import runtime, wire

pytestmark = pytest.mark.mpi

LAST = SIZE - 1
DTYPES = ["uint8", "int64", "float16", "float32", "float64"]


@pytest.fixture(params=[1, 24, 64 * SIZE], autouse=True)
def _small_pieces(request, monkeypatch):
    monkeypatch.setattr(wire, "LARGEST", request.param)


def of_rank(rank, rows=5, dtype="float32"):
    return (np.arange(rows * 3).reshape(rows, 3) + 10 * rank).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_collective_gives_in_pieces_what_it_gives_in_one(dtype):
    everybody = [of_rank(rank, dtype=dtype) for rank in range(SIZE)]
    mine = everybody[RANK]
    total = np.sum(everybody, axis=0, dtype=dtype)
    assert_same_bits(hb.allreduce(mine, op=hb.Sum), total)
    assert_same_bits(hb.broadcast(mine, LAST), everybody[LAST])
    share = np.array_split(total, SIZE)[RANK]
    assert_same_bits(hb.reducescatter(mine, op=hb.Sum), share)
    rows = [of_rank(rank, rows=rank % 3, dtype=dtype) for rank in range(SIZE)]
    assert_same_bits(hb.allgather(rows[RANK]), np.concatenate(rows))


def test_status_board_go_to_every_rank_in_pieces_by_splits():
    def splits(rank):
        return [(rank + 2 * to) % 4 for to in range(SIZE)]

    def sent(rank, to):
        first = sum(splits(rank)[:to])
        return of_rank(rank, rows=sum(splits(rank)) + 1)[first : first + splits(rank)[to]]

    mine = of_rank(RANK, rows=sum(splits(RANK)) + 1)
    result, received = hb.alltoall(mine, splits(RANK))
    assert received == [splits(rank)[RANK] for rank in range(SIZE)]
    assert_same_bits(result, np.concatenate([sent(rank, RANK) for rank in range(SIZE)]))


def test_nothing_goes_in_one_piece_of_nothing():
    empty = np.empty((0, 3), np.float32)
    assert hb.allreduce(empty, op=hb.Sum).shape == (0, 3)
    assert hb.broadcast(empty, LAST).shape == (0, 3)
    assert hb.allgather(empty).shape == (0, 3)
    assert hb.reducescatter(empty, op=hb.Sum).shape == (0, 3)
    assert hb.alltoall(empty)[0].shape == (0, 3)


def test_objects_of_every_size_travel_in_pieces():
    objects = [{"rank": rank, "text": "x" * 50 * rank} for rank in range(SIZE)]
    assert hb.broadcast_object(objects[RANK], LAST) == objects[LAST]
    assert hb.allgather_object(objects[RANK]) == objects
    with pytest.raises(hb.Error, match=f"rank {LAST}: .*pickle"):
        hb.broadcast_object((i for i in "no pickle"), LAST)


def test_models_and_optimizers_travel_in_pieces():
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5))
    torch.nn.init.constant_(model[0].weight, RANK)
    opt = torch.optim.Adam(model.parameters(), lr=1.0 + RANK)
    model(torch.randn(4, 7)).sum().backward()
    opt.step()
    hvd.broadcast_parameters(model.state_dict(), root_rank=LAST)
    hvd.broadcast_optimizer_state(opt, root_rank=LAST)
    same_everywhere([p.tolist() for p in model.parameters()])
    same_everywhere([s["exp_avg"].tolist() for s in opt.state.values()])
    assert opt.param_groups[0]["lr"] == 1.0 + LAST


class Counting:
    """A communicator that notes the bytes that this rank gives and takes in one call."""

    def __init__(self, comm):
        self._comm = comm
        self.most = 0

    def __getattr__(self, name):
        method = getattr(self._comm, name)
        if not name[0].isupper():
            return method

        def call(*buffers, **options):
            arrays = [b[0] if isinstance(b, tuple) else b for b in buffers]
            self.most = max(self.most, *(a.nbytes for a in arrays if isinstance(a, np.ndarray)))
            return method(*buffers, **options)

        return call


def test_no_call_of_mpi_moves_more_than_a_piece(monkeypatch):
    wire.LARGEST = piece = 1600
    table = runtime.current().table
    counting = Counting(table.channel.comm)
    monkeypatch.setattr(table, "channel", table.channel._replace(comm=counting))
    big = np.zeros((1000 * SIZE, 3))
    hb.allreduce(big)
    hb.broadcast(big, LAST)
    hb.allgather(big)
    hb.alltoall(big)
    hb.alltoall(big, [0] * LAST + [1000])
    hb.reducescatter(big)
    hb.broadcast_object(big, LAST)
    hb.allgather_object(big)
    hvd.broadcast_parameters({"t": torch.zeros(5000)})
    assert 0 < counting.most <= piece
