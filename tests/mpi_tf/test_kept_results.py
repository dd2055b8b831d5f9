"""What a program got from an exchange changes only where it would in TensorFlow alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK
from mpi_tf.models import LOSS, B, batch, batches, small_model

import hvd_backup.tensorflow as hvd_tf
import hvd_backup.tensorflow.keras as hvd

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]

ROUNDS = 12  # more than there are buffers in the window, and blocks of memory to be used again
SIZES = [3, 64, 5000]


class Keeper:
    """Keeps tensors and numpy's views of them, and knows what they held at first."""

    def __init__(self):
        self._kept = []

    def keep(self, tensors):
        for tensor in tensors:
            for value in (tensor, tensor.numpy(), np.asarray(tensor), tensor[1:]):
                self._kept.append((value, np.array(value, copy=True)))

    def check(self):
        assert len(self._kept) >= ROUNDS
        for value, at_first in self._kept:
            np.testing.assert_array_equal(np.asarray(value), at_first)


class KeepingSGD(keras.optimizers.SGD):
    """An optimizer that keeps gradients of earlier steps, as some do in their state."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.__dict__["keeper"] = Keeper()

    def update_step(self, gradient, variable, learning_rate):
        if tf.executing_eagerly():
            self.__dict__["keeper"].keep([gradient])
        super().update_step(gradient, variable, learning_rate)


def variables():
    return [tf.Variable(tf.zeros(size)) for size in SIZES]


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_gradients_of_tapes_keep_their_values(graph):
    sources, keeper = variables(), Keeper()

    def step(factor):
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(v * factor) for v in sources])
        return hvd_tf.DistributedGradientTape(tape, backup_workers=B).gradient(loss, sources)

    step = tf.function(step) if graph else step
    for i in range(ROUNDS):
        keeper.keep(step(tf.constant(float(i + RANK))))
    keeper.check()


def test_gradients_that_an_optimizer_was_given_keep_their_values():
    optimizer = hvd.DistributedOptimizer(KeepingSGD(0.1), backup_workers=B)
    theirs = variables()
    for i in range(ROUNDS):
        optimizer.apply([tf.fill(v.shape, float(i + RANK)) for v in theirs], theirs)
    optimizer.__dict__["keeper"].check()
    optimizer.close()


def test_weights_that_were_read_while_a_model_is_fitted_keep_their_values():
    model, keeper = small_model(1), Keeper()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), backup_workers=B)
    model.compile(optimizer=optimizer, loss=LOSS)

    class Keeping(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            keeper.keep([tf.convert_to_tensor(v) for v in model.trainable_variables])

    model.fit(batches(ROUNDS), verbose=0, callbacks=[Keeping()])
    keeper.check()
    optimizer.close()


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_results_of_collectives_and_what_was_given_to_them_keep_their_values(graph):
    keeper = Keeper()

    def step(x):
        return [
            hvd_tf.allreduce(x),
            hvd_tf.broadcast(x, 0),
            hvd_tf.allgather(x),
            hvd_tf.reducescatter(x[:4096]),
            *hvd_tf.grouped_allreduce([x, x[:64]], op=hvd_tf.Sum, prescale_factor=0.5),
        ]

    step = tf.function(step) if graph else step
    for i in range(ROUNDS):
        given = tf.constant(np.full(5000, i + RANK, np.float32))
        keeper.keep([given, *step(given)])
    keeper.check()


def test_arrays_that_a_batch_was_made_of_keep_their_values():
    x, y = batch(0)
    before = x.copy(), y.copy()
    model = small_model(1)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), backup_workers=B)
    model.compile(optimizer=optimizer, loss=LOSS)
    model.fit(x, y, batch_size=2, epochs=2, verbose=0)
    hvd_tf.allreduce(x)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])
    optimizer.close()
