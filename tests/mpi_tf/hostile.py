"""A generator of models that are hard to tell apart, and what one process makes of them."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from mpi.helpers import RANK, SIZE

import hvd_backup.tensorflow.keras as hvd

OPTIMIZERS = [
    lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    lambda: keras.optimizers.Adam(0.05, global_clipnorm=0.5),
    lambda: keras.optimizers.AdamW(0.05, weight_decay=0.3),
    lambda: keras.optimizers.Adagrad(0.1, use_ema=True, ema_momentum=0.5),
    lambda: keras.optimizers.Nadam(0.05, clipnorm=0.7, weight_decay=0.1),
    lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2), initial_scale=2.0
    ),
]
CONSTRAINTS = [None, keras.constraints.MaxNorm(0.7)]
TASKS = 3


class Hostile:
    """Variables of like shapes, unnamed, equally named, tied and tables; tasks that use some.

    The same on all ranks for a seed. `copies` are variables with the same values, for one process.
    """

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        shapes = [(3,), (3, 2), (2,)]
        names = [None, "w", "w", "other"]
        self.variables, self.copies = [], []
        for i in range(int(rng.integers(4, 7))):
            start = rng.standard_normal(shapes[rng.integers(3)]).astype("float32")
            name = names[rng.integers(len(names))]
            constraint = CONSTRAINTS[rng.integers(2)] if start.ndim == 2 else None
            for into in (self.variables, self.copies):
                if i % 2:
                    into.append(tf.Variable(start, name=name))
                else:
                    variable = keras.Variable(start, name=name)
                    variable.constraint = constraint
                    into.append(variable)
        tables = [i for i, v in enumerate(self.variables) if len(v.shape) == 2]
        self.tables = set(tables[: int(rng.integers(0, 2))])
        # The first variable is tied: every task uses it. Of others a task has about a half.
        self.uses = [
            [i == 0 or bool(rng.integers(2)) for i in range(len(self.variables))]
            for _ in range(TASKS)
        ]
        self.never = len(self.variables) - 1
        for uses in self.uses:
            uses[self.never] = False

    def data(self, step, rank):
        """The factors of a rank's loss in a step: they are its gradients."""
        rng = np.random.default_rng((step, rank, 5))
        return [rng.standard_normal(tuple(v.shape)).astype("float32") for v in self.variables]

    def task(self, step, rank, seed):
        """Which task a rank draws; the last one comes late, and on one rank alone."""
        rng = np.random.default_rng((seed, step, rank))
        late = step >= 2 and rank == step % SIZE
        return TASKS - 1 if late else int(rng.integers(TASKS - 1))

    def loss(self, variables, task, factors):
        total = 0.0
        for i, variable in enumerate(variables):
            if self.uses[task][i]:
                value = tf.convert_to_tensor(variable)
                if i in self.tables:  # by rows, so that its gradient is IndexedSlices
                    value = tf.gather(variable_of(variable), [0, 2, 0])
                    total += tf.reduce_sum(value * tf.gather(factors[i], [0, 2, 1]))
                else:
                    total += tf.reduce_sum(value * factors[i])
        return total

    def gradients(self, variables, task, factors):
        plain = [variable_of(v) for v in variables]
        with tf.GradientTape() as tape:
            loss = self.loss(variables, task, factors)
        return tape.gradient(loss, plain)


def variable_of(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


def mean_of(hostile, step, seed, contributors):
    """What one process would apply: None for a variable that no contributor has a gradient of."""
    everybody = [
        hostile.gradients(hostile.copies, hostile.task(step, rank, seed), hostile.data(step, rank))
        for rank in contributors
    ]
    means = []
    for of_variable in zip(*everybody, strict=True):
        there = [tf.convert_to_tensor(g).numpy() for g in of_variable if g is not None]
        means.append(tf.constant(sum(there) / len(contributors)) if there else None)
    return means


def apply_quietly(optimizer, gradients, variables):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras': gradients do not exist for …
        optimizer.apply(gradients, variables)


def pairs_of(gradients, variables, style):
    """As programs hand them over: all of them, without None, or in an order of each rank's."""
    pairs = list(zip(gradients, variables, strict=True))
    if style == "all":
        return pairs
    there = [pair for pair in pairs if pair[0] is not None]
    return there[RANK % 2 :] + there[: RANK % 2] if style == "turned" else there


def state(variables, optimizer):
    return [np.asarray(v) for v in [*variables, *optimizer.variables]]


def broadcast(variables, optimizer):
    optimizer.build(variables)
    hvd.broadcast_variables([*variables, *optimizer.variables], 0)
