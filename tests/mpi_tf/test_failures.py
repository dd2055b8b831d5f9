"""Errors: their classes, eagerly, while a step is traced and when it runs; what is refused."""

import pickle

import keras
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE
from mpi_tf.models import B

import hvd_backup.tensorflow as hvd
from hvd_backup import errors
from hvd_backup.tensorflow.failures import of_both_kinds

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    ("error", "theirs"),
    [
        (errors.Mismatch("text"), tf.errors.FailedPreconditionError),
        (errors.PeerFailed("text"), tf.errors.UnknownError),
        (errors.RoundTimeout("text"), tf.errors.UnknownError),
        (errors.NotInitialized("text"), tf.errors.UnknownError),
        (ValueError("text"), tf.errors.InvalidArgumentError),
    ],
)
def test_an_error_is_of_its_class_and_of_tensorflows(error, theirs):
    both = of_both_kinds(error)
    assert isinstance(both, type(error))
    assert isinstance(both, theirs)
    assert type(both).__name__ == type(error).__name__
    assert (str(both), both.message, both.args) == ("text", "text", ("text",))
    assert of_both_kinds(both) is both
    again = pickle.loads(pickle.dumps(both))
    assert (type(again), str(again)) == (type(error), "text")
    assert type(of_both_kinds(KeyError("text"))) is KeyError


def disagreeing_step(eager):
    variable = tf.Variable(tf.zeros(2 + RANK))
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.build([variable])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable)
        optimizer.apply_gradients(zip(tape.gradient(loss, [variable]), [variable], strict=True))

    return step if eager else tf.function(step)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "traced"])
@pytest.mark.parametrize("kind", [hvd.Mismatch, hvd.Error, tf.errors.FailedPreconditionError])
def test_an_error_of_a_step_keeps_its_class_also_while_it_is_traced(eager, kind):
    if SIZE == 1:
        return
    with pytest.raises(kind, match="disagree on the gradient of variable 0, Variable:0"):
        disagreeing_step(eager)()
    with pytest.raises(kind, match="disagree on the gradient"), hvd.native_errors():
        disagreeing_step(eager)()


def test_every_error_of_ours_can_be_traced():
    for name in errors.__all__:
        kind = getattr(errors, name)

        def step(kind=kind):
            raise kind("some words")

        with pytest.raises(kind, match="some words"):
            tf.function(step)()


@pytest.mark.parametrize(
    "call",
    [
        lambda x, v: hvd.allreduce(x),
        lambda x, v: hvd.broadcast(x, 0),
        lambda x, v: hvd.allgather(x),
        lambda x, v: hvd.reducescatter(x),
        lambda x, v: hvd.alltoall(x),
        lambda x, v: hvd.broadcast_variables([v], 0),
        lambda x, v: tape_of(x),
    ],
)
def test_graphs_of_tensorflow_1_are_refused_in_words_that_say_so(call):
    with tf.Graph().as_default():
        x, v = tf.ones([SIZE]), tf.compat.v1.get_variable("v", [2])
        with pytest.raises(NotImplementedError, match="a graph of TensorFlow 1"):
            call(x, v)


def tape_of(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(x)
    return hvd.DistributedGradientTape(tape).gradient(y, x)


def test_a_step_without_any_gradient_is_an_error_on_every_rank():
    variable, other = keras.Variable([0.0]), keras.Variable([0.0])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), backup_workers=B)
    optimizer.build([variable, other])
    step = tf.function(lambda: optimizer.apply([None, None]))
    with pytest.raises(ValueError, match="No gradients provided"):
        step()
    optimizer.apply([tf.ones(1), None])
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None, None])
    optimizer.weight = 0.0  # all abstain: the step is made, and changes nothing
    before = float(variable.numpy()[0])
    optimizer.apply([tf.ones(1), None])
    assert float(variable.numpy()[0]) == before
    assert int(optimizer.iterations.numpy()) == 2
    assert optimizer.stats().abstained == int(optimizer.last_round.contributed)
    optimizer.close()
