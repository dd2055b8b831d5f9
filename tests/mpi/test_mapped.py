"""Gradients in device memory that all ranks map, with CPU gradients and the twins."""

import logging
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from mpi.helpers import (
    NODE_OF,
    RANK,
    SIZE,
    assert_same_bits,
    contribution,
    digest,
    mean,
    same_everywhere,
)
from mpi.test_staged import table_and_matrix, train

import hvd_backup.torch as hvd
from hvd_backup import errors
from hvd_backup.rounds import mapped_memory
from hvd_backup.torch import mapped, staging
from hvd_backup.torch.compression import Compression
from hvd_backup.torch.mapped import Mapped
from hvd_backup.world import runtime
from hvd_backup.world.joining import launched_world

pytestmark = pytest.mark.mpi
ONE_NODE = len(set(NODE_OF)) == 1


def let(monkeypatch, path):
    """From now on gradients go that way: "inplace", "staged" or "mapped"."""
    monkeypatch.setattr(staging, "STAGE_ON_CPU", path != "inplace")
    world = runtime.current()
    device_path = "mapped" if path == "mapped" else "staged"
    monkeypatch.setattr(world, "config", replace(world.config, device_path=device_path))


@pytest.fixture
def calls(monkeypatch):
    """The ways are mapped; the packings that were."""
    let(monkeypatch, "mapped")
    made = []
    pack = Mapped._pack
    monkeypatch.setattr(Mapped, "_pack", lambda self, *a: (made.append(self), pack(self, *a))[1])
    return made


def warnings_of(caplog):
    return [text for text in caplog.messages if "HVD_BACKUP_DEVICE_PATH" in text]


def test_mapped_gradients_give_the_bits_of_gradients_in_place(monkeypatch, calls, caplog):
    let(monkeypatch, "inplace")
    expected = train()
    assert not calls
    let(monkeypatch, "mapped")
    assert train() == expected
    assert bool(calls) == ONE_NODE
    assert len(warnings_of(caplog)) == (0 if ONE_NODE or RANK else 1)


def test_replicas_stay_equal_with_backup_workers(calls):
    same_everywhere(train("drop", 20, b=SIZE - 1))
    assert bool(calls) == ONE_NODE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparse_mean": "rows"},
        {"sparse_as_dense": True},
        {"compression": Compression.bf16},
        {"compression": Compression.fp16, "sparse_mean": "rows"},
    ],
    ids=str,
)
def test_sparse_and_compressed_gradients_have_the_bits_of_those_in_place(options, monkeypatch):
    let(monkeypatch, "inplace")
    expected = table_and_matrix(on_nonfinite="abstain", **options)
    let(monkeypatch, "mapped")
    assert table_and_matrix(on_nonfinite="abstain", **options) == expected


def test_what_is_not_finite_is_found_in_the_device_slot(calls):
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 5)]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(params, 1.0),
        [("a", params[0]), ("b", params[1])],
        on_nonfinite="raise",
        compression=Compression.fp16,
    )
    params[0].grad = torch.ones(3)
    params[1].grad = torch.tensor([1.0, 1e6, float("nan"), 0.0, 2.0])
    with pytest.raises(FloatingPointError, match=r"'b' 2 of 5 elements .*\(1 NaN, 1 infinite\)"):
        optimizer.step()
    params[1].grad = torch.full((5,), float(SIZE))
    optimizer.step()
    assert params[1].tolist() == [1.0 - SIZE] * 5
    optimizer.close()


def test_chunks_large_models_and_a_window_of_many_rounds(calls, monkeypatch):
    monkeypatch.setattr(mapped_memory, "_LEAST_CHUNK", 4096)
    monkeypatch.setattr(mapped_memory, "_MOST_CHUNK", 8192)
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (50_000, 7, 12_345)]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(params, 1.0), backup_workers=min(1, SIZE - 1), window=8
    )
    late = SIZE - 1
    for step in range(30):
        if late == RANK and step in (3, 11):
            time.sleep(0.2)
        for i, param in enumerate(params):
            mine = contribution(RANK, 3 * step + i, param.shape, np.float32)
            param.grad = torch.from_numpy(mine)
        optimizer.step()
        ranks = optimizer.last_round.contributors
        for i, param in enumerate(params):
            arrays = [contribution(r, 3 * step + i, param.shape, np.float32) for r in ranks]
            assert_same_bits(param.grad.numpy(), mean(ranks, arrays))
    same_everywhere(digest(*(p.detach().numpy() for p in params)))
    optimizer.close()


