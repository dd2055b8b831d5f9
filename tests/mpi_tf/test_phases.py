"""One model in several fits, several models, optimizers of a model's own, copied callbacks."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE, digest, same_everywhere
from mpi_tf.models import LOSS, B, assert_replicas, batch, batches, small_model

import hvd_backup.tensorflow.keras as hvd
from hvd_backup.tensorflow.keras.fitting import optimizers_of

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(180)]


def callbacks(*, attempt=True):
    ours = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        hvd.callbacks.MetricAverageCallback(),
        hvd.callbacks.LearningRateWarmupCallback(0.01, warmup_epochs=1),
    ]
    return [*ours, hvd.callbacks.AttemptCallback()] if attempt else ours


def distributed(optimizer):
    return hvd.DistributedOptimizer(optimizer, backup_workers=B)


def test_a_model_that_is_compiled_again_is_fitted_again_also_where_auto_means_xla(
    monkeypatch, caplog
):
    # What it says where there is a GPU.
    monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", lambda _: True)
    asked = []
    model = small_model()
    reused = callbacks()
    for trainable, attempt in ((False, True), (True, True), (True, False)):
        model.layers[0].trainable = trainable
        optimizer = distributed(keras.optimizers.Adam(0.01))
        model.compile(optimizer, LOSS)
        assert model.jit_compile
        on_time = type(optimizer).on_time
        asked.append(0)

        def counted(self, on_time=on_time):
            asked[-1] += 1
            return on_time(self)

        with monkeypatch.context() as patch:
            patch.setattr(type(optimizer), "on_time", counted)
            chosen = reused if attempt else callbacks(attempt=False)
            model.fit(batches(3), epochs=2, verbose=0, callbacks=chosen)
        assert not model.jit_compile
        assert_replicas(model, optimizer)
        optimizer.close()
    assert [count > 0 for count in asked] == [True, True, False]
    assert caplog.text.count("jit_compile is switched off") == 1
    # A plain optimizer, without a callback of ours: each rank alone, and XLA is Keras' business.
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    model.make_train_function()
    assert model.jit_compile
    model.compile(keras.optimizers.SGD(0.01), LOSS, jit_compile=False)
    model.fit(batches(1 + RANK), verbose=0)


def test_a_callback_that_is_used_again_sends_what_is_new_and_only_that():
    broadcast = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    for fold in range(2):
        model = small_model(seed=10 * fold + RANK)
        optimizer = distributed(keras.optimizers.Adam(0.01))
        model.compile(optimizer, LOSS)
        model.fit(batches(1), verbose=0, callbacks=[broadcast])
        assert_replicas(model, optimizer)
        optimizer.close()
    own = model.layers[0].bias
    own.assign([RANK] * 8)
    optimizer = keras.optimizers.SGD(0.1 + RANK)
    model.compile(optimizer, LOSS, run_eagerly=True)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append((np.asarray(own)[0], float(optimizer.learning_rate.value)))

    model.fit(batches(1), verbose=0, callbacks=[broadcast, Look()])
    assert seen == [(RANK, pytest.approx(0.1))]


class Pair(keras.Model):
    """Two parts with an optimizer each, as a GAN has; and no optimizer of ``compile``'s."""

    def __init__(self, make):
        super().__init__()
        self.parts = [small_model(seed=RANK), small_model(seed=10 + RANK)]
        self.optimizers = {"first": make(0.1 + RANK), "others": [make(0.2 + RANK)]}
        self.loss_metric = keras.metrics.Mean(name="loss")

    def call(self, x):
        return self.parts[0](x) + self.parts[1](x)

    def train_step(self, data):
        x, y = data
        optimizers = (self.optimizers["first"], self.optimizers["others"][0])
        for part, optimizer in zip(self.parts, optimizers, strict=True):
            with tf.GradientTape() as tape:
                loss = LOSS(y, part(x, training=True))
            gradients = tape.gradient(loss, part.trainable_variables)
            optimizer.apply_gradients(zip(gradients, part.trainable_variables, strict=True))
        self.loss_metric.update_state(loss)
        return {"loss": self.loss_metric.result()}


