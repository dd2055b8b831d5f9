"""init() and shutdown(): whole worlds, parts of one, one after another."""

import os

import numpy as np
import pytest
from mpi.helpers import RANK, SIZE, assert_same_bits

import hvd_backup as hb
from hvd_backup.world.joining import launched_world
from hvd_backup.world.local_comm import module_of

pytestmark = pytest.mark.mpi
WORLD = launched_world()


@pytest.fixture
def outside():
    """The test begins and ends outside of any world of ours."""
    hb.shutdown()
    yield
    hb.shutdown()
    hb.init()


def test_the_world_is_that_of_the_launcher():
    assert (hb.rank(), hb.size()) == (WORLD.rank, WORLD.size)
    hb.init()
    hb.init(WORLD)
    assert hb.size() == SIZE


def test_ranks_are_counted_within_their_nodes_and_nodes_within_the_world():
    node_size = int(os.environ.get("HVD_BACKUP_NODE_SIZE") or SIZE)
    first = RANK - RANK % node_size
    assert (hb.local_rank(), hb.local_size()) == (RANK - first, min(node_size, SIZE - first))
    assert (hb.cross_rank(), hb.cross_size()) == (RANK // node_size, -(-SIZE // node_size))


def test_parts_of_the_world_are_worlds(outside):
    part = WORLD.Split(RANK % 2, -RANK)
    hb.init(part)
    assert (hb.rank(), hb.size()) == (part.rank, part.size)
    value, round_ = hb.partial_allreduce(np.full(3, float(RANK)))
    members = [rank for rank in range(SIZE) if rank % 2 == RANK % 2]
    assert_same_bits(value, np.full(3, sum(members) / len(members)))
    assert round_.contributors == tuple(range(part.size))
    assert hb.allgather_object(RANK) == sorted(members, reverse=True)


def test_a_list_of_ranks_is_a_world(outside):
    ranks = list(range(SIZE - 1 - (SIZE - 1 - RANK) % 2, -1, -2))
    for _ in range(2):
        hb.init(ranks)
        assert (hb.rank(), hb.size()) == (ranks.index(RANK), len(ranks))
        hb.init(ranks)
        assert hb.allgather_object(RANK) == ranks
        hb.shutdown()
    with pytest.raises(ValueError, match="only those ranks call it that are in the list"):
        hb.init([rank for rank in range(SIZE + 1) if rank != RANK])


def test_a_group_of_ranks_is_a_world_that_the_others_do_not_make(outside):
    module = module_of(WORLD)
    group = WORLD.Get_group().Incl(list(range(RANK % 2, SIZE, 2))[::-1])
    part = WORLD.Create_group(group)
    assert module.COMM_WORLD.rank == RANK
    places = group.Translate_ranks(list(range(group.size)), WORLD.group)
    assert places == list(range(RANK % 2, SIZE, 2))[::-1]
    assert WORLD.group.Translate_ranks([RANK], group) == [part.rank]
    if SIZE > 1:
        assert WORLD.group.Translate_ranks([(RANK + 1) % 2], group)[0] < 0
    hb.init(part)
    assert hb.allgather_object(RANK) == places


@pytest.mark.mpi(min_size=2)
def test_another_world_needs_a_shutdown_first():
    alone = WORLD.Split(RANK, 0)
    reversed_world = WORLD.Split(0, -RANK)
    for other in (alone, reversed_world):
        with pytest.raises(ValueError, match=r"shutdown\(\) first"):
            hb.init(other)
    assert hb.size() == SIZE


def test_worlds_may_follow_one_another(outside):
    for turn in range(5):
        hb.init()
        value, round_ = hb.partial_allreduce(np.full(3, float(turn)), backup_workers=SIZE - 1)
        assert_same_bits(value, np.full(3, float(turn)))
        assert round_.number == 0
        hb.shutdown()
        with pytest.raises(hb.NotInitialized):
            hb.barrier()


def test_a_rank_that_shuts_down_early_disturbs_no_round_that_is_done(outside):
    hb.init()
    for k in range(20):
        _, round_ = hb.partial_allreduce(np.ones(3), backup_workers=SIZE - 1)
        assert round_.number == k
    hb.shutdown()  # the fast ranks first: the others still load their last rounds


@pytest.mark.mpi(min_size=2)
def test_a_failure_is_told_as_an_earlier_one_from_then_on_and_a_new_world_forgets_it(outside):
    hb.init()
    if RANK == 0:
        with pytest.raises(hb.RoundTimeout, match="missing rank"):
            hb.partial_allreduce(np.ones(3), timeout=0.3)
    WORLD.Barrier()
    if RANK != 0:
        with pytest.raises(hb.Error, match="rank 0 failed"):
            hb.partial_allreduce(np.ones(3), timeout=0.3)
    for call in (hb.barrier, lambda: hb.partial_allreduce(np.ones(3), timeout=0.3)):
        with pytest.raises(hb.Error, match=r"told before; all ranks: shutdown\(\), then init\(\)"):
            call()
    hb.shutdown()
    hb.init()
    value, _ = hb.partial_allreduce(np.ones(3))
    assert_same_bits(value, np.ones(3))
