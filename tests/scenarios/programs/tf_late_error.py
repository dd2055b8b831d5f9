"""Rank 1 stays away from a round: what rank 0 sees of it in fit."""

import os
import time

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")

import keras
import numpy as np
import tensorflow as tf

import hvd_backup.tensorflow.keras as hvd

hvd.init()
RANK = hvd.rank()
print("pid", RANK, os.getpid(), flush=True)


keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), timeout=2)
model.compile(optimizer=optimizer, loss="mse")
callbacks = [hvd.callbacks.AttemptCallback()]
data = np.ones((8, 4), np.float32), np.ones((8, 2), np.float32)
model.fit(*data, verbose=0, callbacks=callbacks)
if RANK == 0:
    try:
        model.fit(*data, verbose=0, callbacks=callbacks)
    except hvd.RoundTimeout as error:
        print(f"fit: {error}", flush=True)
        before = error.__context__
        print(f"TensorFlow: {before.message if isinstance(before, tf.errors.OpError) else before}")
else:
    time.sleep(3.5)  # rank 0 raises after 2 s, and waits 2 s more for rank 1 to leave
print(f"rank {RANK}: done", flush=True)
