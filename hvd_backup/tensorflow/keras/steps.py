"""The steps of one DistributedOptimizer: exchange, then apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hvd_backup.group import Group
from hvd_backup.reports import Round, Stats
from hvd_backup.tensorflow.keras.attempt import Attempt
from hvd_backup.tensorflow.ops import host_call
from hvd_backup.tensorflow.reduction import Reduction, Wrapping, scaled_local
from hvd_backup.tensorflow.rounds import Options

Apply = Callable[[Sequence[Any], Sequence[Any]], Any]


class Steps:
    """What DistributedOptimizer adds to an optimizer; `passes` is backward_passes_per_step."""

    def __init__(
        self,
        name: str,
        options: Options,
        wrapping: Wrapping,
        group: Group,
        *,
        passes: int,
        average_passes: bool,
    ) -> None:
        self._name, self._options, self._wrapping = name, options, wrapping
        self._group = group
        self._steps_outside = 0  # of the process set, made eagerly
        self._passes, self._average_passes = passes, average_passes
        # One per list of variables that apply() was called with: the steps of a GAN's halves, say.
        self._reductions: dict[tuple[int, ...], tuple[Reduction, list[Any]]] = {}
        self._local: dict[int, Any] = {}
        self._sums: dict[int, Any] = {}
        self._passes_made: Any = None
        self._stats = Stats()
        self._last: Reduction | None = None
        self.weight = 1.0

    def apply(
        self, optimizer: Any, gradients: list[Any], variables: list[Any], apply: Apply
    ) -> Any:
        """One step of the optimizer's: `apply` what the round gives."""
        if self._passes == 1:
            return apply(self._exchange(optimizer, gradients, variables), variables)
        return self._accumulate(optimizer, gradients, variables, apply)

    def skip(self, optimizer: Any, apply: Apply) -> Any:
        """One step without a gradient of this rank's."""
        self._check_can_leave("skip()")
        if not self._group.included:
            return None  # a graph has it, and never comes to it: all steps are on time
        if not self._reductions:
            return self._new_reduction([]).skip()  # raises
        ((reduction, variables),) = self._reductions.values()
        results = reduction.skip()
        self._last = reduction
        return apply(self._rescaled(optimizer, results), variables)

    def on_time(self) -> Any:
        """Whether a gradient computed now can still count: a bool, in a graph a tensor."""
        self._check_can_leave("on_time()")
        if tf.executing_eagerly():
            return not self._overtaken()
        (answer,) = host_call(lambda: [np.array(not self._overtaken())], [], [tf.bool])
        answer.set_shape(())
        return answer

    def attempt(self, optimizer: Any) -> Attempt:
        """Context for one step."""
        self._check_can_leave("attempt()")
        if not tf.executing_eagerly():
            raise RuntimeError(
                "attempt() cannot leave a block of a tf.function; write there "
                "`if optimizer.on_time(): … else: optimizer.skip()`"
            )
        return Attempt(self._overtaken, optimizer.skip, self._steps_made)

    def _steps_made(self) -> int:
        return self._stats.rounds if self._group.included else self._steps_outside

    @property
    def last_round(self) -> Round | None:
        """The last step's round."""
        return None if self._last is None else self._last.rounds.last_round

    def stats(self) -> Stats:
        """This rank's rounds so far."""
        return self._stats

    def close(self) -> None:
        """Nobody waits for this rank any more."""
        for reduction, _ in self._reductions.values():
            reduction.rounds.close()

    def register_local_var(self, var: Any) -> None:
        """Leave this variable's gradient out of the exchange."""
        self._local[id(_variable(var))] = var

    # The exchange

    def _exchange(self, optimizer: Any, gradients: list[Any], variables: list[Any]) -> list[Any]:
        if not self._group.included:
            self._steps_outside += 1
            return gradients
        shared = [i for i, v in enumerate(variables) if id(_variable(v)) not in self._local]
        reduction = self._reduction([variables[i] for i in shared])
        unscaled = self._unscaled(optimizer, [gradients[i] for i in shared])
        results = reduction.exchange(unscaled, lambda: self._weight(reduction))
        together = list(gradients)
        if self._wrapping.scale_local:
            together = [scaled_local(g, self._group.size) for g in together]
        for i, result in zip(shared, self._rescaled(optimizer, results), strict=True):
            together[i] = result
        return together

    def _reduction(self, variables: list[Any]) -> Reduction:
        key = tuple(id(_variable(v)) for v in variables)
        if key not in self._reductions:
            reduction = self._new_reduction(variables)
            reduction.rounds.stats = self._stats
            self._reductions[key] = reduction, variables
        return self._reductions[key][0]

    def _new_reduction(self, variables: list[Any]) -> Reduction:
        return Reduction(self._name, variables, self._options, self._wrapping, self._group)

    def _weight(self, reduction: Reduction) -> float:
        """Called when a gradient is about to be contributed."""
        self._last = reduction
        return self.weight

    def _overtaken(self) -> bool:
        if len(self._reductions) != 1:  # which one is next is not known
            return False
        ((reduction, _),) = self._reductions.values()
        return reduction.rounds.overtaken()

    def _check_can_leave(self, call: str) -> None:
        if self._passes > 1:
            raise NotImplementedError(
                f"{call} with backward_passes_per_step={self._passes}: a step of several passes "
                "cannot be left in this version"
            )
        if call == "skip()" and len(self._reductions) > 1:
            raise RuntimeError(
                f"skip(): this optimizer was applied to {len(self._reductions)} different lists of "
                "variables; which one is next is not known"
            )

    # Loss scaling: a carried gradient may have been scaled by another factor than the next one.

    def _unscaled(self, optimizer: Any, gradients: list[Any]) -> list[Any]:
        factor = self._loss_scale(optimizer)
        return gradients if factor is None else [_times(g, 1.0 / factor) for g in gradients]

    def _rescaled(self, optimizer: Any, results: list[Any]) -> list[Any]:
        factor = self._loss_scale(optimizer)
        return results if factor is None else [_times(g, factor) for g in results]

    def _loss_scale(self, optimizer: Any) -> Any:
        if self._options.late != "carry" or not isinstance(
            optimizer, keras.optimizers.LossScaleOptimizer
        ):
            return None
        scale = optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale
        return tf.convert_to_tensor(scale, tf.float32)

    # Several backward passes per step

    def _accumulate(
        self, optimizer: Any, gradients: list[Any], variables: list[Any], apply: Apply
    ) -> Any:
        if not optimizer.built:
            with keras.name_scope(optimizer.name):
                optimizer.build(variables)
        sums = [self._add(g, v) for g, v in zip(gradients, variables, strict=True)]
        if self._passes_made is None:
            with tf.init_scope():
                self._passes_made = tf.Variable(0, trainable=False, name="hvd_backup_passes")
        self._passes_made.assign_add(1)

        def last_pass() -> Any:
            totals = [None if s is None else s.read_value() for s in sums]
            if self._average_passes:
                totals = [_times(t, 1.0 / self._passes) for t in totals]
            results = self._exchange(optimizer, totals, variables)
            for s in sums:
                if s is not None:
                    s.assign(tf.zeros_like(s))
            self._passes_made.assign(0)
            apply(results, variables)
            return tf.constant(0)

        def other_pass() -> Any:
            counted = getattr(optimizer, "inner_optimizer", optimizer)
            counted.iterations.assign_add(1)
            return tf.constant(0)

        tf.cond(tf.equal(self._passes_made, self._passes), last_pass, other_pass)
        return None

    def _add(self, gradient: Any, variable: Any) -> Any:
        """Adds to the variable's sum and returns it; None while it never had a gradient."""
        if isinstance(gradient, tf.IndexedSlices):
            if not self._wrapping.sparse_as_dense:
                raise ValueError(
                    "IndexedSlices are not supported when `backward_passes_per_step` > 1 and "
                    "`sparse_as_dense` is False."
                )
            gradient = tf.convert_to_tensor(gradient)
        key = id(_variable(variable))
        if gradient is not None:
            if key not in self._sums:
                with tf.init_scope():
                    zeros = tf.zeros(tuple(variable.shape), gradient.dtype)
                    self._sums[key] = tf.Variable(zeros, trainable=False)
            self._sums[key].assign_add(gradient)
        return self._sums.get(key)


def _times(gradient: Any, factor: Any) -> Any:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.values.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)


def _variable(variable: Any) -> Any:
    """TensorFlow's variable of a Keras one."""
    return variable.value if isinstance(variable, keras.Variable) else variable