@pytest.mark.parametrize("eager", [True, False])
def test_optimizers_of_a_models_own_get_the_roots_state_before_the_first_batch_or_after(eager):
    model = Pair(lambda rate: distributed(keras.optimizers.Adam(rate)))
    first, second = optimizers_of(model)
    first.build(model.parts[0].trainable_variables)
    for variable in first.variables[2:]:
        variable.assign(variable + RANK + 1)
    model.compile(optimizer=None, run_eagerly=eager)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append([digest(np.asarray(v)) for v in [*first.variables, *second.variables]])

    broadcast = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    model.fit(batches(2), verbose=0, callbacks=[broadcast, Look()])
    same_everywhere(seen)
    for part, optimizer in zip(model.parts, (first, second), strict=True):
        assert_replicas(part, optimizer)
        optimizer.close()
    with pytest.raises(ValueError, match=r"sets the learning rate of the optimizer that compile"):
        model.fit(batches(1), verbose=0, callbacks=callbacks(attempt=False)[2:])
    with pytest.raises(ValueError, match="AttemptCallback needs compile"):
        model.fit(batches(1), verbose=0, callbacks=[hvd.callbacks.AttemptCallback()])


def test_local_optimizers_of_a_models_own_are_the_roots_after_the_first_batch():
    model = Pair(keras.optimizers.Adam)
    model.compile(optimizer=None, run_eagerly=True)
    callback = hvd.callbacks.BroadcastGlobalVariablesCallback(SIZE - 1)
    model.fit(batches(1), verbose=0, callbacks=[callback])
    slots = [v for optimizer in optimizers_of(model) for v in optimizer.variables]
    assert len(slots) == 2 * (2 + 8)
    same_everywhere([digest(np.asarray(v)) for v in slots])


class Copies:
    """Encoding to make a callback of a callback."""

    deep = staticmethod(copy.deepcopy)

    @staticmethod
    def pickled(callback):
        return pickle.loads(pickle.dumps(callback))


@pytest.mark.parametrize("make", [Copies.deep, Copies.pickled])
def test_callbacks_work_as_copies_also_of_used_ones(make):
    schedule = hvd.callbacks.LearningRateScheduleCallback(0.4, multiplier=0.5, start_epoch=1)
    best = hvd.callbacks.BestModelCheckpoint(monitor="loss", filepath="best.keras")
    assert make(best).filepath == "best.keras"
    used = [*callbacks(), schedule]
    for _ in range(2):
        copied = [make(callback) for callback in used]
        model = small_model()
        optimizer = distributed(keras.optimizers.SGD(0.01))
        model.compile(optimizer, LOSS)
        history = model.fit(batches(2), epochs=2, verbose=0, callbacks=copied).history
        assert history["lr"] == pytest.approx([0.01, 0.4])
        assert_replicas(model, optimizer)
        optimizer.close()
        used = copied


def test_a_copy_leaves_the_same_variables_to_each_rank_and_counts_its_own_steps():
    model = small_model()
    local = model.layers[1].bias
    first = hvd.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=[local.value])
    local.assign([RANK] * 3)
    model.compile(keras.optimizers.SGD(0.0), LOSS, run_eagerly=True)
    model.fit(batches(1), verbose=0, callbacks=[copy.deepcopy(first)])
    np.testing.assert_array_equal(np.asarray(local), [RANK] * 3)
    with pytest.raises(pickle.PicklingError, match="1 local variables cannot be pickled"):
        pickle.dumps(first)

    warmup = hvd.callbacks.LearningRateWarmupCallback(0.8, warmup_epochs=1)
    copied = copy.deepcopy(warmup)
    for steps in (2, 4):  # detected anew by every fit
        model.compile(keras.optimizers.SGD(0.8), LOSS, run_eagerly=True)
        model.fit(*batch(0, size=4 * steps), batch_size=4, verbose=0, callbacks=[copied])
        assert copied.steps_per_epoch == steps
        assert float(model.optimizer.learning_rate.value) == pytest.approx(0.8)
    assert warmup.steps_per_epoch is None
