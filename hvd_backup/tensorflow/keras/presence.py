"""Applying, in a graph, only those gradients that some contributor of the round had."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

Apply = Callable[[Sequence[Any], Sequence[Any]], Any]


def apply_present(
    optimizer: Any,
    results: Sequence[Any],
    variables: Sequence[Any],
    present: Any,
    expected: Sequence[bool],
    apply: Apply,
) -> None:
    """`apply(results, variables)` in a graph, as Keras does where a gradient is None.

    `present` is a bool tensor [number of variables]. A variable without a gradient stays as it is,
    its state too: no momentum, no weight decay, no constraint. `expected` is what `present` mostly
    is: what this rank has itself. That is then what one process would run.
    """
    if not any(expected):
        expected = [True] * len(variables)
    some = [i for i, there in enumerate(expected) if there]

    def as_expected() -> Any:
        apply([results[i] for i in some], [variables[i] for i in some])
        return tf.constant(0)

    def whatever_there_is() -> Any:
        with _only_where(present, optimizer, variables):
            apply(_harmless(results, variables, present), variables)
        return tf.constant(0)

    same = tf.reduce_all(tf.equal(present, tf.constant(expected, tf.bool)))
    tf.cond(same, as_expected, whatever_there_is)


def variable_of(variable: Any) -> Any:
    """TensorFlow's variable of a Keras one."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _harmless(results: Sequence[Any], variables: Sequence[Any], present: Any) -> list[Any]:
    """For variables that are set to their gradient (of float8's scales): what they are already."""
    return [
        tf.where(present[i], result, tf.convert_to_tensor(variables[i]))
        if getattr(variables[i], "overwrite_with_gradient", False)
        else result
        for i, result in enumerate(results)
    ]


@contextlib.contextmanager
def _only_where(present: Any, optimizer: Any, variables: Sequence[Any]) -> Iterator[None]:
    """Within it the optimizer, and those within it, change what is present alone."""
    there = _Presence(present, variables)
    with contextlib.ExitStack() as stack:
        for each in _all_in(optimizer):
            stack.enter_context(_instead(each, "update_step", _step_where(each, there)))
            stack.enter_context(_instead(each, "_apply_weight_decay", _decay_where(each, there)))
        for i, variable in enumerate(variables):
            if getattr(variable, "constraint", None) is not None:
                constrained = _constraint_where(variable.constraint, present[i])
                stack.enter_context(_instead(variable, "_constraint", constrained))
        yield


def _all_in(optimizer: Any) -> Iterator[Any]:
    """It and what it wraps: LossScaleOptimizer has an inner one, MultiOptimizer several."""
    yield optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    for other in [*([] if inner is None else [inner]), *getattr(optimizer, "optimizers", [])]:
        yield from _all_in(other)


class _Presence:
    """Whether a variable is present; of one that is in the list several times, in turn."""

    def __init__(self, present: Any, variables: Sequence[Any]) -> None:
        self._present = present
        places: dict[int, list[int]] = {}
        for i, variable in enumerate(variables):
            places.setdefault(id(variable_of(variable)), []).append(i)
        self._places = places

    def turns(self) -> Callable[[Any], Any]:
        turns = {key: itertools.cycle(places) for key, places in self._places.items()}
        return lambda variable: self._present[next(turns[id(variable_of(variable))])]


def _step_where(optimizer: Any, there: _Presence) -> Callable[..., Any]:
    step, present = optimizer.update_step, there.turns()

    def update_step(gradient: Any, variable: Any, *rest: Any, **named: Any) -> None:
        _where(present(variable), lambda: step(gradient, variable, *rest, **named))

    return update_step


def _decay_where(optimizer: Any, there: _Presence) -> Callable[..., Any]:
    decay, present = optimizer._apply_weight_decay, there.turns()  # noqa: SLF001

    def apply_weight_decay(variables: Sequence[Any]) -> None:
        if optimizer.weight_decay is not None:
            for variable in variables:
                _where(present(variable), functools.partial(decay, [variable]))

    return apply_weight_decay


def _constraint_where(constraint: Callable[[Any], Any], present: Any) -> Callable[[Any], Any]:
    return lambda value: tf.cond(
        present,
        lambda: tf.convert_to_tensor(constraint(value)),
        lambda: tf.convert_to_tensor(value),
    )


def _where(present: Any, act: Callable[[], Any]) -> None:
    def yes() -> Any:
        act()
        return tf.constant(0)

    tf.cond(present, yes, lambda: tf.constant(0))


@contextlib.contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The attribute of this very object, past what its class does when one is set."""
    attributes = owner.__dict__
    had, old = name in attributes, attributes.get(name)
    attributes[name] = value
    try:
        yield
    finally:
        if had:
            attributes[name] = old
        else:
            del attributes[name]
