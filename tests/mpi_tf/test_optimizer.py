"""What DistributedOptimizer makes of gradients: dense, sparse, missing, several passes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE
from mpi_tf.models import B, assert_replicas, batch, small_model

import hvd_backup.tensorflow as hvd_tf
import hvd_backup.tensorflow.keras as hvd

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]

SUM_OF_RANKS = sum(range(1, SIZE + 1))


def applied(optimizer, gradients, variables, in_graph=False):
    """How the variables change, with SGD of rate 1."""
    before = [np.array(v) for v in variables]
    step = tf.function(optimizer.apply) if in_graph else optimizer.apply
    optimizer.build(variables)
    step(gradients)
    return [old - np.asarray(new) for old, new in zip(before, variables, strict=True)]


def variables(*shapes, dtype="float32"):
    return [keras.Variable(np.zeros(shape), dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SUM_OF_RANKS / SIZE),
        ({"op": hvd.Sum}, SUM_OF_RANKS),
        ({"gradient_predivide_factor": 4.0}, SUM_OF_RANKS / SIZE),
        ({"compression": hvd.Compression.fp16}, SUM_OF_RANKS / SIZE),
        ({"compression": hvd.Compression.bf16}, SUM_OF_RANKS / SIZE),
        ({"num_groups": 2}, SUM_OF_RANKS / SIZE),
    ],
)
@pytest.mark.filterwarnings("ignore:Parameter `num_groups`")
def test_options_of_horovods_give_what_they_say(options, expected):
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), **options)
    change = applied(optimizer, [tf.fill((2, 3), RANK + 1.0)], variables((2, 3)))
    np.testing.assert_allclose(change[0], np.full((2, 3), expected), rtol=1e-2)
    optimizer.close()


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_gradient_that_only_some_ranks_have_counts_as_zero_from_the_others(in_graph):
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    vs = variables((2,), (), (3,))
    gradients = [tf.ones(2), tf.constant(2.0) if RANK == 0 else None, None]
    change = applied(optimizer, gradients, vs, in_graph)
    np.testing.assert_allclose(change[0], [1, 1])
    np.testing.assert_allclose(change[1], 2 / SIZE, rtol=1e-6)
    np.testing.assert_allclose(change[2], 0)
    change = applied(optimizer, [None, None, tf.ones(3)], vs, in_graph)  # more than was set up
    np.testing.assert_allclose(change[2], [1, 1, 1])
    assert optimizer.stats().rounds == 2
    optimizer.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_float_travels_as_it_is_and_ranks_count_by_their_weights(dtype):
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    vs = variables((5,), dtype=dtype)
    optimizer.weight = RANK + 1.0
    change = applied(optimizer, [tf.cast(tf.fill(5, RANK), dtype)], vs)
    expected = sum((r + 1) * r for r in range(SIZE)) / SUM_OF_RANKS
    np.testing.assert_allclose(change[0].astype(float), [expected] * 5, rtol=1e-2)
    assert optimizer.last_round.weight == SUM_OF_RANKS
    optimizer.close()


def test_sparse_gradients_are_added_by_row_and_rows_are_forgotten():
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sparse_mean="rows")
    (table,) = variables((2 * SIZE + 2, 2))

    @tf.function(reduce_retracing=True)
    def step(values, rows):
        optimizer.apply([tf.IndexedSlices(values, rows, table.shape)], [table])

    step(tf.ones((2, 2)), tf.constant([RANK, RANK]))
    step(tf.ones((1, 2)), tf.constant([SIZE + RANK]))
    step(tf.fill((1, 2), RANK + 1.0), tf.constant([2 * SIZE + 1]))
    expected = np.zeros((2 * SIZE + 2, 2))
    expected[:SIZE], expected[SIZE : 2 * SIZE], expected[-1] = -2, -1, -SUM_OF_RANKS / SIZE
    np.testing.assert_allclose(np.asarray(table), expected, rtol=1e-6)
    optimizer.close()


def first_of_two(optimizer):
    """A step in which only the first of two variables has a gradient."""

    @tf.function
    def step(gradient):
        optimizer.apply([gradient, None])

    return step


def test_several_passes_make_one_step():
    for average in (False, True):
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.SGD(1.0),
            backward_passes_per_step=3,
            average_aggregated_gradients=average,
        )
        vs = variables((2,), (2,))
        optimizer.build(vs)
        step = first_of_two(optimizer)
        for i in range(7):
            step(tf.fill(2, float(RANK + 1 + i)))
        passes = 2 * 3 * SUM_OF_RANKS / SIZE + sum(range(6))
        expected = passes / 3 if average else passes
        np.testing.assert_allclose(-np.asarray(vs[0]), [expected] * 2, rtol=1e-6)
        assert optimizer.stats().rounds == 2
        assert int(optimizer.iterations.numpy()) == 7
        with pytest.raises(NotImplementedError, match="backward_passes_per_step=3"):
            optimizer.on_time()
        optimizer.close()


@pytest.mark.parametrize("in_graph", [False, True])
def test_of_several_passes_each_counts_and_what_none_of_them_has_stays_as_it_is(in_graph):
    options = {"backward_passes_per_step": 2, "backup_workers": B}
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0, momentum=0.5), **options)
    first, second = vs = variables((2,), (2,))
    optimizer.build(vs)
    steps = [
        lambda: optimizer.apply([tf.ones(2), None], vs),
        lambda: optimizer.apply([tf.ones(2)], [second]),
    ]
    if in_graph:
        steps = [tf.function(step) for step in steps]
    for task in (0, 1, 1, 0):  # each first pass is also a last one, of another step
        steps[task]()
    np.testing.assert_allclose(np.asarray(first), [-2.5, -2.5])  # 1, then 1 and half of it
    np.testing.assert_allclose(np.asarray(second), [-2.5, -2.5])
    for _ in range(2):
        steps[1]()
    np.testing.assert_allclose(np.asarray(first), [-2.5, -2.5])  # and not moved by its momentum
    np.testing.assert_allclose(np.asarray(second), [-5.25, -5.25])
    assert optimizer.stats().rounds == 3
    optimizer.close()


def test_slices_are_refused_in_several_passes_unless_they_are_made_dense():
    (table,) = variables((4, 2))
    slices = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1]), tf.constant([4, 2]))
    for dense in (False, True):
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.SGD(1.0), backward_passes_per_step=2, sparse_as_dense=dense
        )
        if not dense:
            with pytest.raises(ValueError, match="IndexedSlices are not supported"):
                optimizer.apply([slices], [table])
            continue
        for _ in range(2):
            optimizer.apply([slices], [table])
        np.testing.assert_allclose(np.asarray(table)[1], [-2, -2])
        optimizer.close()


def test_layers_can_be_left_to_each_rank():
    model = small_model(seed=1)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.register_local_var(model.layers[1].bias)
    vs = model.trainable_variables
    change = applied(optimizer, [tf.fill(v.shape, RANK + 1.0) for v in vs], vs)
    np.testing.assert_allclose(change[-1], np.full(3, (RANK + 1) / SIZE), rtol=1e-5)
    np.testing.assert_allclose(change[0], np.full(vs[0].shape, SUM_OF_RANKS / SIZE), rtol=1e-5)
    optimizer.close()
    partial = hvd.PartialDistributedOptimizer(
        keras.optimizers.SGD(1.0), local_layers=model.layers[0], scale_local_gradients=False
    )
    change = applied(partial, [tf.fill(v.shape, RANK + 1.0) for v in vs], vs)
    np.testing.assert_allclose(change[0], np.full(vs[0].shape, RANK + 1.0), rtol=1e-5)
    partial.close()


def test_keras_own_accumulation_clipping_and_averages_see_the_agreed_gradient():
    model = small_model()
    optimizer = keras.optimizers.Adam(
        0.01, global_clipnorm=0.1, use_ema=True, gradient_accumulation_steps=2, weight_decay=0.01
    )
    optimizer = hvd.DistributedOptimizer(optimizer, backup_workers=B)
    vs = model.trainable_variables
    optimizer.build(vs)
    hvd.broadcast_variables([*model.weights, *optimizer.variables], 0)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x))) + 0.0 * tf.cast(y[0], tf.float32)
        optimizer.apply(tape.gradient(loss, vs), vs)

    for i in range(6):
        step(*batch(i))
    assert_replicas(model, optimizer)
    assert optimizer.stats().rounds == 6
    optimizer.close()


def test_from_its_config_comes_an_optimizer_of_the_class_that_it_was():
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.25))
    for make in (type(optimizer).from_config, optimizer.from_config):
        again = make(optimizer.get_config())
        assert type(again) is keras.optimizers.Adam
        assert float(again.learning_rate) == 0.25
    optimizer.close()


def test_what_cannot_be_is_refused_at_once():
    def refused(words, kind=ValueError, optimizer=None, **options):
        with pytest.raises(kind, match=words):
            hvd.DistributedOptimizer(optimizer or keras.optimizers.SGD(1.0), **options)

    refused("takes a Keras optimizer", TypeError, optimizer=object())
    refused("leaves a quorum", backup_workers=SIZE)
    refused("use 'drop' or 'carry'", late="keep")
    refused("only supports Average and Sum", op=hvd.Max)
    refused("backward_passes_per_step must be > 0", backward_passes_per_step=0)
    refused("process_set must be a ProcessSet", TypeError, process_set=object())
    refused(r"compression='fp16' has no compress\(\)", TypeError, compression="fp16")
    refused("'contributors' or 'rows'", sparse_mean="mean")
    refused("op=Sum is not", sparse_mean="rows", op=hvd.Sum)
    refused("op=Adasum is not here", NotImplementedError, op="Adasum")
    refused("use a number above 0", gradient_predivide_factor=float("inf"))
    refused("list of list of tf.Variable", groups=0)
    refused("must consist of tf.Variable", groups=[["weight"]])
    accumulating = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    refused("use one of them", optimizer=accumulating, backward_passes_per_step=2)
    twice = hvd_tf.DistributedOptimizer(keras.optimizers.SGD(1.0), "name", False, "", "")
    refused("already is a DistributedOptimizer", optimizer=twice)
    with pytest.raises(ValueError, match="2 gradients for 1 variables"):
        twice.apply([tf.ones(1)] * 2, variables((1,)))
    twice.close()
