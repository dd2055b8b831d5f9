"""By what ranks know variables: names, Keras' numbers, the order of making; each rank by itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE
from mpi_tf import models  # noqa: F401, sets TensorFlow up

import hvd_backup.tensorflow as hvd_tf
import hvd_backup.tensorflow.keras as hvd
from hvd_backup import Mismatch
from hvd_backup.tensorflow.identity import check_same, from_the_end, identities, key_of

pytestmark = pytest.mark.mpi


def unnamed(count=2):
    return [tf.Variable([0.0]) for _ in range(count)]


def kernels(count):
    layers = [keras.layers.Dense(2) for _ in range(count)]
    for layer in layers:
        layer.build((None, 3))
    return [layer.kernel for layer in layers]


def test_lists_of_the_same_variables_are_the_same():
    first, second = unnamed()
    named = tf.Variable([0.0], name="w")
    check_same([identities([first, second, named])] * 3)
    assert [identity.turn for identity in identities([first, second, named])] == [0, 1, 0]


def test_the_numbers_of_keras_may_differ_if_counted_from_the_end_they_do_not():
    assert from_the_end("dense_2/kernel", {"dense": 3}) == "dense[-1]/kernel"
    assert from_the_end("dense/kernel", {"dense": 1}) == "dense[-1]/kernel"
    assert from_the_end("expert_2/kernel", {"dense": 3}) == "expert_2/kernel"
    keras.utils.clear_session()
    usual = identities(kernels(2))
    kernels(3)  # a rank that has made another model before
    assert [identity.name for identity in identities(kernels(2))] != [v.name for v in usual]
    keras.utils.clear_session()
    kernels(3)
    check_same([usual, identities(kernels(2))])


@pytest.mark.parametrize("kind", ["optimizer", "tape"])
def test_a_rank_that_has_made_another_model_before_trains_with_the_others(kind):
    keras.utils.clear_session()
    if RANK == SIZE - 1:
        kernels(3)
    variables = kernels(2)
    if kind == "optimizer":
        opt = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
        opt.build(variables)
        before = [v.numpy() for v in variables]
        opt.apply([tf.fill(v.shape, float(RANK)) for v in variables])
        got = [b - v.numpy() for b, v in zip(before, variables, strict=True)]
    else:
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(v * float(RANK)) for v in variables)
        got = hvd_tf.DistributedGradientTape(tape).gradient(loss, variables)
    for one in got:
        np.testing.assert_allclose(one, np.full((3, 2), (SIZE - 1) / 2), rtol=1e-6)


@pytest.mark.parametrize("of", ["named", "unnamed", "keras"])
def test_another_order_is_told_from_the_same(of):
    a, b = {
        "named": lambda: [tf.Variable([0.0], name=name) for name in "ab"],
        "unnamed": unnamed,
        "keras": lambda: kernels(2),
    }[of]()
    words = "in the order of their making, rank 0: number 1, rank 1: number 2"
    with pytest.raises(Mismatch, match=words if of == "unnamed" else "what variable 0 is: rank 0"):
        check_same([identities([a, b]), identities([b, a])])


def test_other_variables_and_other_numbers_of_them_are_told():
    a, b, c = kernels(3)
    with pytest.raises(Mismatch, match=r"what variable 1 is: rank 0: dense.*, rank 1: dense"):
        check_same([identities([a, b]), identities([a, c])])
    with pytest.raises(Mismatch, match="number of variables: rank 0: 2, rank 1: 1"):
        check_same([identities([a, b]), identities([a])])


def test_a_key_is_of_one_variable_alone_and_of_tensors_what_they_are_like():
    first, second = unnamed()
    assert key_of(first) != key_of(second)
    mine = keras.Variable(np.zeros(2))
    assert key_of(mine) == key_of(mine.value)
    assert key_of(tf.zeros([2])) == key_of(tf.ones([2])) != key_of(tf.zeros([3]))
