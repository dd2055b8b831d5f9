"""Training with Keras and TensorFlow: every replica stays the same, bit for bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi_tf.models import (
    LOSS,
    B,
    Straggler,
    assert_replicas,
    batch,
    batches,
    broadcast_all,
    embedding_model,
    small_model,
    wait_until_overtaken,
    words,
)

import hvd_backup.tensorflow.keras as hvd

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(180)]

STEPS = 40


@pytest.fixture
def mixed():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


def check_rounds(optimizer, steps, b=B):
    stats = optimizer.stats()
    assert stats.rounds == steps
    assert stats.contributed + stats.late == steps
    assert optimizer.last_round.number == steps - 1
    assert sum(hvd.allgather_object(stats.contributed)) == steps * (SIZE - b)
    same_everywhere(optimizer.last_round.contributors)


def step_of(model, optimizer):
    """The usual custom loop's step."""
    variables = model.trainable_variables

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def fit(optimizer, *callbacks, model=None, **options):
    model = model or small_model()
    model.compile(optimizer=optimizer, loss=LOSS, metrics=["accuracy"])
    first = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    model.fit(
        batches(STEPS // 2),
        epochs=2,
        verbose=0,
        callbacks=[first, hvd.callbacks.MetricAverageCallback(), *callbacks, Straggler()],
        **options,
    )
    return model


def test_fit_with_stragglers_leaves_replicas_identical_and_follows_its_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([STEPS // 2], [0.05, 0.01])
    plain = keras.optimizers.Adam(schedule)
    optimizer = hvd.DistributedOptimizer(plain, backup_workers=B)
    assert optimizer is plain
    assert isinstance(optimizer, keras.optimizers.Adam)
    assert (type(optimizer).__name__, type(optimizer).__module__) == (
        "Adam",
        keras.optimizers.Adam.__module__,
    )
    model = fit(optimizer, hvd.callbacks.AttemptCallback())
    check_rounds(optimizer, STEPS)
    assert_replicas(model, optimizer)
    assert int(optimizer.iterations.numpy()) == STEPS
    assert float(np.asarray(optimizer.learning_rate)) == pytest.approx(0.01)
    optimizer.close()
    assert not hasattr(optimizer, "last_round")


def test_fit_in_mixed_precision_leaves_replicas_identical(mixed):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer = hvd.DistributedOptimizer(optimizer, backup_workers=B, late="carry")
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    model = fit(optimizer)
    assert model.optimizer is optimizer
    check_rounds(optimizer, STEPS)
    assert_replicas(model, optimizer)
    optimizer.close()


def test_an_overflow_on_one_rank_is_skipped_by_all(mixed):
    model = small_model()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    broadcast_all(model, optimizer)
    scale = float(optimizer.dynamic_scale.numpy())
    gradients = [tf.ones(v.shape) for v in model.trainable_variables]
    before = model.get_weights()
    if RANK == SIZE - 1:
        gradients[0] *= np.inf
    optimizer.apply(gradients, model.trainable_variables)
    assert float(optimizer.dynamic_scale.numpy()) == scale / 2
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables])
    assert_replicas(model, optimizer)
    assert optimizer.stats().rounds == 2
    optimizer.close()


def test_a_loss_scale_around_a_distributed_optimizer_is_refused(mixed):
    keras.config.set_dtype_policy("float32")
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    keras.config.set_dtype_policy("mixed_float16")
    model = small_model()
    with pytest.raises(ValueError, match=r"use DistributedOptimizer\(LossScaleOptimizer"):
        model.compile(optimizer=optimizer, loss=LOSS)


def test_a_tf_function_that_skips_what_cannot_count_leaves_replicas_identical():
    model = embedding_model()
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.Adam(0.01), backup_workers=B, sparse_mean="rows", late="carry"
    )
    broadcast_all(model, optimizer)
    variables = model.trainable_variables

    @tf.function
    def step(x, y):
        if optimizer.on_time():
            with tf.GradientTape() as tape:
                loss = LOSS(y, model(x, training=True))
            if optimizer.on_time():
                optimizer.apply_gradients(
                    zip(tape.gradient(loss, variables), variables, strict=True)
                )
            else:
                optimizer.skip()
        else:
            optimizer.skip()

    straggler = Straggler()
    for i in range(STEPS):
        straggler.delay()
        step(*words(i))
    check_rounds(optimizer, STEPS)
    assert_replicas(model, optimizer)
    optimizer.close()


