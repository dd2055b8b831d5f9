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
    """Give every rank the values of `root_rank`, all variables in one call.

    Horovod's ``broadcast_variables``.

    Args:
        variables: TensorFlow's or Keras' variables of any shape, and any dtype that numpy has,
            bfloat16 or string. Ranks match them by position.
        root_rank: A rank of the world, also with a process set.
        process_set: The ranks that take part; None: all.
        inplace: Accepted for Horovod; without effect.

    Raises:
        TypeError: An entry is not a variable or has another dtype; nothing was sent.
        ValueError: The root, or this rank, is not in the world or in the set.
        NotImplementedError: XLA is to compile the call.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' shapes, dtypes, roots or numbers of variables differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
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
    """TensorFlow 1's way to broadcast, which cannot work in TensorFlow 2, as in Horovod.

    Args:
        root_rank: Not used.

    Raises:
        RuntimeError: Always; it names ``broadcast_variables``.
    """
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
    """Give every rank the object of `root_rank`, by pickle. Horovod's ``broadcast_object``.

    Args:
        obj: The root's object. Other ranks' objects are not looked at.
        root_rank: A rank of the world, also with a process set.
        session: Accepted for Horovod; without effect.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        process_set: The ranks that take part; None: all.

    Returns:
        A copy of the root's object, on the root too.

    Raises:
        TypeError: `root_rank` is not an int, or `process_set` is not a ProcessSet.
        ValueError: The root, or this rank, is not in the world or in the set.
        Error: The root's object cannot be pickled; on every rank.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' roots differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import hvd_backup.tensorflow as hvd
        >>> hvd.init()
        >>> hvd.broadcast_object({"epoch": 3} if hvd.rank() == 0 else None)
        {'epoch': 3}
    """
    return operations.broadcast_object(obj, root_rank, where_of(process_set))


def broadcast_object_fn(
    root_rank: int = 0, session: Any = None, name: str | None = None, process_set: Any = None
) -> Callable[[Any], Any]:
    """``broadcast_object`` with its arguments given beforehand. Horovod's ``broadcast_object_fn``.

    Args:
        root_rank: A rank of the world, also with a process set.
        session: Accepted for Horovod; without effect.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        process_set: The ranks that take part; None: all.

    Returns:
        A function of the object, which returns a copy of the root's.

    Raises:
        TypeError: `process_set` is not a ProcessSet.
    """
    where = where_of(process_set)
    return lambda obj: operations.broadcast_object(obj, root_rank, where)


def allgather_object(
    obj: Any, session: Any = None, name: str | None = None, process_set: Any = None
) -> list[Any]:
    """Give every rank the objects of all ranks, by pickle. Horovod's ``allgather_object``.

    Args:
        obj: This rank's object.
        session: Accepted for Horovod; without effect.
        name: Accepted for Horovod; without effect, as ranks match calls by their order.
        process_set: The ranks that take part; None: all.

    Returns:
        A list of copies of the objects, in order of rank.

    Raises:
        TypeError: `process_set` is not a ProcessSet.
        ValueError: This rank is not in the set, or the set is not registered.
        Error: A rank's object cannot be pickled; on every rank.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks call different things; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    return operations.allgather_object(obj, where_of(process_set))
