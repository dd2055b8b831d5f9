"""The steps of one DistributedOptimizer: exchange, then apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from hvd_backup.collectives.group import Group
from hvd_backup.rounds.reports import Round, Stats
from hvd_backup.tensorflow.gradient_reducer import Encoding, GradientReducer, Outcome, divided
from hvd_backup.tensorflow.identity import name_of
from hvd_backup.tensorflow.keras.attempt import Attempt
from hvd_backup.tensorflow.keras.presence import apply_present, variable_of
from hvd_backup.tensorflow.ops import host_call
from hvd_backup.tensorflow.rounds import Options

Apply = Callable[[Sequence[Any], Sequence[Any]], Any]


class Steps:
    """What DistributedOptimizer adds to an optimizer; `passes` is backward_passes_per_step.

    By their places in the optimizer's own list of variables ranks tell one from another, whichever
    of them a call of ``apply()`` has. What is missing there is missing in the round.
    """

    def __init__(
        self,
        name: str,
        options: Options,
        encoding: Encoding,
        group: Group,
        *,
        passes: int,
        average_passes: bool,
    ) -> None:
        self._name, self._options, self._encoding = name, options, encoding
        self._group = group
        self._steps_outside = 0  # of the process set, made eagerly
        self._passes, self._average_passes = passes, average_passes
        # One for each choice of local variables; there is only one.
        self._reducers: dict[tuple[int, ...], GradientReducer] = {}
        self._local: dict[int, Any] = {}
        self._sums: list[Any] = []
        self._summed: Any = None
        self._passes_made: Any = None
        self._stats = Stats()
        self._last: GradientReducer | None = None
        self.weight = 1.0

    def apply(
        self, optimizer: Any, gradients: list[Any], variables: list[Any], apply: Apply
    ) -> Any:
        """One step of the optimizer's, which is built: `apply` what the round gives."""
        mine = _in_its_list(optimizer, gradients, variables)
        if mine is None:
            return apply(gradients, variables)  # Keras says which variable is not the optimizer's
        if self._passes > 1:
            return self._accumulate(optimizer, mine, apply)
        return self._step(optimizer, mine, None, apply)

    def skip(self, optimizer: Any, apply: Apply) -> Any:
        """One step without a gradient of this rank's."""
        self._check_can_leave("skip()")
        if not self._group.included:
            return None  # a graph has it, and never comes to it: all steps are on time
        reducer = self._reducer(optimizer)
        outcome = reducer.skip(needed=not self._local)
        self._last = reducer
        nothing = Mine([None] * len(_variables_of(optimizer)), set())
        return self._apply(optimizer, nothing, outcome, apply)

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
        for reducer in self._reducers.values():
            reducer.rounds.close()

    def register_local_var(self, var: Any) -> None:
        """Leave this variable's gradient out of the exchange."""
        self._local[id(variable_of(var))] = var

    # The exchange

    def _step(self, optimizer: Any, mine: Mine, there: Any, apply: Apply) -> Any:
        """One round, and what it gives applied; `there` as in ``GradientReducer.exchange``."""
        if not self._group.included:
            return self._step_alone(optimizer, mine, there, apply)
        reducer = self._reducer(optimizer)
        unscaled = self._unscaled(optimizer, [mine.gradients[i] for i in self._shared(optimizer)])
        outcome = reducer.exchange(
            unscaled, lambda: self._weight(reducer), there, needed=not self._local
        )
        return self._apply(optimizer, mine, outcome, apply)

    def _step_alone(self, optimizer: Any, mine: Mine, there: Any, apply: Apply) -> Any:
        """Of a rank outside of the process set."""
        self._steps_outside += 1
        variables = _variables_of(optimizer)
        if there is not None:
            everything = [True] * len(variables)
            return apply_present(optimizer, mine.gradients, variables, there, everything, apply)
        given = sorted(mine.given)
        return apply([mine.gradients[i] for i in given], [variables[i] for i in given])

    def _apply(self, optimizer: Any, mine: Mine, outcome: Outcome, apply: Apply) -> Any:
        """What the round gave, and this rank's own gradients of local variables."""
        results = iter(self._rescaled(optimizer, outcome.gradients))
        shared = set(self._shared(optimizer))
        gradients = [
            next(results) if i in shared else self._of_this_rank(own)
            for i, own in enumerate(mine.gradients)
        ]
        if tf.executing_eagerly():
            return self._apply_now(optimizer, gradients, mine.given, apply)
        present = iter(tf.unstack(outcome.present))
        there = [next(present) if i in shared else True for i in range(len(gradients))]
        some = [i for i, gradient in enumerate(gradients) if gradient is not None]
        return apply_present(
            optimizer,
            [gradients[i] for i in some],
            [_variables_of(optimizer)[i] for i in some],
            tf.stack([there[i] for i in some]),
            [mine.gradients[i] is not None for i in some],
            apply,
        )

    def _apply_now(
        self, optimizer: Any, gradients: Sequence[Any], given: set[int], apply: Apply
    ) -> Any:
        """Eagerly Keras leaves out what is None; it warns of what this rank has given so."""
        if not any(gradient is not None for gradient in gradients):  # all contributors abstained
            optimizer.iterations.assign_add(1)
            return None
        variables = _variables_of(optimizer)
        some = [i for i, gradient in enumerate(gradients) if gradient is not None or i in given]
        return apply([gradients[i] for i in some], [variables[i] for i in some])

    def _of_this_rank(self, gradient: Any) -> Any:
        """A local variable's gradient."""
        return divided(gradient, self._group.size) if self._encoding.scale_local else gradient

    def _shared(self, optimizer: Any) -> list[int]:
        """The places of the variables that are exchanged."""
        variables = _variables_of(optimizer)
        return [i for i, v in enumerate(variables) if id(variable_of(v)) not in self._local]

    def _reducer(self, optimizer: Any) -> GradientReducer:
        if not optimizer.built:
            return self._new_reduction([])
        shared = self._shared(optimizer)
        key = tuple(shared)
        if key not in self._reducers:
            variables = _variables_of(optimizer)
            self._reducers[key] = self._new_reduction([variables[i] for i in shared])
        return self._reducers[key]

    def _new_reduction(self, variables: list[Any]) -> GradientReducer:
        reducer = GradientReducer(self._name, variables, self._options, self._encoding, self._group)
        reducer.rounds.stats = self._stats
        return reducer

    def _weight(self, reducer: GradientReducer) -> float:
        """Called when a gradient is about to be contributed."""
        self._last = reducer
        return self.weight

    def _overtaken(self) -> bool:
        latest = next(reversed(self._reducers.values()), None)
        return latest is not None and latest.rounds.overtaken()

    def _check_can_leave(self, call: str) -> None:
        if self._passes > 1:
            raise NotImplementedError(
                f"{call} with backward_passes_per_step={self._passes}: a step of several passes "
                "cannot be left in this version"
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

    def _accumulate(self, optimizer: Any, mine: Mine, apply: Apply) -> Any:
        self._add(optimizer, mine.gradients)

        def last_pass() -> Any:
            sums = [total.read_value() for total in self._sums]
            if self._average_passes:
                sums = [divided(total, self._passes) for total in sums]
            there = self._summed.read_value()
            if tf.executing_eagerly():
                had = there.numpy()
                sums = [total if had[i] else None for i, total in enumerate(sums)]
                there = None
            given = set(range(len(sums)))
            self._step(optimizer, Mine(sums, given), there, apply)
            for total in [*self._sums, self._summed, self._passes_made]:
                total.assign(tf.zeros_like(total))
            return tf.constant(0)

        def other_pass() -> Any:
            counted = getattr(optimizer, "inner_optimizer", optimizer)
            counted.iterations.assign_add(1)
            return tf.constant(0)

        tf.cond(tf.equal(self._passes_made, self._passes), last_pass, other_pass)
        return None

    def _add(self, optimizer: Any, gradients: Sequence[Any]) -> None:
        """One pass more. Which variables had a gradient in any of the passes is kept as well."""
        if self._passes_made is None:
            with tf.init_scope():
                self._sums = [
                    tf.Variable(tf.zeros(tuple(v.shape), v.dtype), trainable=False)
                    for v in _variables_of(optimizer)
                ]
                self._summed = tf.Variable(tf.zeros([len(gradients)], tf.bool), trainable=False)
                self._passes_made = tf.Variable(0, trainable=False, name="hvd_backup_passes")
        for total, gradient in zip(self._sums, gradients, strict=True):
            if isinstance(gradient, tf.IndexedSlices) and not self._encoding.sparse_as_dense:
                raise ValueError(
                    "IndexedSlices are not supported when `backward_passes_per_step` > 1 and "
                    "`sparse_as_dense` is False."
                )
            if gradient is not None:
                total.assign_add(tf.cast(tf.convert_to_tensor(gradient), total.dtype))
        had = tf.constant([gradient is not None for gradient in gradients], tf.bool)
        self._summed.assign(tf.logical_or(self._summed, had))
        self._passes_made.assign_add(1)


class Mine(NamedTuple):
    """This rank's part in a step."""

    gradients: list[Any]
    """One gradient per variable of the optimizer, or None."""
    given: set[int]
    """The places of those that ``apply()`` was called with, as None or not."""


def _variables_of(optimizer: Any) -> list[Any]:
    variables: list[Any] = optimizer._trainable_variables  # noqa: SLF001
    return variables


def _in_its_list(optimizer: Any, gradients: list[Any], variables: list[Any]) -> Mine | None:
    """The gradients in the order of the optimizer's list; None if a variable is not in there.

    A variable that is in the list several times is taken in turn. Raises ValueError if it comes
    more often than that.
    """
    own = _variables_of(optimizer)
    free: dict[int, list[int]] = {}
    for i, variable in enumerate(own):
        free.setdefault(id(variable_of(variable)), []).append(i)
    mine = Mine([None] * len(own), set())
    for gradient, variable in zip(gradients, variables, strict=True):
        places = free.get(id(variable_of(variable)))
        if places is None:
            return None
        if not places:
            raise ValueError(
                f"apply() has {name_of(variable)} several times; add up its gradients, or build "
                "the optimizer with a list that has it as often"
            )
        mine.given.add(i := places.pop(0))
        mine.gradients[i] = gradient
    return mine


def _times(gradient: Any, factor: Any) -> Any:
    """Of halves in float32: a loss scale of 2^16 is infinite in float16."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = _times(gradient.values, factor)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    wide = tf.cast(gradient, tf.float32) if gradient.dtype.size < 4 else gradient
    return tf.cast(wide * tf.cast(factor, wide.dtype), gradient.dtype)
