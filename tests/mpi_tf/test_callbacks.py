"""Callbacks under Horovod's names, with Keras 3."""

import keras
import numpy as np
import pytest
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi_tf.models import LOSS, B, assert_replicas, batches, small_model, wait_until_overtaken

import hvd_backup.keras
import hvd_backup.tensorflow
import hvd_backup.tensorflow.keras as hvd

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]


class Rates(keras.callbacks.Callback):
    """The learning rate that each batch was trained with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(float(np.asarray(self.model.optimizer.learning_rate)))


def fitted(optimizer, callbacks, *, epochs=1, steps=4, **options):
    """Eagerly, which needs no tracing: what callbacks do is the same."""
    model = small_model()
    model.compile(optimizer=optimizer, loss=LOSS, run_eagerly=True)
    history = model.fit(batches(steps), epochs=epochs, verbose=0, callbacks=callbacks, **options)
    return model, history.history


def test_the_modules_are_one_and_tell_why_a_name_is_missing():
    assert hvd_backup.keras.DistributedOptimizer is hvd.DistributedOptimizer
    assert hvd_backup.keras.callbacks is hvd.callbacks
    for module in (hvd_backup.keras, hvd, hvd_backup.tensorflow):
        assert all(hasattr(module, name) for name in module.__all__)
        with pytest.raises(AttributeError, match="elastic': the ranks of a world stay the same"):
            _ = module.elastic
        with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
            _ = module.nothing


def test_weights_come_from_the_root_before_the_first_batch_and_local_ones_stay():
    model = small_model()
    model.compile(optimizer=hvd.DistributedOptimizer(keras.optimizers.SGD(0.0)), loss=LOSS)
    local = model.layers[1].bias
    local.assign([RANK] * 3)
    before = model.get_weights()
    callback = hvd.callbacks.BroadcastGlobalVariablesCallback(SIZE - 1, local_variables=[local])
    model.fit(batches(1), verbose=0, callbacks=[callback])
    assert callback.broadcast_done
    after = model.get_weights()
    same_everywhere([w.tobytes() for w in after[:-1]])
    np.testing.assert_array_equal(after[-1], [RANK] * 3)
    for theirs, now in zip(hvd.broadcast_object(before, SIZE - 1)[:-1], after, strict=False):
        np.testing.assert_array_equal(theirs, now)
    with pytest.raises(ValueError, match=r"must be of tf\.Variable type"):
        hvd.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=["bias"])
    model.optimizer.close()


def test_metrics_are_the_mean_over_ranks_for_the_callbacks_that_follow():
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.update(logs)

    own = {}

    class Own(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            own.update(logs)

    _, history = fitted(
        keras.optimizers.SGD(0.1), [Own(), hvd.callbacks.MetricAverageCallback(), Look()]
    )
    expected = np.mean([theirs["loss"] for theirs in hvd.allgather_object(own)])
    assert seen["loss"] == pytest.approx(expected)
    assert history["loss"] == [seen["loss"]]
    same_everywhere(seen)


def test_the_learning_rate_warms_up_to_that_of_all_ranks(capsys):
    rates = Rates()
    warmup = hvd.callbacks.LearningRateWarmupCallback(0.8, warmup_epochs=2, verbose=1)
    _, history = fitted(keras.optimizers.SGD(0.8), [warmup, rates], epochs=3)
    steps = [min((step + 1) / 8, 1) for step in range(12)]
    np.testing.assert_allclose(rates.seen, [0.8 / SIZE * (1 + s * (SIZE - 1)) for s in steps], 1e-6)
    assert history["lr"] == pytest.approx([rates.seen[i] for i in (3, 7, 11)])
    printed = capsys.readouterr().out
    assert ("Epoch 2: finished gradual learning rate warmup to 0.8." in printed) == (RANK == 0)


def test_the_learning_rate_follows_a_schedule_and_velocity_with_it():
    rates = Rates()
    schedule = hvd.callbacks.LearningRateScheduleCallback(
        0.4, multiplier=0.1, start_epoch=1, end_epoch=3
    )
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.5, momentum=0.9))
    fitted(optimizer, [schedule, rates], epochs=4, steps=2)
    expected = [0.5, 0.5, 0.4, 0.4, 0.04, 0.04, 0.04, 0.04]
    np.testing.assert_allclose(rates.seen, expected, 1e-6)

    velocity = optimizer.momentums[0]
    velocity.assign(np.ones(velocity.shape))
    schedule._adjust(1)  # from 0.04 to 0.4
    np.testing.assert_allclose(np.asarray(velocity), 10 * np.ones(velocity.shape), 1e-5)
    optimizer.close()
    with pytest.raises(ValueError, match="`initial_lr` is required"):
        hvd.callbacks.LearningRateScheduleCallback(None, 0.1)


def test_the_best_model_is_saved_once(tmp_path):
    folder = hvd.broadcast_object(tmp_path)
    best = hvd.callbacks.BestModelCheckpoint(monitor="loss", filepath=folder / "best.keras")
    model, history = fitted(
        keras.optimizers.SGD(0.1), [hvd.callbacks.MetricAverageCallback(), best], epochs=2
    )
    hvd.barrier()
    assert (folder / "best.keras").exists()
    if RANK == 0:
        assert best.best == pytest.approx(min(history["loss"]))
    with pytest.raises(ValueError, match="set its filepath"):
        model.fit(batches(1), verbose=0, callbacks=[hvd.callbacks.BestModelCheckpoint()])


def test_a_slow_rank_leaves_out_batches_whose_round_is_closed():
    model = small_model()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.01), backup_workers=B)
    model.compile(optimizer=optimizer, loss=LOSS)

    class Slow(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if RANK == SIZE - 1 > 0 and batch % 3 == 1:
                wait_until_overtaken(optimizer)

    first = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    callbacks = [first, hvd.callbacks.AttemptCallback(), Slow()]
    model.fit(batches(30), verbose=0, callbacks=callbacks)
    skipped = hvd.allgather_object(optimizer.stats().skipped)
    assert skipped[-1] >= 10 or SIZE == 1
    assert_replicas(model, optimizer)
    optimizer.close()
    model.compile(optimizer="sgd", loss=LOSS)
    with pytest.raises(ValueError, match="AttemptCallback needs compile"):
        model.fit(batches(1), verbose=0, callbacks=[hvd.callbacks.AttemptCallback()])
