"""What the collectives refuse, and what they say; in a world of one."""

import numpy as np
import pytest
import torch

import hvd_backup as hb
import hvd_backup.torch as hvd
from hvd_backup.rounds.exchange import Exchange


@pytest.fixture
def world():
    hb.init()
    yield
    hb.shutdown()


def test_everything_but_init_needs_init():
    assert not hb.is_initialized()
    calls = [hb.rank, hb.size, hb.local_rank, hb.local_size, hb.cross_rank, hb.cross_size]
    calls += [hb.barrier, hb.broadcast_object, lambda: hb.allgather_object(1)]
    array = np.ones(3)
    for collective in (hb.partial_allreduce, hb.allreduce, hb.broadcast, hb.allgather):
        calls.append(lambda collective=collective: collective(array))
    calls.append(lambda: Exchange([("float32", 1)]))
    calls.append(lambda: hvd.broadcast_parameters({}))
    calls.append(lambda: hvd.DistributedOptimizer(torch.optim.SGD([torch.zeros(1)])))
    for call in calls:
        with pytest.raises(hb.NotInitialized, match=r"call hvd_backup\.init\(\) first"):
            call()


def test_init_and_shutdown_may_be_repeated(world):
    hb.init()
    assert hb.is_initialized()
    assert (hb.rank(), hb.size(), hb.local_rank(), hb.local_size()) == (0, 1, 0, 1)
    assert (hb.cross_rank(), hb.cross_size()) == (0, 1)
    hb.shutdown()
    hb.shutdown()
    assert not hb.is_initialized()
    hb.init()
    value, _ = hb.partial_allreduce(np.ones(3))
    assert value.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ([], ValueError, "empty list"),
        ((), ValueError, "empty list"),
        ([[1.0, 2.0]], TypeError, "array 0 of 1 is list, not a numpy array"),
        (3.0, TypeError, "takes a numpy array or a list of them, not float"),
        (np.float32(3), TypeError, "takes a numpy array or a list of them, not float32"),
        (np.ones(3, int), TypeError, "int64, which cannot be averaged; convert it to one of"),
        (np.ones(3, bool), TypeError, "bool"),
        (np.ones(3, complex), TypeError, "complex128"),
        (np.ones(3, ">f4"), TypeError, ">f4"),
        (np.ones(3, object), TypeError, "object"),
        (np.ones((4, 4)).T[1:], ValueError, r"not contiguous; pass np\.ascontiguousarray\(array\)"),
        (np.ones(6)[::2], ValueError, "not contiguous"),
        ([np.ones(2), np.ones(2, np.int8)], TypeError, "array 1 of 2 has dtype int8"),
        ([np.ones(2), None], TypeError, "array 1 of 2 is NoneType"),
    ],
)
def test_partial_allreduce_refuses_what_it_cannot_average(world, arrays, error, words):
    with pytest.raises(error, match=words):
        hb.partial_allreduce(arrays)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backup_workers": 1}, "use 0 <= backup_workers <= 0"),
        ({"backup_workers": -1}, "backup_workers=-1"),
        ({"weight": float("nan")}, r"to abstain. or between"),
        ({"weight": 1e-320}, r"to abstain. or between"),
        ({"weight": 1e308}, r"to abstain. or between"),
        ({"weight": -1.0}, r"to abstain. or between"),
        ({"weight": float("inf")}, r"to abstain. or between"),
        ({"window": 0}, "window=0"),
        ({"grace": -1.0}, "grace=-1.0"),
        ({"timeout": 0.0}, "timeout=0.0"),
    ],
)
def test_partial_allreduce_refuses_options_that_cannot_be(world, options, words):
    for arrays in (np.ones(3), [np.ones(3)], np.ones(100_000)):
        with pytest.raises(ValueError, match=words):
            hb.partial_allreduce(arrays, **options)
    value, round_ = hb.partial_allreduce(np.ones(3))
    assert value.tolist() == [1, 1, 1]
    assert round_.number == 0  # nothing of the above was a round


def test_an_exchange_refuses_a_dtype_it_does_not_know(world):
    with pytest.raises(TypeError, match="gradients: dtype int32 cannot be averaged; use one of"):
        Exchange([("int32", 3)], name="gradients")


def test_an_exchange_goes_in_order(world):
    exchange = Exchange([("float32", 4)])
    with pytest.raises(hb.Error, match=r"no result before wait\(\)"):
        _ = exchange.results
    with pytest.raises(ValueError, match=r"wait\(\) before arrive\(\)"):
        exchange.wait()
    exchange.slots[0].view(np.float32)[:] = 7
    assert exchange.arrive()
    with pytest.raises(ValueError, match=r"wait\(\) must follow arrive\(\)"):
        exchange.arrive()
    assert exchange.wait().number == 0
    assert exchange.results[0].view(np.float32).tolist() == [7, 7, 7, 7]
    exchange.close()


def test_an_exchange_may_reduce_an_array_in_place(world):
    for count in (10, 100_000):
        exchange = Exchange([("float32", count)])
        array = np.arange(count, dtype=np.float32)
        exchange.allreduce(array, array)
        assert np.array_equal(array, np.arange(count))
        with pytest.raises(ValueError, match=f"two buffers of {4 * count} bytes"):
            exchange.allreduce(array, np.empty(3, np.float32))
        exchange.close()


def test_init_refuses_what_is_no_communicator():
    with pytest.raises(TypeError, match="mpi4py communicator, not 'world'"):
        hb.init("world")
