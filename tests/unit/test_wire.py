"""The arithmetic around the MPI calls, in a world of one without MPI."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hvd_backup.collectives.operations import splits_of
from hvd_backup.world import wire
from hvd_backup.world.wire import Average, Channel, ReduceOp, Sum, Typed


def channel(size=1):
    """An Allreduce as if all `size` ranks had the same array."""

    def allreduce(source, result, op):
        result[...] = source * size if op == "sum" else source

    comm = SimpleNamespace(size=size, rank=0, Allreduce=allreduce)
    return Channel(comm, SimpleNamespace(SUM="sum", MIN="min", MAX="max", PROD="prod"))


def reduced(array, how, size=1, dtype=None):
    typed = Typed(array, dtype or array.dtype.name)
    return wire.allreduce(channel(size), [typed], how)[0]


def test_an_average_of_integers_is_cut_off():
    array = np.array([5, -5, 2], np.int32)
    assert reduced(array, ReduceOp(Average), size=3).tolist() == [5, -5, 2]
    assert reduced(array, ReduceOp(Average, after=0.5), size=3).tolist() == [2, -2, 1]
    assert reduced(array, ReduceOp(Sum, before=0.5), size=2).tolist() == [4, -4, 2]


@pytest.mark.parametrize("size", range(1, 60))
def test_an_average_of_equal_integers_is_exact_for_every_number_of_ranks(size):
    assert reduced(np.array([1, 7]), ReduceOp(Average), size=size).tolist() == [1, 7]


def test_bfloat16_is_rounded_as_torch_rounds():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 100
    values = torch.cat([values, torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 3e38])])
    bits = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
    for after in (1.0, 1 / 3, 1.7):
        got = reduced(bits, ReduceOp(Sum, after=after), dtype="bfloat16")
        expected = (values.bfloat16().float() * np.float32(after)).bfloat16()
        assert np.array_equal(got, expected.view(torch.int16).numpy().view(np.uint16))
    nan = torch.tensor([float("nan")]).bfloat16().view(torch.int16).numpy().view(np.uint16)
    got = torch.from_numpy(reduced(nan, ReduceOp(Sum), dtype="bfloat16").view(np.int16))
    assert got.view(torch.bfloat16).isnan().all()


def test_halves_are_scaled_in_float32_and_rounded_before_they_are_added():
    values = np.random.default_rng(0).uniform(-100, 100, 1000).astype(np.float16)
    factor = np.float32(0.1915)
    scaled = (values.astype(np.float32) * factor).astype(np.float16)
    got = reduced(values, ReduceOp(Sum, before=float(factor)), size=3)
    assert np.array_equal(got, (3 * scaled.astype(np.float32)).astype(np.float16))
    assert not np.array_equal(scaled, values * np.float16(factor))
    got = reduced(values, ReduceOp(Sum, after=float(factor)), size=3)
    assert np.array_equal(got, (3 * values.astype(np.float32) * factor).astype(np.float16))


def test_arrays_of_a_group_come_back_in_their_places_shapes_and_dtypes():
    batch = [np.ones((2, 3), np.float32), np.array(4), np.zeros((0, 2), np.float32), np.ones(2)]
    results = wire.allreduce(
        channel(2), [Typed(a, a.dtype.name) for a in batch], ReduceOp(Sum, 2.0, 0.5)
    )
    for result, array in zip(results, batch, strict=True):
        assert result.dtype == array.dtype
        assert np.array_equal(result, 2 * array)
        assert result.shape == array.shape


def test_shares_of_rows_differ_by_one_at_most_the_first_are_larger():
    assert wire.shares_of(7, 3) == [3, 2, 2]
    assert wire.shares_of(2, 4) == [1, 1, 0, 0]
    assert wire.shares_of(0, 2) == [0, 0]


@pytest.mark.parametrize(
    ("rows", "splits", "words"),
    [
        (3, None, "not an even multiple of the number of workers. (3 rows, 2 ranks)"),
        (4, [1], "Number of entries in splits does not equal number of workers. (1 entries"),
        (4, [3, 2], "Sum of splits entries is greater than the first dimension of tensor. (5 > 4)"),
        (4, [5, -1], "none can be negative"),
    ],
)
def test_splits_that_cannot_be_are_refused(rows, splits, words):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (its words are below)
        splits_of(rows, splits, 2)
    assert words in str(raised.value)


def test_splits_may_leave_rows_at_home_and_be_left_out():
    assert splits_of(5, [1, 2], 2) == [1, 2]
    assert splits_of(4, None, 2) == [2, 2]
    assert splits_of(4, [], 2) == [2, 2]


@pytest.mark.parametrize(
    ("dtype", "op", "can"),
    [
        ("bool", "Sum", False),
        ("complex64", "Sum", True),
        ("complex64", "Max", False),
        ("bfloat16", "Product", True),
        ("uint8", "Average", True),
    ],
)
def test_dtypes_that_an_operation_takes(dtype, op, can):
    assert wire.can_reduce(dtype, op) is can
