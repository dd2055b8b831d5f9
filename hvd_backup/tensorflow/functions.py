"""Variables and Python objects from one rank to all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from hvd_backup import collectives
from hvd_backup.collectives import operations
from hvd_backup.tensorflow import host
from hvd_backup.tensorflow.arguments import where_of
from hvd_backup.tensorflow.ops import host_call


def broadcast_variables(
    variables: Iterable[Any], root_rank: int, process_set: Any = None, inplace: bool = False
) -> None:
    """Give every rank `root_rank`'s values, all variables in one call.

    `variables` are TensorFlow's or Keras', of any dtype that numpy has, or strings. Raises
    TypeError for others, with the variable's name, before anything is sent; Mismatch, on every
    rank, when their number, shapes or dtypes differ. `inplace` changes nothing: memory is used for
    one copy of all.
    """
    where = where_of(process_set)
    collectives.check_root(root_rank)
    variables = list(variables)
    values = [_value_of(variable, i) for i, variable in enumerate(variables)]
    received = host_call(
        lambda *arrays: host.broadcast(arrays, root_rank, where),
        values,
        [value.dtype for value in values],
    )
    for variable, value, old in zip(variables, received, values, strict=True):
        variable.assign(tf.ensure_shape(value, old.shape))


def _value_of(variable: Any, i: int) -> Any:
    problem = ""
    if not callable(getattr(variable, "assign", None)):
        problem = f"it is no variable, but {type(variable).__name__}"
    else:
        value = tf.convert_to_tensor(variable)
        if not value.dtype.is_quantized and value.dtype not in (tf.resource, tf.variant):
            return value
        problem = f"its dtype is {value.dtype.name}"
    raise TypeError(
        f"broadcast_variables: {_name_of(variable)} (number {i}) cannot be sent: {problem}; leave "
        "it out, and send what it holds by broadcast_object()"
    )


def _name_of(variable: Any) -> str:
    return str(getattr(variable, "path", None) or getattr(variable, "name", None) or "an entry")


def broadcast_global_variables(root_rank: int) -> None:
    """TensorFlow 1's collection of variables, which TensorFlow 2 does not fill: RuntimeError."""
    raise RuntimeError(
        "hvd.broadcast_global_variables() does not support eager execution. Please use "
        "`hvd.broadcast_variables(<model/optimizer variables>)` instead."
    )


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    session: Any = None,
    name: str | None = None,
    process_set: Any = None,
) -> Any:
    """`root_rank`'s object on every rank; Error, on every rank, if it does not pickle."""
    return operations.broadcast_object(obj, root_rank, where_of(process_set))


def broadcast_object_fn(
    root_rank: int = 0, session: Any = None, name: str | None = None, process_set: Any = None
) -> Callable[[Any], Any]:
    """``broadcast_object`` with its arguments given beforehand."""
    where = where_of(process_set)
    return lambda obj: operations.broadcast_object(obj, root_rank, where)


def allgather_object(
    obj: Any, session: Any = None, name: str | None = None, process_set: Any = None
) -> list[Any]:
    """The objects of all ranks, in order of rank; Error, on every rank, if one does not pickle."""
    return operations.allgather_object(obj, where_of(process_set))