def test_an_eager_loop_with_attempt_leaves_replicas_identical():
    model = small_model()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.01), backup_workers=B)
    broadcast_all(model, optimizer)
    variables = model.trainable_variables
    left = 0
    for i in range(STEPS // 2):
        with optimizer.attempt() as attempt:
            with tf.GradientTape() as tape:
                x, y = batch(i)
                loss = LOSS(y, model(x))
            if RANK == SIZE - 1 > 0 and i % 4 == 1:
                wait_until_overtaken(optimizer)
            attempt.check()
            optimizer.apply(tape.gradient(loss, variables), variables)
        left += not attempt.completed
    check_rounds(optimizer, STEPS // 2)
    assert optimizer.stats().skipped == left
    assert left >= STEPS // 8 or RANK < SIZE - 1 or SIZE == 1
    assert_replicas(model, optimizer)
    optimizer.close()


def test_a_block_without_its_step_is_an_error_and_others_pass_through():
    model = small_model()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.01))
    with pytest.raises(RuntimeError, match="made 0 steps"), optimizer.attempt():
        pass
    with pytest.raises(ZeroDivisionError), optimizer.attempt():
        raise ZeroDivisionError
    with pytest.raises(hvd.Error, match="before the first step"):
        optimizer.skip()
    with pytest.raises(RuntimeError, match=r"write there `if optimizer.on_time\(\)"):
        tf.function(optimizer.attempt)()
    variables = model.trainable_variables
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    assert optimizer.stats().rounds == 1
    optimizer.close()


def test_without_backups_it_is_training_on_the_large_batch():
    model, alone = small_model(7), small_model(7)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9))
    local = keras.optimizers.SGD(0.1, momentum=0.9)

    together, by_itself = step_of(model, optimizer), step_of(alone, local)
    for i in range(15):
        together(*batch(i))
        parts = [batch(i, rank) for rank in range(SIZE)]
        by_itself(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    for mine, theirs in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    assert_replicas(model, optimizer)
    optimizer.close()


def test_xla_is_refused_when_the_step_is_traced():
    model = small_model()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer=optimizer, loss=LOSS, jit_compile=True)
    with pytest.raises(NotImplementedError, match=r"model\.compile\(jit_compile=False\)"):
        model.fit(batches(1), verbose=0)


def test_automatic_xla_is_switched_off_by_a_callback(monkeypatch, caplog):
    model = small_model()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    # As on a machine with a GPU.
    monkeypatch.setattr(type(model), "_resolve_auto_jit_compile", lambda self: True)
    model.compile(optimizer=optimizer, loss=LOSS)
    assert model.jit_compile
    model.fit(batches(2), verbose=0, callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0)])
    assert not model.jit_compile
    assert "jit_compile is switched off" in caplog.text
    optimizer.close()


def test_a_saved_model_does_not_know_of_us_and_loads_as_a_distributed_one(tmp_path):
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.01), backup_workers=B)
    model = small_model()
    broadcast_all(model, optimizer)
    model.compile(optimizer=optimizer, loss=LOSS, run_eagerly=True)
    model.fit(batches(3), verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    assert (
        optimizer.get_config()
        == keras.optimizers.Adam.from_config(optimizer.get_config()).get_config()
    )
    saved = keras.saving.serialize_keras_object(optimizer)
    assert (saved["module"], saved["class_name"]) == ("keras.optimizers", "Adam")
    alone = keras.models.load_model(path)
    assert not hasattr(alone.optimizer, "last_round")
    again = hvd.load_model(path, backup_workers=B)
    assert isinstance(again.optimizer, keras.optimizers.Adam)
    for mine, theirs in zip(
        [*model.weights, *optimizer.variables],
        [*again.weights, *again.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    again.fit(batches(3), verbose=0)
    assert again.optimizer.stats().rounds == 3
    assert_replicas(again, again.optimizer)
    optimizer.close()
    again.optimizer.close()
