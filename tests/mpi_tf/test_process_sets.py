"""Optimizers and tapes on a process set: its ranks train among themselves."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE, digest
from mpi_tf.models import LOSS, Straggler, batch, batches, small_model, state

import hvd_backup.tensorflow as hvd_tf
import hvd_backup.tensorflow.keras as hvd

pytestmark = [pytest.mark.mpi(min_size=3), pytest.mark.timeout(180)]

STEPS = 12


@pytest.fixture
def some():
    """The set of all ranks but the last."""
    made = hvd_tf.add_process_set(range(SIZE - 1))
    yield made
    assert hvd_tf.remove_process_set(made)


def adam(some, **options):
    return hvd.DistributedOptimizer(keras.optimizers.Adam(0.01), process_set=some, **options)


def assert_replicas_inside(some, model, optimizer, steps):
    everybody = hvd_tf.allgather_object([digest(value) for value in state(model, optimizer)])
    assert all(everybody[rank] == everybody[0] for rank in some.ranks)
    assert everybody[-1] != everybody[0]
    rounds = optimizer.stats().rounds
    assert rounds == (steps if some.included() else 0)
    assert (optimizer.last_round is None) != some.included()


def test_fit_leaves_replicas_identical_inside_and_is_local_outside(some):
    optimizer = adam(some, backup_workers=1)
    model, alone = small_model(1), small_model(1)
    model.compile(optimizer=optimizer, loss=LOSS)
    model.fit(batches(STEPS), verbose=0, callbacks=[hvd.callbacks.AttemptCallback(), Straggler()])
    assert_replicas_inside(some, model, optimizer, STEPS)
    if not some.included():
        alone.compile(optimizer=keras.optimizers.Adam(0.01), loss=LOSS)
        alone.fit(batches(STEPS), verbose=0)
        for mine, theirs in zip(model.get_weights(), alone.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    optimizer.close()


@pytest.mark.parametrize("graph", [True, False])
def test_a_custom_loop_leaves_replicas_identical_inside_and_is_local_outside(some, graph):
    optimizer = adam(some, backup_workers=1)
    model = small_model(2)
    variables = model.trainable_variables

    def gradients(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        return tape.gradient(loss, variables)

    def step(x, y):
        if optimizer.on_time():
            optimizer.apply(gradients(x, y), variables)
        else:
            optimizer.skip()

    def attempt(x, y):
        with optimizer.attempt() as attempt:
            attempt.check()
            optimizer.apply(gradients(x, y), variables)

    make = tf.function(step) if graph else attempt
    for i in range(STEPS):
        make(*batch(i))
    assert_replicas_inside(some, model, optimizer, STEPS)
    optimizer.close()


def test_a_tape_gives_the_mean_inside_and_the_ranks_own_gradient_outside(some):
    x = tf.Variable([float(RANK + 1), 2.0])
    with hvd_tf.DistributedGradientTape(tf.GradientTape(), process_set=some) as tape:
        y = tf.reduce_sum(x * x)
    mean = sum(2.0 * (rank + 1) for rank in some.ranks) / len(some.ranks)
    expected = mean if some.included() else 2.0 * (RANK + 1)
    np.testing.assert_allclose(tape.gradient(y, x).numpy(), [expected, 4.0], rtol=1e-6)
    assert (tape.last_round is None) != some.included()


def test_tapes_of_one_set_do_not_make_a_rank_forget_those_of_another(some):
    pair = hvd_tf.add_process_set([0, SIZE - 1])

    def mean(i, process_set):
        x = tf.Variable(1.0, name=f"x{i}")
        with hvd_tf.DistributedGradientTape(tf.GradientTape(), process_set=process_set) as tape:
            y = (RANK + 1.0) * x
        return float(tape.gradient(y, x))

    inside = sum(rank + 1.0 for rank in some.ranks) / len(some.ranks)
    expected = inside if some.included() else RANK + 1.0
    assert mean(0, some) == pytest.approx(expected)
    if pair.included():
        for i in range(20):
            assert mean(i, pair) == pytest.approx((1 + SIZE) / 2)
    assert mean(0, some) == pytest.approx(expected)
    assert hvd_tf.remove_process_set(pair)


def test_local_gradients_are_scaled_by_the_sets_size(some):
    x, mine = tf.Variable(1.0), tf.Variable(1.0)
    tape = hvd_tf.DistributedGradientTape(tf.GradientTape(), process_set=some)
    tape.register_local_source(mine)
    with tape:
        y = 3.0 * x + 6.0 * mine
    shared, local = tape.gradient(y, [x, mine])
    assert float(shared) == pytest.approx(3.0)
    assert float(local) == pytest.approx(6.0 / (SIZE - 1 if some.included() else 1))
