"""Train a small Keras CNN on digits, on one process or on many that do not wait for the slowest.

    python examples/keras_mnist.py
    mpirun -np 5 python examples/keras_mnist.py --backup-workers 1 --data FOLDER

FOLDER holds the MNIST idx files (`train-images-idx3-ubyte.gz` and so on). Without it, the small
digits of scikit-learn are used.
"""

import argparse
import os
from pathlib import Path

import keras
import tensorflow as tf

import hvd_backup.tensorflow.keras as hvd  # was: import horovod.tensorflow.keras as hvd
from hvd_backup.study.data import load_images


def cnn(shape: tuple[int, ...]) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(10),
        ]
    )


def gradients_of_a_round(backup_workers: int | None) -> int:
    """N of the N + b ranks; None: b is what `hvd-backup run -b` says."""
    if backup_workers is None:
        backup_workers = int(os.environ.get("HVD_BACKUP_WORKERS") or 0)
    return max(hvd.size() - backup_workers, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="train a small Keras CNN on digits")
    parser.add_argument("--data", type=Path, help="folder with the MNIST idx files")
    parser.add_argument("--backup-workers", type=int, help="default: as the launcher says, or 0")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32, help="images per rank and step")
    parser.add_argument("--lr", type=float, default=0.003, help="learning rate for one gradient")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    hvd.init()
    keras.utils.set_random_seed(args.seed + hvd.rank())
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the ranks share the cores

    images = load_images(args.data)
    train_x = images.train_x.transpose(0, 2, 3, 1).astype("float32") / 255
    test_x = images.test_x.transpose(0, 2, 3, 1).astype("float32") / 255
    # Every rank makes the same number of steps, on images of its own.
    steps = len(train_x) // hvd.size() // args.batch_size
    data = tf.data.Dataset.from_tensor_slices((train_x, images.train_y))
    data = data.shard(hvd.size(), hvd.rank()).shuffle(10_000).repeat().batch(args.batch_size)
    test = tf.data.Dataset.from_tensor_slices((test_x, images.test_y))
    test = test.shard(hvd.size(), hvd.rank()).batch(256)

    # A round adds up this many gradients, and the learning rate follows them.
    rate = args.lr * gradients_of_a_round(args.backup_workers)
    # Horovod: the same, without backup_workers.
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.Adam(rate), backup_workers=args.backup_workers
    )
    model = cnn(train_x.shape[1:])
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        hvd.callbacks.MetricAverageCallback(),
        hvd.callbacks.LearningRateWarmupCallback(initial_lr=rate, warmup_epochs=2),
        # Not in Horovod, and optional: a rank that has been left behind skips batches here.
        hvd.callbacks.AttemptCallback(),
    ]
    history = model.fit(
        data,
        steps_per_epoch=steps,
        epochs=args.epochs,
        validation_data=test,
        callbacks=callbacks,
        verbose=0,
    )
    late = hvd.allgather_object(optimizer.stats().late)
    if hvd.rank() == 0:
        for epoch, reached in enumerate(history.history["val_accuracy"], 1):
            print(f"epoch {epoch}: test accuracy {reached:.1%}")
        print(f"gradients that came too late, per rank: {late}")
    hvd.shutdown()


if __name__ == "__main__":
    main()
