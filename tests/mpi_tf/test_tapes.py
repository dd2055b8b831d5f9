"""DistributedGradientTape: which tapes share rounds, what is None, gradients of gradients."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE
from mpi_tf.models import B

import hvd_backup.tensorflow as hvd

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]

LAST = SIZE - 1
MEAN = (SIZE + 1) / 2  # of rank + 1


def both_ways(program):
    return [("eager", program), ("graph", tf.function(program))]


def gradient(variables, factor, **options):
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(v * factor) for v in variables])
    return hvd.DistributedGradientTape(tape, **options).gradient(loss, variables)


def late_in_the_first_of_two(first, second):
    """The last rank misses the first call's round and carries its gradient."""
    hvd.barrier()
    if RANK == LAST:
        time.sleep(0.3)
    one = first()
    if RANK != LAST:
        time.sleep(0.6)
    two = second()
    hvd.barrier()
    return float(one[0][0]), float(two[0][0])


@pytest.mark.parametrize("way", ["other variables", "other lines", "names", "graphs"])
def test_a_carried_gradient_never_comes_into_another_loss(way):
    options = {"backup_workers": B, "late": "carry"}
    v, w = tf.Variable(tf.zeros(4)), tf.Variable(tf.zeros(4))
    if way == "other variables":
        calls = [lambda: gradient([v], 100.0, **options), lambda: gradient([w], 1.0, **options)]
    elif way == "other lines":
        calls = [
            lambda: gradient([v], 100.0, **options),
            lambda: gradient([v], 1.0, **options),
        ]
    elif way == "names":  # one line for both
        calls = [
            lambda factor=factor: gradient([v], factor, name=f"loss {factor}", **options)
            for factor in (100.0, 1.0)
        ]
    else:
        calls = [
            tf.function(lambda: gradient([v], 100.0, **options)),
            tf.function(lambda: gradient([v], 1.0, **options)),
        ]
    for call in calls:
        call()
    for _ in range(2):
        assert late_in_the_first_of_two(*calls) == (100.0, 1.0)


def test_ranks_with_other_variables_raise_mismatch_all_of_them():
    if SIZE == 1:
        return
    a, b = (tf.Variable(tf.zeros(3), name=name) for name in "ab")
    for mine in ([a, b] if RANK == 0 else [b, a], [a] if RANK == 0 else [b]):
        with pytest.raises(hvd.Mismatch, match="disagree on what variable 0 is: rank 0: a:0"):
            gradient(mine, 1.0)
    first, second = tf.Variable(tf.zeros(3)), tf.Variable(tf.zeros(3))
    with pytest.raises(hvd.Mismatch, match="in the order of their making"):
        gradient([first, second] if RANK == 0 else [second, first], 1.0)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    with pytest.raises(hvd.Mismatch, match="disagree on what variable 0"):
        optimizer.apply([tf.ones(3)], [a if RANK == 0 else b])
    np.testing.assert_allclose(gradient([a, b], 1.0)[1], np.ones(3))  # life goes on


def some(sources, used, factor=RANK + 1.0):
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(sources[i] * factor) for i in used])
    return hvd.DistributedGradientTape(tape).gradient(loss, sources)


def test_none_stays_none_where_no_rank_has_a_gradient_and_is_filled_where_one_has():
    sources = [tf.Variable(tf.zeros(2)) for _ in range(3)]
    used = [0, 1] if RANK == 0 else [0]
    for _, program in both_ways(lambda: some(sources, used)[:2]):
        shared, partly = program()
        np.testing.assert_allclose(shared, [MEAN, MEAN])
        np.testing.assert_allclose(partly, [1 / SIZE, 1 / SIZE])
    for index in (2, 0):  # another phase of the training, with another part of the model
        results = some(sources, [index])
        assert [r is None for r in results] == [i != index for i in range(3)]

    @tf.function
    def phase(index):
        results = some(fresh, [index])
        assert [r is None for r in results] == [i != index for i in range(3)]
        return results[index]

    fresh = [tf.Variable(tf.zeros(2)) for _ in range(3)]
    for index in (0, 2, 1):
        np.testing.assert_allclose(phase(index), [MEAN, MEAN])


def test_what_a_graph_has_no_tensor_for_is_an_error_on_the_rank_that_lacks_it():
    """Not zeros, and not silence: the replicas would part."""
    if SIZE == 1:
        return
    sources = [tf.Variable(tf.zeros(2)) for _ in range(2)]

    @tf.function
    def step(task):
        gradients = some(sources, [0, task])
        return [g for g in gradients if g is not None]

    step(0)
    hvd.barrier()
    words = "Variable:0 has a gradient on another rank, but had none when"

    @hvd.native_errors()
    def steps_that_differ():
        step(1 if RANK == 0 else 0)
        hvd.barrier()

    with pytest.raises(hvd.Mismatch, match=words):
        steps_that_differ()
    hvd.shutdown()
    hvd.init()


def test_a_gradient_of_the_gradient_is_horovods_if_it_is_averaged_and_else_refused():
    w = tf.Variable([1.0, 2.0])

    def program(distribute, **options):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(w**3) * (RANK + 1.0)
            inner = hvd.DistributedGradientTape(inner, **options)
            (g,) = inner.gradient(loss, [w])
            total = tf.reduce_sum(w) + tf.reduce_sum(g * g)
        outer = hvd.DistributedGradientTape(outer) if distribute else outer
        return outer.gradient(total, [w])[0]

    expected = 1 + 2 * 3 * MEAN * w.numpy() ** 2 * 6 * w.numpy() * MEAN
    for _, run in both_ways(lambda: program(distribute=True)):
        np.testing.assert_allclose(run(), expected, rtol=1e-6)

    def refused(words, **how):
        for _, run in both_ways(lambda: program(**how)):
            with pytest.raises(NotImplementedError, match=words), hvd.native_errors():
                run()

    refused("let the outer tape be a DistributedGradientTape", distribute=False)
    if B:
        refused("use backup_workers=0", distribute=True, backup_workers=B)


def test_a_function_with_a_tape_in_it_may_be_called_under_another():
    w = tf.Variable([1.0, 2.0])

    @tf.function
    def inner_step():
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(w**2) * (RANK + 1.0)
        return hvd.DistributedGradientTape(inner).gradient(loss, [w])[0]

    with tf.GradientTape() as outer:
        g = inner_step()
        total = tf.reduce_sum(w * 3.0)
    np.testing.assert_allclose(g, 2 * MEAN * w.numpy())
    np.testing.assert_allclose(outer.gradient(total, [w])[0], [3.0, 3.0])
