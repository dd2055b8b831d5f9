"""What Horovod's TensorFlow does. `make test-launchers` runs this against Horovod itself, too."""

import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE
from mpi_tf import models  # noqa: F401, sets TensorFlow up

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]

FACTOR = float(np.float32(0.19151945))  # Horovod passes it on in float32
WIDE = {"float16": "float32", "float32": "float32", "float64": "float64", "int32": "float64"}


def whole_numbers(dtype, rows=3 * SIZE):
    """The same on all ranks; sums are exact in every dtype."""
    return np.random.default_rng(1).integers(-100, 100, (rows, 5)).astype(dtype)


def both_ways(program, x):
    """Eagerly and in a graph, of which `x` is an argument: Horovod needs names of tensors there."""
    for run in (program, tf.function(program)):
        yield run(tf.constant(x))


def check(call, x, before, after):
    for got in both_ways(lambda t: call(t, prescale_factor=FACTOR), x):
        np.testing.assert_array_equal(got, before)
    for got in both_ways(lambda t: call(t, postscale_factor=FACTOR), x):
        np.testing.assert_array_equal(got, after)


@pytest.mark.parametrize("dtype", WIDE)
def test_factors_of_an_allreduce_are_applied_in_float32_or_wider(hvd, dtype):
    x, wide = whole_numbers(dtype), np.dtype(WIDE[dtype]).type
    before = (wide(FACTOR) * x.astype(wide)).astype(dtype) * np.dtype(dtype).type(SIZE)
    after = (wide(FACTOR) * (x.astype(wide) * SIZE)).astype(dtype)
    check(lambda t, **factors: hvd.allreduce(t, op=hvd.Sum, **factors), x, before, after)
    check(
        lambda t, **factors: hvd.grouped_allreduce([t, t + t], op=hvd.Sum, **factors)[0],
        *(x, before, after),
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_factors_of_a_reducescatter_are_applied_in_float32(hvd, dtype):
    x = whole_numbers(dtype)
    part = x[3 * RANK : 3 * RANK + 3].astype("float32")
    before = (np.float32(FACTOR) * part).astype(dtype) * np.dtype(dtype).type(SIZE)
    after = (np.float32(FACTOR) * (part * SIZE)).astype(dtype)
    check(lambda t, **factors: hvd.reducescatter(t, op=hvd.Sum, **factors), x, before, after)


def test_the_gradient_of_an_allreduce_has_its_factors(hvd):
    factors = {"prescale_factor": 0.5, "postscale_factor": 3.0}

    def program(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(hvd.allreduce(x, op=hvd.Sum, **factors)) * (RANK + 1.0)
        return tape.gradient(total, x)

    x = whole_numbers("float32")
    expected = 1.5 * sum(range(1, SIZE + 1))
    for got in both_ways(program, x):
        np.testing.assert_allclose(got, np.full(x.shape, expected), rtol=1e-6)


@pytest.mark.parametrize("call", ["allreduce", "allgather", "broadcast", "reducescatter"])
def test_ranks_that_disagree_raise_failed_precondition(hvd, call):
    if SIZE == 1:
        return
    root = {"root_rank": 0} if call == "broadcast" else {}
    run = getattr(hvd, call)
    shapes = [(SIZE, 17 + RANK), (SIZE, 6) if RANK == 0 else (SIZE, 2, 3)]
    for shape in shapes:
        with pytest.raises(tf.errors.FailedPreconditionError):
            run(tf.ones(shape), **root)
    dtype = tf.int32 if RANK == 0 else tf.float32
    with pytest.raises(tf.errors.FailedPreconditionError):
        run(tf.ones([SIZE, 3], dtype), **root)
    if call == "broadcast":
        with pytest.raises(tf.errors.FailedPreconditionError):
            run(tf.ones([3]), root_rank=RANK)


def test_splits_that_cannot_be_raise_invalid_argument(hvd):
    rows = tf.ones([SIZE, 2])
    with pytest.raises(tf.errors.InvalidArgumentError):
        hvd.alltoall(rows, splits=tf.ones([SIZE + 1], tf.int32))
    with pytest.raises(tf.errors.InvalidArgumentError):
        hvd.alltoall(rows, splits=tf.fill([SIZE], 2))
