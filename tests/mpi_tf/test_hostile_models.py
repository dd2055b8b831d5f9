"""Models whose variables are hard to tell apart: every replica the same, as in one process."""

import time

import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE, digest, same_everywhere
from mpi_tf import hostile
from mpi_tf.hostile import OPTIMIZERS, Hostile, apply_quietly, mean_of, pairs_of, state
from mpi_tf.models import B

import hvd_backup.tensorflow as hvd_tf
import hvd_backup.tensorflow.keras as hvd

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(240)]

STEPS = 6
STYLES = ["all", "filtered", "turned"]
ROUNDS = [{"backup_workers": 0}, {"backup_workers": B}, {"backup_workers": B, "late": "carry"}]


def steps_of(model, optimizer, style, graph):
    """A step for each task; in a graph each rank traces it when it comes to it first."""

    def make(task):
        def step(factors):
            gradients = model.gradients(model.variables, task, factors)
            pairs = pairs_of(gradients, model.variables, style)
            apply_quietly(optimizer, *zip(*pairs, strict=True))

        return tf.function(step) if graph else step

    return [make(task) for task in range(hostile.TASKS)]


def sometimes_late(step):
    if (step * 2 + 1) % SIZE == RANK:
        time.sleep(0.02)


# In a graph fewer of them: each takes seconds to be traced.
SEEDS = [(seed, False) for seed in range(len(OPTIMIZERS))] + [(seed, True) for seed in (1, 2, 5)]


@pytest.mark.parametrize(("seed", "graph"), SEEDS)
def test_an_optimizer_leaves_replicas_identical_and_does_what_one_process_would(seed, graph):
    model, options = Hostile(seed), ROUNDS[(seed + graph) % 3]
    optimizer = hvd.DistributedOptimizer(OPTIMIZERS[seed](), **options)
    alone = OPTIMIZERS[seed]()
    hostile.broadcast(model.variables, optimizer)
    alone.build(model.copies)
    steps = steps_of(model, optimizer, STYLES[(seed + 2 * graph) % 3], graph)
    for step in range(STEPS):
        sometimes_late(step)
        factors = [tf.constant(f) for f in model.data(step, RANK)]
        steps[model.task(step, RANK, seed)](factors)
        same_everywhere([digest(v) for v in state(model.variables, optimizer)])
        if options.get("late") != "carry":
            means = mean_of(model, step, seed, optimizer.last_round.contributors)
            apply_quietly(alone, means, model.copies)
            for mine, expected in zip(
                state(model.variables, optimizer), state(model.copies, alone), strict=True
            ):
                np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    assert optimizer.stats().rounds == STEPS
    optimizer.close()


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_variable_without_a_gradient_keeps_its_bits_and_its_state(graph):
    model = Hostile(7)
    optimizer = hvd.DistributedOptimizer(OPTIMIZERS[2](), backup_workers=B)
    hostile.broadcast(model.variables, optimizer)
    steps = steps_of(model, optimizer, "all", graph)
    before = np.asarray(model.variables[model.never]).copy()
    for step in range(4):
        unused = [i for i in range(len(model.variables)) if not model.uses[step % 2][i]]
        old = {i: np.asarray(model.variables[i]).copy() for i in unused}
        steps[step % 2]([tf.constant(f) for f in model.data(step, RANK)])
        for i in unused:
            np.testing.assert_array_equal(old[i], model.variables[i])
    np.testing.assert_array_equal(before, model.variables[model.never])
    optimizer.close()


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_tape_leaves_replicas_identical_and_gives_none_where_no_rank_has_a_gradient(graph):
    model = Hostile(3)
    optimizer, alone = OPTIMIZERS[0](), OPTIMIZERS[0]()
    hostile.broadcast(model.variables, optimizer)
    alone.build(model.copies)
    sources = [hostile.variable_of(v) for v in model.variables]
    tapes = []

    def make(task):
        def step(factors):
            with tf.GradientTape() as tape:
                loss = model.loss(model.variables, task, factors)
            tape = hvd_tf.DistributedGradientTape(tape, backup_workers=B)
            gradients = tape.gradient(loss, sources)
            tapes.append(tape)
            assert gradients[model.never] is None
            apply_quietly(optimizer, gradients, model.variables)

        return tf.function(step) if graph else step

    steps = [make(task) for task in range(hostile.TASKS)]
    for step in range(STEPS):
        sometimes_late(step)
        task = step % 2 if graph else model.task(step, RANK, 3)
        steps[task]([tf.constant(f) for f in model.data(step, RANK)])
        same_everywhere([digest(v) for v in state(model.variables, optimizer)])
        model.task = model.task if not graph else (lambda s, rank, seed: s % 2)
        means = mean_of(model, step, 3, tapes[-1].last_round.contributors)
        apply_quietly(alone, means, model.copies)
        for mine, expected in zip(model.variables, model.copies, strict=True):
            np.testing.assert_allclose(np.asarray(mine), np.asarray(expected), rtol=1e-4, atol=1e-5)
