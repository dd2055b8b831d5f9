"""Averages of an epoch's metrics over ranks that saw different numbers of samples."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi_tf.models import LOSS, B, batches, small_model, wait_until_overtaken

import hvd_backup.tensorflow.keras as hvd
from hvd_backup.tensorflow.keras.averages import Part, Seen, average
from hvd_backup.tensorflow.keras.seen import Epoch

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]


class Look(keras.callbacks.Callback):
    """The logs of each epoch, as a callback at this place of the list sees them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(dict(logs))


def part(value, of=None, samples=None, batches=1):
    return Part(None if value is None else np.asarray(value, float), of, Seen(batches, samples))


def mean(*parts):
    return average([{("m",): one} for one in parts]).means[("m",)]


def test_a_rank_counts_by_what_its_metric_saw_and_not_at_all_without_samples():
    assert mean(part(1.0, 30, 99), part(4.0, 10, 1)) == 1.75
    assert mean(part(1.0, 30), part(0.0, 0), part(4.0, 10)) == 1.75
    assert mean(part(1.0, 30), part(np.nan, 0)) == 1.0
    assert mean(part(1.0, None, 30, 1), part(4.0, None, 10, 1)) == 1.75
    assert mean(part(1.0, 30, None, 3), part(4.0, None, None, 1)) == 1.75
    assert mean(part(2.0, 0, 0, 0), part(4.0, 0, 0, 0)) == 3
    assert mean(part(1.0, np.nan, None, 3), part(4.0, 1, None, 1)) == 1.75
    np.testing.assert_array_equal(mean(part([0.0, 4], 1), part([4.0, 0], 3)), [3, 1])


def test_equal_values_come_back_without_a_rounding_error():
    assert mean(part(0.1, 3), part(0.1, 7), part(0.1, 11)) == 0.1


def test_what_ranks_have_in_different_kinds_is_left_to_each():
    a, b, c, d = ("a",), ("b",), ("c",), ("d", "x")
    one = {a: part(1.0), b: part([1.0, 2.0]), c: part(5.0), d: part(1.0)}
    other = {a: part(None), b: part([1.0]), ("d",): part(3.0)}
    averages = average([{}, one, other])
    assert averages.means == {c: 5.0}
    assert averages.refused == {a: 1, b: 1, d: 1, ("d",): 2}


def test_the_average_is_that_of_all_samples_however_they_are_spread():
    rng = np.random.default_rng(0)
    sizes = [3 + 4 * rank for rank in range(SIZE)]
    x = rng.standard_normal((sum(sizes), 6)).astype("float32")
    y = rng.integers(0, 3, sum(sizes))
    first = sum(sizes[:RANK])
    own = slice(first, first + sizes[RANK])
    model = small_model(seed=0)
    model.compile(keras.optimizers.SGD(0.0), LOSS, metrics=["accuracy"])
    expected = dict(zip(("loss", "accuracy"), model.evaluate(x, y, verbose=0), strict=True))
    look = Look()
    data = tf.data.Dataset.from_tensor_slices((x[own], y[own])).batch(4)  # the last one smaller
    after = slice(first, first + 1 + RANK)
    model.fit(
        data,
        validation_data=(x[after], y[after]),
        epochs=2,
        verbose=0,
        callbacks=[hvd.callbacks.MetricAverageCallback(), look],
    )
    same_everywhere(look.seen)
    for name, value in expected.items():
        assert look.seen[1][name] == pytest.approx(value, rel=1e-4)
    chosen = np.concatenate([np.arange(1 + rank) + sum(sizes[:rank]) for rank in range(SIZE)])
    assert look.seen[1]["val_loss"] == pytest.approx(
        model.evaluate(x[chosen], y[chosen], verbose=0)[0], rel=1e-4
    )


