"""Calls that are registered now and waited for later."""

import json
import time

import pytest
import torch
from mpi.helpers import RANK, SIZE, delay, same_everywhere
from torch import nn

import hvd_backup as hb
import hvd_backup.torch as hvd
from hvd_backup.collectives import operations

pytestmark = pytest.mark.mpi


def test_handles_of_all_kinds_are_done_in_any_order():
    """Every rank draws another order to begin in, and another to end in."""
    ones = torch.ones(SIZE, 2)
    begin = {
        "reduce": lambda: hvd.allreduce_async(ones, name="a", op=hvd.Sum),
        "gather": lambda: hvd.allgather_async(ones[:1], name="a"),
        "send": lambda: hvd.broadcast_async(ones * RANK, SIZE - 1, name="a"),
        "swap": lambda: hvd.alltoall_async(ones, name="a"),
        "share": lambda: hvd.reducescatter_async(ones, name="a", op=hvd.Sum),
    }
    for seed in range(10):
        delay(seed, 0.002)
        generator = torch.Generator().manual_seed(100 * seed + RANK)
        order = [list(begin)[i] for i in torch.randperm(5, generator=generator)]
        handles = {kind: begin[kind]() for kind in order}
        ends = [order[i] for i in torch.randperm(5, generator=generator)]
        got = {kind: hvd.synchronize(handles[kind]) for kind in ends}
        assert (got["reduce"] == SIZE).all()
        assert got["gather"].shape == (SIZE, 2)
        assert (got["send"] == SIZE - 1).all()
        assert got["swap"][0].shape == (SIZE, 2)
        assert (got["share"] == SIZE).all()
        assert got["share"].shape == (1, 2)


def test_a_call_is_done_when_it_is_waited_for_not_before_and_reads_the_tensor_then():
    tensor = torch.zeros(2)
    handle = hvd.allreduce_async(tensor, op=hvd.Sum, name="late")
    tensor += 1
    assert hvd.synchronize(handle).tolist() == [SIZE, SIZE]


def test_calls_without_async_find_those_that_lie_there():
    handle = hvd.allreduce_async(torch.ones(1), op=hvd.Sum, name="first")
    hvd.barrier()
    assert handle.done
    assert hvd.poll(handle)
    assert hvd.synchronize(handle).item() == SIZE
    assert hvd.synchronize(handle) is None


@pytest.mark.mpi(min_size=2)
def test_ranks_that_wait_for_different_names_are_told_so_at_once():
    began = time.monotonic()
    with pytest.raises(hvd.Mismatch, match=r"name='n0'.*name='n1'"):
        hvd.allreduce(torch.ones(1), name=f"n{min(RANK, 1)}")
    assert time.monotonic() - began < 20
    hvd.barrier()


@pytest.mark.mpi(min_size=2)
def test_a_handle_whose_wait_has_failed_is_not_waited_for_again():
    handle = hvd.allreduce_async(torch.ones(1), name=f"n{min(RANK, 1)}")
    with pytest.raises(hvd.Mismatch):
        hvd.synchronize(handle)
    assert handle.done
    assert hvd.synchronize(handle) is None
    hvd.barrier()


@pytest.mark.mpi(min_size=2)
def test_a_wait_ends_in_time_though_the_others_only_poll():
    def waits_for_ever():
        handle = hvd.allreduce_async(torch.ones(1), name=f"n{min(RANK, 1)}")
        if RANK == 0:
            operations.complete(handle, timeout=0.5)
        while not hvd.poll(handle):
            pass

    with pytest.raises(hvd.RoundTimeout, match=r"name='n0'.*not called by all ranks within 0.5 s"):
        waits_for_ever()
    hb.shutdown()  # after a time-out nobody goes on in this world
    hb.init()
    hvd.barrier()


@pytest.mark.mpi(min_size=2)
def test_a_call_that_differs_fails_alone():
    good = hvd.allreduce_async(torch.ones(1), op=hvd.Sum, name="good")
    bad = hvd.allreduce_async(torch.ones(1 + RANK % 2), name="bad")
    with pytest.raises(hvd.Mismatch, match=r"rank.* 0.*: allreduce\(float32\[1\]"):
        hvd.synchronize(bad)
    assert hvd.synchronize(good).item() == SIZE


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_has_joined_lets_only_allreduce_pass():
    if RANK:
        with pytest.raises(hvd.Mismatch, match="Allgather is not supported with Join at this time"):
            hvd.allgather(torch.ones(1))
        assert hvd.allreduce(torch.ones(2, dtype=torch.bfloat16), op=hvd.Sum)[0] == SIZE - 1
    assert hvd.join() in range(1, SIZE)
    # Those that joined early have made fewer calls: they count on together.
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == SIZE


def test_bfloat16_empty_scalar_and_strided_tensors():
    for tensor in (
        torch.full((3,), 1.5, dtype=torch.bfloat16),
        torch.ones(0, 3),
        torch.tensor(2.0),
        torch.arange(12.0).reshape(3, 4).t()[::2],
    ):
        got = hvd.allreduce(tensor, op=hvd.Sum)
        assert got.dtype == tensor.dtype
        assert torch.equal(got, tensor * SIZE)
        in_place = tensor.clone(memory_format=torch.preserve_format)
        hvd.grouped_allreduce_([in_place, torch.ones(1)], op=hvd.Sum)
        assert torch.equal(in_place, tensor * SIZE)
    assert hvd.alltoall(torch.ones(0, 2)).shape == (0, 2)
    rows = hvd.reducescatter(torch.ones(SIZE, dtype=torch.bfloat16), op=hvd.Sum)
    assert rows.tolist() == [SIZE]


def test_second_derivatives_pass_through_allreduce():
    x = torch.tensor([3.0], requires_grad=True)
    (first,) = torch.autograd.grad(hvd.allreduce(x, op=hvd.Sum) ** 2, x, create_graph=True)
    first.backward()
    assert torch.isfinite(x.grad).all()
    same_everywhere(x.grad.tolist())


def test_the_timeline_of_rank_0_has_what_calls_waited_and_took(tmp_path):
    path = hb.broadcast_object(str(tmp_path / "trace.json"))
    hvd.start_timeline(path)
    hvd.allreduce(torch.ones(2), name="loss")
    hvd.barrier()
    hvd.stop_timeline()
    hvd.stop_timeline()  # nothing to do
    hvd.barrier()
    if RANK == 0:
        events = json.loads((tmp_path / "trace.json").read_text())
        names = [event["name"] for event in events if event["ph"] == "X"]
        assert names == ["NEGOTIATE_ALLREDUCE", "ALLREDUCE", "NEGOTIATE_BARRIER", "BARRIER"]
        assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")


def test_broadcast_parameters_matches_those_of_a_dict_by_name():
    tensors = {name: torch.full((2,), float(RANK)) for name in "ab"}
    order = "ab" if RANK % 2 else "ba"
    hvd.broadcast_parameters({name: tensors[name] for name in order}, root_rank=SIZE - 1)
    assert all((tensor == SIZE - 1).all() for tensor in tensors.values())


def test_broadcast_parameters_refuses_what_it_cannot_send():
    with pytest.raises(TypeError, match=r"takes model\.state_dict"):
        hvd.broadcast_parameters(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="invalid params of type"):
        hvd.broadcast_parameters(torch.ones(3))
