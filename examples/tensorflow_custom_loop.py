"""Train a small model on digits with a loop of one's own: GradientTape and tf.function.

    python examples/tensorflow_custom_loop.py
    mpirun -np 5 python examples/tensorflow_custom_loop.py --backup-workers 1 --tape

With `--tape` it is the loop of Horovod's example, with a DistributedGradientTape; without, the
optimizer is distributed, and a rank that has been left behind leaves out what can no longer count.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import hvd_backup.tensorflow as hvd  # was: import horovod.tensorflow as hvd
from hvd_backup.study.data import load_images

Step = Callable[[tf.Tensor, tf.Tensor, bool], tf.Tensor]


def mlp(pixels: int) -> keras.Model:
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((pixels,)), *layers])


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def step_with_tape(model: Any, optimizer: Any, backup_workers: int | None) -> Step:
    """Horovod's: the tape averages."""

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor, first_batch: bool) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = LOSS(labels, model(images, training=True))
        # Horovod: the same, without backup_workers.
        tape = hvd.DistributedGradientTape(tape, backup_workers=backup_workers)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        # After the first step, so that the optimizer's variables are there.
        if first_batch:
            hvd.broadcast_variables(model.variables, root_rank=0)
            hvd.broadcast_variables(optimizer.variables, root_rank=0)
        return loss

    return step


def step_that_leaves(model: Any, optimizer: Any, backup_workers: int | None) -> Step:
    """Ours: the optimizer averages, and doomed work is left out."""
    optimizer = hvd.DistributedOptimizer(optimizer, backup_workers=backup_workers)
    optimizer.build(model.trainable_variables)
    hvd.broadcast_variables([*model.variables, *optimizer.variables], root_rank=0)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor, first_batch: bool) -> tf.Tensor:
        loss = tf.constant(0.0)
        if optimizer.on_time():
            with tf.GradientTape() as tape:
                loss = LOSS(labels, model(images, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        else:
            optimizer.skip()
        return loss

    return step


def gradients_of_a_round(backup_workers: int | None) -> int:
    """N of the N + b ranks; None: b is what `hvd-backup run -b` says."""
    if backup_workers is None:
        backup_workers = int(os.environ.get("HVD_BACKUP_WORKERS") or 0)
    return max(hvd.size() - backup_workers, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="train a small model on digits")
    parser.add_argument("--data", type=Path, help="folder with the MNIST idx files")
    parser.add_argument("--backup-workers", type=int, help="default: as the launcher says, or 0")
    parser.add_argument("--tape", action="store_true", help="DistributedGradientTape")
    parser.add_argument("--steps", type=int, default=400, help="of all ranks together")
    parser.add_argument("--batch-size", type=int, default=32, help="images per rank and step")
    parser.add_argument("--lr", type=float, default=0.001, help="learning rate for one gradient")
    args = parser.parse_args()

    hvd.init()
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the ranks share the cores
    images = load_images(args.data)
    train_x = images.train_x.reshape(len(images.train_x), -1).astype("float32") / 255
    test_x = images.test_x.reshape(len(images.test_x), -1).astype("float32") / 255
    data = tf.data.Dataset.from_tensor_slices((train_x, images.train_y)).shuffle(10_000).repeat()
    data = data.shard(hvd.size(), hvd.rank()).batch(args.batch_size)

    model = mlp(train_x.shape[1])
    optimizer = keras.optimizers.Adam(args.lr * gradients_of_a_round(args.backup_workers))
    make = step_with_tape if args.tape else step_that_leaves
    step = make(model, optimizer, args.backup_workers)
    for number, (x, y) in enumerate(data.take(args.steps // hvd.size())):
        loss = step(x, y, number == 0)
        if number % 50 == 0 and hvd.rank() == 0:
            print(f"step {number}: loss {float(loss):.3f}", flush=True)

    right = tf.cast(tf.argmax(model(test_x), 1) == images.test_y, tf.float32)
    reached = hvd.allreduce(tf.reduce_mean(right))
    if hvd.rank() == 0:
        print(f"test accuracy {float(reached):.1%}")
    hvd.shutdown()


if __name__ == "__main__":
    main()
