"""How Python that runs on the host becomes part of a TensorFlow program."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from hvd_backup import errors
from hvd_backup.tensorflow.failures import of_both_kinds, tensorflow_errors

Array = npt.NDArray[Any]

# The last exceptions of host calls made by graphs; TensorFlow passes on only their text.
_KEPT = 8
_raised: list[BaseException] = []
# Read before and written after each host call of a graph: TensorFlow orders what shares a variable,
# also through tf.cond and tf.while_loop, which it does not do for stateful ops by themselves.
_turns: list[Any] = []


def host_call(
    function: Callable[..., Sequence[Array]], inputs: Sequence[Any], dtypes: Sequence[Any]
) -> list[Any]:
    """``function(*arrays)``, once per execution, in the order in which the program has such calls.

    `inputs` are tensors, `dtypes` the result's; the shapes of results are unknown in a graph.
    Eagerly an exception is raised as ``tensorflow_errors`` has it. In a graph TensorFlow makes a
    ``tf.errors.OpError`` of it, with its name and text; ``native_errors()`` gives it back.

    Raises NotImplementedError in a function that XLA is to compile.
    """
    if tf.executing_eagerly():
        with tensorflow_errors():
            results = function(*(to_numpy(tensor) for tensor in inputs))
        return [
            tf.convert_to_tensor(result, dtype)
            for result, dtype in zip(results, dtypes, strict=True)
        ]
    refuse_what_cannot_exchange()

    def run(turn: Any, *arrays: Array) -> list[Any]:
        # A scalar string comes as what it holds.
        given = (np.array(a, object) if isinstance(a, bytes) else a for a in arrays)
        try:
            return [*function(*given), np.int64(turn + 1)]
        except BaseException as error:
            _raised.append(error)
            del _raised[:-_KEPT]
            raise

    with tf.device("/CPU:0"):
        turns = _turn_variable()
        *results, turn = tf.numpy_function(run, [turns.read_value(), *inputs], [*dtypes, tf.int64])
        turn.set_shape(())
        turns.assign(turn)
    return list(results)


def to_numpy(tensor: Any) -> Array:
    """An eager tensor's or variable's value, without a copy where TensorFlow allows it."""
    tensor = tf.convert_to_tensor(tensor)
    if tensor.shape.rank == 0:  # bfloat16's __array__ gives a scalar, which numpy refuses
        return np.array(tensor.numpy(), tensor.dtype.as_numpy_dtype)
    array: Array = np.asarray(tensor)
    return array


def refuse_what_cannot_exchange() -> None:
    """Raises NotImplementedError in a graph of TensorFlow 1, or in one that XLA is to compile."""
    if not tf.compat.v1.executing_eagerly_outside_functions():
        raise NotImplementedError(
            "this is a graph of TensorFlow 1 (tf.Graph().as_default(), a Session, or after "
            "tf.compat.v1.disable_eager_execution()), in which ranks cannot exchange anything "
            "here; run it eagerly or in a tf.function"
        )
    if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        raise NotImplementedError(
            "XLA cannot compile an exchange between ranks: use model.compile(jit_compile=False), "
            "or tf.function without jit_compile=True around the step; the model's own "
            "computation may still be compiled, in a tf.function of its own"
        )


@contextlib.contextmanager
def native_errors() -> Iterator[None]:
    """Let a ``tf.function`` raise this package's errors as what they are: RoundTimeout, say.

    Without it TensorFlow makes a ``tf.errors.OpError`` of them, with their name and text. Keras'
    ``fit`` has this context as soon as it has a callback of this package.

    Returns:
        A context, or a decorator (``@hvd.native_errors()``) outside of ``@tf.function``.
    """
    try:
        yield
    except tf.errors.OpError as error:
        original = None if isinstance(error, errors.Error) else _original(error)
        if original is None:
            raise
        raise of_both_kinds(original) from error


def _original(error: Any) -> BaseException | None:
    """The kept exception that `error` tells of."""
    for i in reversed(range(len(_raised))):
        if f"{type(_raised[i]).__name__}: {_raised[i]}" in error.message:
            return _raised.pop(i)
    return None


def _turn_variable() -> Any:
    if not _turns:
        with tf.init_scope(), tf.device("/CPU:0"):
            _turns.append(tf.Variable(0, dtype=tf.int64, trainable=False, name="hvd_backup_turn"))
    return _turns[0]