def test_a_rank_that_skips_an_epoch_or_has_no_validation_counts_nothing_and_gets_the_others():
    model = small_model(seed=0)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.0), backup_workers=B)
    model.compile(optimizer, LOSS)
    last = RANK == SIZE - 1 > 0

    class Slow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_begin(self, batch, logs=None):
            if last and self.epoch == 1:
                wait_until_overtaken(optimizer)

    own, look = Look(), Look()
    average = hvd.callbacks.MetricAverageCallback()
    model.fit(
        batches(4),
        epochs=2,
        verbose=0,
        validation_data=None if last else batches(2),
        callbacks=[Slow(), own, average, look, hvd.callbacks.AttemptCallback()],
    )
    everybody = hvd.allgather_object((optimizer.stats().skipped, own.seen))
    same_everywhere(look.seen)
    assert set(look.seen[1]) == {"loss", "val_loss"}
    if SIZE > 1:
        skipped, (_, logs) = everybody[-1]
        assert skipped >= 4
        assert logs == {"loss": 0.0}
    if SIZE in (1, 2):
        assert look.seen[1]["loss"] == everybody[0][1][1]["loss"]
        assert look.seen[1]["val_loss"] == everybody[0][1][1]["val_loss"]
    assert look.seen[1]["loss"] > 0.1
    optimizer.close()


@keras.saving.register_keras_serializable("tests")
class Table(keras.metrics.Metric):
    """A confusion matrix, and a dict in which it comes."""

    def __init__(self, name="table", **options):
        super().__init__(name=name, **options)
        self.table = self.add_weight(shape=(3, 3), initializer="zeros", name="table")

    def update_state(self, y_true, y_pred, sample_weight=None):
        y = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
        table = tf.math.confusion_matrix(y, tf.argmax(y_pred, -1), 3, dtype=tf.float32)
        self.table.assign_add(table)

    def result(self):
        table = tf.convert_to_tensor(self.table)
        return {"table": table, "diagonal": tf.linalg.trace(table)}


def test_vectors_dicts_and_arrays_are_averaged_and_words_stay_with_one_warning(caplog):
    class Words(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs |= {"host": f"host {RANK}", "ints": np.array([RANK, 1]), "list": [RANK, 2.0]}
            if RANK == 0:
                logs["only"] = 7

    model = small_model()
    model.compile(keras.optimizers.SGD(0.1), LOSS, metrics=[Table()], run_eagerly=True)
    own, look = Look(), Look()
    average = hvd.callbacks.MetricAverageCallback()
    with caplog.at_level(logging.WARNING, "hvd_backup"):
        callbacks = [Words(), own, average, look]
        model.fit(batches(1 + RANK), epochs=2, verbose=0, callbacks=callbacks)
    everybody = hvd.allgather_object(own.seen[1])
    seen = look.seen[1]
    assert seen.pop("host") == f"host {RANK}"
    assert ("leaves host to each rank" in caplog.text) == (RANK == 0)
    assert caplog.text.count("leaves host") <= 1
    shares = np.arange(1, SIZE + 1) / sum(range(1, SIZE + 1))
    for name in ("table", "diagonal", "ints", "list", "loss"):
        expected = sum(s * np.asarray(e[name]) for s, e in zip(shares, everybody, strict=True))
        np.testing.assert_allclose(np.asarray(seen[name]), expected, 1e-5)
    assert np.shape(seen["table"]) == (3, 3)
    assert type(seen["list"]) is list
    assert seen["only"] == 7
    same_everywhere({name: np.asarray(value).tolist() for name, value in seen.items()})


def test_a_metric_that_was_used_for_something_else_since_is_not_asked_for_its_count():
    model = small_model(seed=0)
    model.compile(keras.optimizers.SGD(0.1), LOSS, run_eagerly=True)
    model.fit(batches(3), verbose=0)
    epoch = Epoch()
    epoch.training.add(3)
    epoch.training.complete(model)
    right = epoch.part(("loss",), model.get_metrics_result()["loss"])
    assert (right.samples, right.seen) == (24.0, Seen(3, 24.0))
    other = epoch.part(("loss",), 123.0)
    assert (other.samples, other.seen.batches) == (None, 3)


def test_a_loop_of_ones_own_can_average_too_also_without_logs():
    callback = hvd.callbacks.MetricAverageCallback()
    logs = {"loss": float(RANK), "inner": {"a": float(RANK)}} if RANK else None
    callback.on_epoch_end(0, logs)
    if logs:
        assert logs["loss"] == logs["inner"]["a"] == pytest.approx(np.mean(range(1, SIZE)))
