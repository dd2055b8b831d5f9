"""The collectives that wait for everybody, on numpy arrays and Python objects."""

import threading
import time

import numpy as np
import pytest
from mpi.helpers import RANK, SIZE, assert_same_bits, contribution, digest, same_everywhere

import hvd_backup as hb

pytestmark = pytest.mark.mpi

EVERY_OP = {
    hb.Sum: np.sum,
    hb.Min: np.min,
    hb.Max: np.max,
    hb.Product: np.prod,
    hb.Average: np.mean,
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 5)])
def test_allreduce_combines_all_ranks(dtype, shape):
    # Small: MPI libraries differ in what an overflow of a uint8 gives.
    arrays = [np.abs(3.9 * contribution(rank, 0, shape, "float32")) for rank in range(SIZE)]
    arrays = [array.astype(dtype) for array in arrays]
    before = arrays[RANK].copy()
    for op, combine in EVERY_OP.items():
        if op == hb.Average and not dtype.startswith("float"):
            continue
        value = hb.allreduce(arrays[RANK], op)
        assert isinstance(value, np.ndarray)
        assert value.dtype == dtype
        assert value.shape == shape
        wide = [array.astype("float64") for array in arrays] if "float" in dtype else arrays
        expected = combine(wide, axis=0, **({"dtype": dtype} if op in (hb.Sum, hb.Product) else {}))
        np.testing.assert_allclose(value, np.asarray(expected, dtype), rtol=2e-3, atol=2e-3)
        same_everywhere(digest(value))
        assert_same_bits(arrays[RANK], before)


def test_allreduce_takes_arrays_of_any_layout():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    assert_same_bits(hb.allreduce(array), np.ascontiguousarray(array))


def test_the_average_of_integers_is_refused():
    with pytest.raises(TypeError, match=r"op=hb\.Sum"):
        hb.allreduce(np.ones(3, np.int32))


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="Average, Sum, Min, Max, Product"):
        hb.allreduce(np.ones(3), op="Median")


@pytest.mark.parametrize("dtype", ["float16", "float64", "bool", "complex64", "int8", "S5"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_broadcast_gives_every_rank_the_bits_of_the_root(dtype, shape):
    for root in range(SIZE):
        arrays = [(9 * contribution(r, 1, shape, "float32")).astype(dtype) for r in range(SIZE)]
        value = hb.broadcast(arrays[RANK], root_rank=root)
        assert_same_bits(value, arrays[root])
        value[...] = value  # fresh, and the caller's to write to


@pytest.mark.parametrize("root", [-1, SIZE])
def test_a_root_outside_the_world_is_refused(root):
    with pytest.raises(ValueError, match=f"root_rank={root}"):
        hb.broadcast(np.ones(3), root_rank=root)
    with pytest.raises(ValueError, match=f"root_rank={root}"):
        hb.broadcast_object({}, root_rank=root)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64"])
@pytest.mark.parametrize("rest", [(), (3,), (2, 0)])
def test_allgather_concatenates_pieces_of_different_lengths(dtype, rest):
    pieces = [contribution(rank, 2, (rank % 3, *rest), "float32") for rank in range(SIZE)]
    pieces = [(100 * piece).astype(dtype) for piece in pieces]
    value = hb.allgather(pieces[RANK])
    assert_same_bits(value, np.concatenate(pieces))


def test_allgather_of_a_scalar_is_refused():
    with pytest.raises(ValueError, match="at least one axis"):
        hb.allgather(np.float32(3))


def test_objects_travel():
    mine = {"rank": RANK, "text": "x" * RANK * 1000, "array": np.arange(RANK)}
    everybody = hb.allgather_object(mine)
    assert [theirs["rank"] for theirs in everybody] == list(range(SIZE))
    assert [theirs["array"].size for theirs in everybody] == list(range(SIZE))
    for root in range(SIZE):
        theirs = hb.broadcast_object(mine if root == RANK else None, root_rank=root)
        assert theirs["rank"] == root


def test_nobody_leaves_a_barrier_before_all_are_there():
    for last in range(SIZE):
        if last == RANK:
            time.sleep(0.02)
        came = time.monotonic()
        hb.barrier()
        went = time.monotonic()
        times = hb.allgather_object((came, went))
        assert min(went for _, went in times) >= max(came for came, _ in times)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hb.allreduce(np.ones(2 + RANK)), "allreduce(float64[2], op=Average)"),
        (lambda: hb.allreduce(np.ones(2, [np.float32, int][RANK % 2]), hb.Sum), "float32[2]"),
        (lambda: hb.allreduce(np.ones(2), [hb.Sum, hb.Max][RANK % 2]), "op=Max"),
        (lambda: hb.broadcast(np.ones((2, 1 + RANK))), "broadcast(float64[2, 1], root_rank=0)"),
        (lambda: hb.broadcast(np.ones(2), root_rank=RANK), "root_rank=1"),
        (lambda: hb.broadcast_object(1, root_rank=RANK), "broadcast_object(root_rank=1)"),
        (lambda: hb.allgather(np.ones((1, 2 + RANK))), "allgather(float64[any, 2])"),
        (lambda: hb.allgather(np.ones((1, 2)[: 1 + RANK % 2])), "allgather(float64[any, 2])"),
        (lambda: hb.barrier() if RANK else hb.allgather_object(1), "barrier()"),
    ],
)
def test_different_calls_raise_mismatch_on_every_rank(call, words):
    with pytest.raises(hb.Mismatch) as raised:
        call()
    same_everywhere(str(raised.value))
    assert words in str(raised.value)
    # All ranks know, so that all can go on.
    value, _ = hb.partial_allreduce(np.full(3, 2.0), backup_workers=SIZE - 1)
    assert_same_bits(value, np.full(3, 2.0))


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hb.partial_allreduce(np.ones(2 + RANK)), "float64[2]"),
        (lambda: hb.partial_allreduce(np.ones((2, 3) if RANK else (3, 2))), "float64[3, 2]"),
        (lambda: hb.partial_allreduce(np.ones(2, ["f4", "f8"][RANK % 2])), "float32[2]"),
        (lambda: hb.partial_allreduce(np.ones(2), name=f"n{RANK}"), "name='n0'"),
        (lambda: hb.partial_allreduce(np.ones(2), backup_workers=RANK % 2), "backup_workers=1"),
        (lambda: hb.partial_allreduce(np.ones(2), grace=RANK % 2), "grace=1.0"),
        (lambda: hb.partial_allreduce([np.ones(2)] * (1 + RANK)), "float64[2], float64[2]"),
    ],
)
def test_different_contributions_raise_mismatch_on_every_rank(call, words):
    with pytest.raises(hb.Mismatch) as raised:
        call()
    same_everywhere(str(raised.value))
    assert words in str(raised.value)
    hb.barrier()


def test_an_object_that_does_not_pickle_is_an_error_on_every_rank():
    for share in (hb.broadcast_object, hb.allgather_object):
        with pytest.raises(hb.Error, match="rank 0: lock cannot be pickled"):
            share(threading.Lock())
    hb.barrier()


def test_what_is_made_in_a_function_travels_as_with_horovod():
    class Vocabulary:
        words = (RANK,)

    sent = hb.broadcast_object(Vocabulary() if RANK == SIZE - 1 else None, SIZE - 1)
    assert sent.words == (SIZE - 1,)
    calls = hb.allgather_object(lambda x, rank=RANK: x + rank)
    assert [call(1) for call in calls] == [1 + rank for rank in range(SIZE)]
    hb.barrier()
