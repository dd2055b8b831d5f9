"""Variables and Python objects from one rank to all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from hvd_backup import collectives, operations
from hvd_backup.tensorflow import host
from hvd_backup.tensorflow.arguments import where_of
from hvd_backup.tensorflow.ops import host_call


def broadcast_variables(
    variables: Iterable[Any], root_rank: int, process_set: Any = None, inplace: bool = False
) -> None:
    """Give every rank `root_rank`'s values, all variables in one call.

    `variables` are TensorFlow's or Keras'. Raises Mismatch, on every rank, when their number,
    shapes or dtypes differ. `inplace` changes nothing: memory is used for one copy of all.
    """
    where = where_of(process_set)
    collectives.check_root(root_rank)
    variables = list(variables)
    values = [tf.convert_to_tensor(v) for v in variables]
    received = host_call(
        lambda *arrays: host.broadcast(arrays, root_rank, where),
        values,
        [value.dtype for value in values],
    )
    for variable, value, old in zip(variables, received, values, strict=True):
        variable.assign(tf.ensure_shape(value, old.shape))


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
