"""What the multi-rank tests share. Importing it joins the world."""

import hashlib
import random
import time

import numpy as np

import hvd_backup as hb

hb.init()

RANK, SIZE = hb.rank(), hb.size()
EVERY_B = range(SIZE)
SUM_TYPE = {"float16": np.float32, "float32": np.float32, "float64": np.float64}


def digest(*arrays):
    """A short text that differs when a bit differs."""
    state = hashlib.sha1()
    for array in arrays:
        array = np.ascontiguousarray(array)
        state.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return state.hexdigest()


def same_everywhere(*facts):
    """Asserts that all ranks hold equal facts: digests, tuples, numbers."""
    everybody = hb.allgather_object(facts)
    for rank, theirs in enumerate(everybody):
        assert theirs == everybody[0], f"rank {rank} differs from rank 0: {everybody}"


def contribution(rank, key, shape, dtype):
    """Rank `rank`'s array; every rank can compute every other's."""
    rng = np.random.default_rng((rank, key))
    flat = rng.random(int(np.prod(shape)), dtype=np.float32) - np.float32(0.5)
    return flat.astype(dtype).reshape(shape)


def mean(arrays, weights=None):
    """numpy's weighted mean, summed in the order given, in float32 or wider."""
    weights = weights or [1.0] * len(arrays)
    wide = SUM_TYPE[arrays[0].dtype.name]
    total = np.zeros(arrays[0].shape, wide)
    for array, weight in zip(arrays, weights, strict=True):
        total = total + wide(weight) * array.astype(wide)
    return np.asarray(total / wide(sum(weights))).astype(arrays[0].dtype)


def delay(key, seconds=0.005, chance=0.5):
    """Makes one rank in a while late: all ranks draw alike, one of them sleeps."""
    rng = random.Random(f"delay {key}")
    sleeper = rng.randrange(SIZE)
    if rng.random() < chance and sleeper == RANK:
        time.sleep(seconds)


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)
    assert got.tobytes() == expected.tobytes()
