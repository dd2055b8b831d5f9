"""Errors of this package that are TensorFlow's as well: of the classes that Horovod raises there.

Horovod's operations raise ``tf.errors.FailedPreconditionError`` when ranks disagree,
``InvalidArgumentError`` for arguments that cannot be, and ``UnknownError`` when a rank is gone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from hvd_backup import errors


def of_both_kinds(error: BaseException) -> BaseException:
    """`error`, of the class that it has and of TensorFlow's for it; others as they are.

    Classes are those of ``hvd_backup.errors``, and ValueError itself.
    """
    kind: Any = type(error)
    if isinstance(error, tf.errors.OpError) or not (
        isinstance(error, errors.Error) or kind is ValueError
    ):
        return error
    if isinstance(error, errors.Mismatch):
        theirs = tf.errors.FailedPreconditionError
    elif kind is ValueError:
        theirs = tf.errors.InvalidArgumentError
    else:
        theirs = tf.errors.UnknownError
    both: BaseException = _both(kind, theirs)(None, None, str(error))
    return both.with_traceback(error.__traceback__)


@contextlib.contextmanager
def tensorflow_errors() -> Iterator[None]:
    """Within it, errors are of both kinds."""
    try:
        yield
    except (errors.Error, ValueError) as error:
        if (both := of_both_kinds(error)) is error:
            raise
        raise both from None


@functools.cache
def _both(ours: type, theirs: Any) -> Any:
    # AutoGraph, which makes a new error for one that comes while a step is traced, knows how to do
    # so by the names of these arguments.
    def init(self: Any, node_def: Any, op: Any, message: str, *args: Any) -> None:
        theirs.__init__(self, node_def, op, message, *args)
        self.args = (message,)

    def reduce(self: Any) -> Any:
        return ours, (self.message,)

    names = {"__init__": init, "__reduce__": reduce, "__module__": ours.__module__}
    return type(ours.__name__, (ours, theirs), names)
