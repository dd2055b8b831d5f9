"""Steps of Keras models on every rank, by ways to exchange; started by keras_step.py."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")

import keras
import numpy as np
import tensorflow as tf

import hvd_backup as hb
import hvd_backup.tensorflow.keras as hvd

# Units per layer, layers: 0.3, 4.2 and 25 M parameters.
MODELS = {"small": (256, 4), "medium": (1024, 4), "large": (2048, 6)}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH = 16
AT_A_TIME = 5
WAYS = ("no_exchange", "py_function", "hvd_backup")


def build(units: int, layers: int) -> Any:
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(units, activation="relu") for _ in range(layers)]
    return keras.Sequential([keras.Input((units,)), *dense, keras.layers.Dense(10)])


def host_only(optimizer: Any) -> None:
    """Let the step hand its gradients to Python and take them back: no exchange, no copy."""
    apply = optimizer.apply

    def through_python(gradients: Any, variables_: Any = None) -> Any:
        given = list(gradients)
        taken = tf.numpy_function(lambda *arrays: list(arrays), given, [g.dtype for g in given])
        for tensor, gradient in zip(taken, given, strict=True):
            tensor.set_shape(gradient.shape)
        return apply(taken, variables_)

    object.__setattr__(optimizer, "apply", through_python)


def step_of(way: str, units: int, layers: int) -> tuple[Callable[[], Any], Any]:
    model = build(units, layers)
    optimizer: Any = keras.optimizers.SGD(1e-3)
    variables = model.trainable_variables
    if way == "py_function":
        host_only(optimizer)
    elif way == "hvd_backup":
        optimizer = hvd.DistributedOptimizer(optimizer)
    optimizer.build(variables)
    rng = np.random.default_rng(hb.rank())
    x = tf.constant(rng.standard_normal((BATCH, units), np.float32))
    y = tf.constant(rng.integers(0, 10, BATCH))

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return step, model


def measure(steps: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Times of steps in ms, the ways taking turns, so that noise meets all of them."""
    times: dict[str, list[float]] = {way: [] for way in steps}
    for step in steps.values():
        for _ in range(3):
            step().numpy()
    start = time.perf_counter()
    for step in steps.values():
        step().numpy()
    took = hb.broadcast_object(time.perf_counter() - start)  # the same number on every rank
    for _ in range(max(2, min(60, int(seconds / took / AT_A_TIME)))):
        for way, step in steps.items():
            hb.barrier()
            for _ in range(AT_A_TIME):
                start = time.perf_counter()
                step().numpy()
                times[way].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="small,medium,large")
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    hb.init()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    for name in args.models.split(","):
        made = {way: step_of(way, *MODELS[name]) for way in WAYS}
        model = made["hvd_backup"][1]
        times = measure({way: step for way, (step, _) in made.items()}, args.seconds)
        for way, samples in times.items():
            # The slowest rank's: a step is as slow as it is.
            medians = hb.allgather_object(float(np.median(samples)))
            least = hb.allgather_object(min(samples))  # says more on a busy machine
            if hb.rank() == 0:
                row = {
                    "ranks": hb.size(),
                    "model": name,
                    "parameters": model.count_params(),
                    "tensors": len(model.trainable_variables),
                    "way": way,
                    "step_ms": round(max(medians), 3),
                    "least_ms": round(max(least), 3),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
