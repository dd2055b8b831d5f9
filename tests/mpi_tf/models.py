"""What the TensorFlow tests share: small models, stragglers, and a way to compare replicas."""

import os

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")

import random
import time

import numpy as np
from mpi.helpers import RANK, SIZE, digest, same_everywhere

# ruff: isort: split
import keras
import tensorflow as tf

import hvd_backup.tensorflow.keras as hvd

tf.config.threading.set_inter_op_parallelism_threads(2)  # a step waits in one of them
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.get_logger().setLevel("ERROR")

B = min(1, SIZE - 1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small_model(seed=RANK):
    """Other weights on each rank, unless the same seed is given."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(3, dtype="float32"),
        ]
    )


def embedding_model(seed=RANK, rows=20):
    """Its first layer's gradient is IndexedSlices."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            keras.layers.Embedding(rows, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def batch(step, rank=RANK, size=8):
    """Rank `rank`'s data of a step; every rank can make every other's."""
    rng = np.random.default_rng((step, rank))
    return rng.standard_normal((size, 6), np.float32), rng.integers(0, 3, size)


def words(step, rank=RANK, size=8, rows=20):
    rng = np.random.default_rng((step, rank))
    return rng.integers(0, rows, (size, 2)).astype(np.int32), rng.integers(0, 3, size)


def batches(steps, make=batch):
    """A data set of so many batches, this rank's own."""
    xs, ys = zip(*(make(step) for step in range(steps)), strict=True)
    return tf.data.Dataset.from_tensor_slices((np.stack(xs), np.stack(ys)))


class Straggler(keras.callbacks.Callback):
    """Now and then this rank is late."""

    def __init__(self, seconds=0.02, chance=0.1):
        super().__init__()
        self.seconds, self.chance = seconds, chance
        self.rng = random.Random(f"rank {RANK}")

    def on_train_batch_begin(self, batch, logs=None):
        self.delay()

    def delay(self):
        if self.rng.random() < self.chance:
            time.sleep(self.seconds)


def wait_until_overtaken(optimizer, seconds=30):
    """Until the others have closed the next round without this rank; they must be at it."""
    deadline = time.monotonic() + seconds
    while optimizer.on_time():
        assert time.monotonic() < deadline, "nobody overtook this rank"
        time.sleep(0.002)


def state(model, optimizer):
    return [np.asarray(v) for v in [*model.weights, *optimizer.variables]]


def assert_replicas(model, optimizer):
    """All ranks hold the same bits: weights, optimizer state, loss scale, iterations."""
    values = state(model, optimizer)
    assert all(np.isfinite(value).all() for value in values)
    same_everywhere([digest(value) for value in values])


def broadcast_all(model, optimizer):
    optimizer.build(model.trainable_variables)
    hvd.broadcast_variables([*model.weights, *optimizer.variables], root_rank=0)
