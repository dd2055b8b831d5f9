"""Calls among some of the ranks."""

import numpy as np
import pytest
import torch
from mpi.helpers import RANK, SIZE, assert_same_bits, same_everywhere

import hvd_backup as hb
import hvd_backup.torch as hvd
from hvd_backup.collectives import process_sets
from hvd_backup.world import runtime

pytestmark = pytest.mark.mpi

EVENS = [rank for rank in range(SIZE) if rank % 2 == 0]
ODDS = [rank for rank in range(SIZE) if rank % 2]
HALVES = [half for half in (EVENS, ODDS) if half and len(half) < SIZE]


@pytest.fixture
def halves():
    """Sets of the ranks with even and with odd numbers; this rank's is first."""
    made = [hvd.add_process_set(half) for half in HALVES]
    yield sorted(made, key=lambda one: not one.included())
    for one in made:
        assert hvd.remove_process_set(one)


def test_the_global_set_is_that_of_all_ranks():
    every = hvd.global_process_set
    assert (every.process_set_id, every.size(), every.rank()) == (0, SIZE, RANK)
    assert every.ranks == list(range(SIZE))
    assert every.included()
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum, process_set=every).item() == SIZE
    assert not hvd.remove_process_set(every)


@pytest.mark.mpi(min_size=2)
def test_a_set_knows_its_ranks(halves):
    mine, other = halves
    assert mine.included()
    assert mine.size() == len(mine.ranks)
    assert mine.ranks[mine.rank()] == RANK
    assert not other.included()
    assert other.size() == SIZE - mine.size()
    with pytest.raises(ValueError, match="Process is not part of provided process set"):
        other.rank()
    assert f"ranks={mine.ranks}" in str(mine)
    same_everywhere(sorted((one.process_set_id, one.ranks) for one in halves))


@pytest.mark.mpi(min_size=2)
def test_collectives_of_a_set_combine_its_ranks_alone(halves):
    mine = halves[0]
    ranks, n, me = mine.ranks, mine.size(), mine.rank()
    total = float(sum(ranks))
    tensor = torch.full((2 * n,), float(RANK))
    assert hvd.allreduce(tensor, op=hvd.Sum, process_set=mine)[0] == total
    assert hvd.allreduce(tensor, process_set=mine)[0] == pytest.approx(total / n)
    (grouped,) = hvd.grouped_allreduce([tensor], op=hvd.Sum, process_set=mine)
    assert grouped[0] == total
    assert hvd.allgather(tensor[:1], process_set=mine).tolist() == ranks
    assert hvd.broadcast(tensor, ranks[-1], process_set=mine)[0] == ranks[-1]
    assert hvd.alltoall(tensor, process_set=mine)[::2].tolist() == ranks
    got = hvd.reducescatter(torch.arange(n).float() + RANK, op=hvd.Sum, process_set=mine)
    assert got.tolist() == [n * me + total]
    assert hvd.broadcast_object(RANK, ranks[-1], process_set=mine) == ranks[-1]
    hvd.barrier(process_set=mine)
    assert_same_bits(hb.allreduce(np.ones(2), hb.Sum, process_set=mine), np.full(2, float(n)))
    assert hb.allgather_object(RANK, process_set=mine) == ranks


@pytest.mark.mpi(min_size=2)
def test_gradients_travel_within_the_set(halves):
    mine = halves[0]
    for call, rows in ((hvd.allreduce, 2), (hvd.allgather, 2 * mine.size())):
        tensor = torch.ones(2, requires_grad=True)
        call(tensor, process_set=mine).backward(torch.full((rows,), float(RANK)))
        assert tensor.grad.tolist() == pytest.approx([sum(mine.ranks) / mine.size()] * 2)


@pytest.mark.mpi(min_size=2)
def test_calls_of_several_sets_may_be_under_way_at_a_time(halves):
    mine = halves[0]
    world = hvd.allreduce_async(torch.ones(1), op=hvd.Sum, name="x")
    half = hvd.allreduce_async(torch.ones(1), op=hvd.Sum, name="x", process_set=mine)
    assert hvd.synchronize(half).item() == mine.size()
    assert hvd.synchronize(world).item() == SIZE