def test_device_memory_is_given_back_when_all_have_closed(calls):
    hvd.barrier()
    mapped_memory._give_back()
    hvd.barrier()
    assert not mapped_memory._left
    param = torch.nn.Parameter(torch.ones(9))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 1.0))
    param.grad = torch.ones(9)
    optimizer.step()
    hvd.barrier()
    if RANK == 0:
        optimizer.close()
        assert len(mapped_memory._left) == (1 if ONE_NODE and SIZE > 1 else 0)
    hvd.barrier()
    if RANK != 0:
        optimizer.close()
    assert torch.equal(param.grad, torch.ones(9))
    hvd.barrier()
    mapped_memory._give_back()
    assert not mapped_memory._left


def test_a_step_after_all_have_left_is_refused_not_a_crash(monkeypatch):
    for path in ("staged", "mapped"):
        let(monkeypatch, path)
        p = torch.nn.Parameter(torch.zeros(5))
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0))
        p.grad = torch.ones(5)
        optimizer.step()
        runtime.current().comm.Barrier()
        hvd.shutdown()
        world = launched_world()
        world.Barrier()
        with pytest.raises(ValueError, match=r"this rank has left.* make a new one"):
            optimizer.step()
        hvd.init()


def test_a_new_set_of_parameters_gets_new_memory(calls):
    first, second = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([first, second], 1.0))
    for step in range(4):
        second.requires_grad_(step % 2 == 0)
        first.grad = torch.full((4,), float(RANK))
        second.grad = torch.full((4,), 1.0) if step % 2 == 0 else None
        optimizer.step()
    assert first.tolist() == [-4 * (SIZE - 1) / 2] * 4
    assert second.tolist() == [-2.0] * 4
    optimizer.close()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("why", ["devices", "allocation", "mapping", "copies"])
def test_what_one_rank_cannot_all_do_staged_and_it_is_named_once(why, calls, monkeypatch, caplog):
    if RANK == 1:
        if why == "devices":
            wish = mapped_memory.Wish(-1, "no device today")
            monkeypatch.setattr(mapped, "wish", lambda *_, **__: wish)
            monkeypatch.setattr(staging, "wish", lambda *_, **__: wish)
        else:
            real = mapped_memory._core.MappedArena

            class Refusing:
                MOST_RANKS = real.MOST_RANKS

                def __init__(self, *args):
                    if why == "allocation":
                        raise errors.DeviceError("out of memory, say")
                    self.real = real(*args)
                    self.handle, self.release = self.real.handle, self.real.release
                    self.unmap = self.real.unmap

                def open(self, handles, rank):
                    if why == "mapping":
                        raise errors.DeviceError("peer access, say, is not supported")
                    self.real.open(handles, rank)

                def confirm(self):
                    raise errors.DeviceError("nothing has arrived")

            monkeypatch.setattr(mapped_memory._core, "MappedArena", Refusing)
    expected = digest(np.full(3, (SIZE - 1) / 2, np.float32))
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 1.0))
    for _ in range(2):
        param.grad = torch.full((3,), float(RANK))
        optimizer.step()
        assert digest(param.grad.numpy()) == expected
    optimizer.close()
    assert not calls
    said = warnings_of(caplog)
    assert len(said) == (1 if RANK == 0 else 0)
    if RANK == 0 and ONE_NODE:
        words = {"devices": "no device today", "allocation": "out of memory"}
        words |= {"mapping": "access", "copies": "nothing has arrived"}
        assert "rank 1: " in said[0]
        assert words[why] in said[0]


def test_carry_is_staged_and_the_log_says_why(calls, caplog):
    with caplog.at_level(logging.WARNING, "hvd_backup"):
        same_everywhere(train("carry", 6))
    assert not calls
    assert len(warnings_of(caplog)) == (1 if RANK == 0 else 0)
    assert RANK != 0 or not ONE_NODE or "late='carry'" in warnings_of(caplog)[0]


def test_parameters_on_the_cpu_have_no_device_memory(monkeypatch, caplog):
    let(monkeypatch, "mapped")
    monkeypatch.setattr(staging, "STAGE_ON_CPU", False)
    train(steps=2)
    assert RANK != 0 or not ONE_NODE or "its parameters are on the CPU" in warnings_of(caplog)[0]


@pytest.mark.mpi(min_size=2)
def test_ranks_that_were_told_different_paths_say_so(monkeypatch):
    let(monkeypatch, "mapped" if RANK == 0 else "staged")
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 1.0))
    param.grad = torch.zeros(3)
    with pytest.raises(errors.Mismatch, match="device_path='mapped'"):
        optimizer.step()
    optimizer.close()
