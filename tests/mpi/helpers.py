"""What the multi-rank tests share. Importing it joins the world."""

import functools
import hashlib
import random
import time

import numpy as np

import hvd_backup as hb
from hvd_backup.world import runtime

hb.init()

RANK, SIZE = hb.rank(), hb.size()
NODE_OF = runtime.current().topology.node_of
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


def same_on_each_node(*facts):
    """Asserts that the ranks of each node hold equal facts: times of its clock, say."""
    everybody = hb.allgather_object(facts)
    for rank, theirs in enumerate(everybody):
        first = NODE_OF.index(NODE_OF[rank])
        assert theirs == everybody[first], f"rank {rank} differs from rank {first} of its node"


@functools.lru_cache(maxsize=4 * SIZE)
def _noise(rank, key, count):
    return np.random.default_rng((rank, key)).random(count, dtype=np.float32) - np.float32(0.5)


def contribution(rank, key, shape, dtype):
    """Rank `rank`'s array; every rank can compute every other's."""
    return _noise(rank, key, int(np.prod(shape))).astype(dtype).reshape(shape)


def mean(ranks, arrays, weights=None):
    """numpy's weighted mean of the arrays of these ranks, in float32 or wider.

    The arrays of each node are added in the order given, then the nodes' sums in the nodes' order.
    """
    weights = weights or [1.0] * len(arrays)
    wide = SUM_TYPE[arrays[0].dtype.name]
    sums = {}
    for rank, array, weight in zip(ranks, arrays, weights, strict=True):
        term = wide(weight) * array.astype(wide)
        node = NODE_OF[rank]
        sums[node] = sums[node] + term if node in sums else term
    total = sum(sums[node] for node in sorted(sums))
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