@pytest.mark.mpi(min_size=2)
def test_a_rank_outside_the_set_is_refused_in_horovods_words(halves):
    other = halves[1]
    with pytest.raises(ValueError, match=f"Allreduce: Rank {RANK} is not a member of the provided"):
        hvd.allreduce(torch.ones(1), process_set=other)
    with pytest.raises(ValueError, match=r"root_rank=.* is not in the process set of"):
        hvd.broadcast(torch.ones(1), other.ranks[0], process_set=halves[0])


@pytest.mark.mpi(min_size=3)
def test_ranks_of_a_set_that_disagree_are_told_so_and_the_others_are_not(halves):
    mine = halves[0]
    if mine.size() > 1:
        with pytest.raises(hvd.Mismatch, match=rf"rank {mine.ranks[0]}: allreduce\(float32\[1\]"):
            hvd.allreduce(torch.ones(1 + mine.rank()), process_set=mine, name="n")
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum, process_set=mine).item() == mine.size()
    hvd.barrier()


def test_sets_that_cannot_be_are_refused():
    for ranks, words in (
        ([], "has no ranks"),
        ([0, 0], "names a rank twice"),
        ([SIZE], f"rank {SIZE} not in a world of {SIZE} ranks"),
        (list(range(SIZE)), "Attempted to add a duplicate process set"),
    ):
        with pytest.raises(ValueError, match=words):
            hvd.add_process_set(ranks)
    for wrong in (["0"], [1.5], 3):
        with pytest.raises(ValueError, match="initialized with a list of process ranks or an mpi4"):
            hvd.ProcessSet(wrong)
    with pytest.raises(TypeError, match="process_set must be a ProcessSet, not 3"):
        hvd.allreduce(torch.ones(1), process_set=3)


@pytest.mark.mpi(min_size=2)
def test_a_set_that_was_removed_is_refused():
    made = hvd.add_process_set([0])
    with pytest.raises(ValueError, match="Attempted to add a duplicate"):
        hvd.add_process_set([0])
    assert hvd.remove_process_set(made)
    assert made.process_set_id is None
    assert made.size() is None
    assert made.rank() is None
    assert not hvd.remove_process_set(made)
    with pytest.raises(ValueError, match="does not exist, or has not been registered"):
        hvd.allreduce(torch.ones(1), process_set=made)


@pytest.mark.mpi(min_size=2)
def test_ranks_that_add_different_sets_are_told_so():
    with pytest.raises(hvd.Mismatch, match=r"add_process_set\(\[0\]\)"):
        hvd.add_process_set([min(RANK, 1)])
    hvd.barrier()


@pytest.mark.mpi(min_size=2)
def test_init_registers_sets_by_ranks_and_by_communicators():
    """The world is left and joined again, as a program does that begins."""
    world = runtime.current().comm
    hb.shutdown()
    half = world.Split(RANK % 2, RANK)
    by_comm, by_ranks = hvd.ProcessSet(half), hvd.ProcessSet([0])
    wanted = [by_comm, by_ranks] if [0] not in HALVES else [by_comm]
    hvd.init(process_sets=wanted)
    try:
        assert by_comm.ranks == [EVENS, ODDS][RANK % 2]
        assert hvd.allreduce(torch.ones(1), op=hvd.Sum, process_set=by_comm).item() == half.size
        with pytest.raises(NotImplementedError, match="Dynamically adding process sets defined by"):
            hvd.add_process_set(hvd.ProcessSet(half))
        for one in list(runtime.current().sets)[1:]:
            ranks = runtime.current().sets[one].ranks
            again = process_sets.ProcessSet(ranks)
            again.process_set_id = one
            assert hvd.remove_process_set(again)
    finally:
        half.Free()


def test_a_set_of_a_world_that_was_left_is_not_registered():
    """Without a collective: ranks may be in any order here."""
    made = hvd.ProcessSet([0])
    made.process_set_id = 10**6
    with pytest.raises(ValueError, match="Process set does not exist or has not been registered"):
        made.size()
