"""Leaving a step early that can no longer count, in code that runs eagerly."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Overtaken(BaseException):
    """The round was sealed without this rank. Not an Exception: no handler should catch it."""


class Attempt:
    """``with optimizer.attempt() as attempt:`` around one whole step, its ``apply()`` included.

    ``attempt.check()``, before the forward pass and between forward and backward, leaves the block
    if the round was sealed without this rank. What the others agreed on is applied then. What the
    block would have assigned may be missing after it.

    Attributes:
        completed: Whether the block ran to its end.

    Example:
        >>> import keras
        >>> import tensorflow as tf
        >>> import hvd_backup.tensorflow.keras as hvd
        >>> hvd.init()
        >>> x = keras.Variable(3.0)
        >>> optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
        >>> with optimizer.attempt() as attempt:
        ...     attempt.check()
        ...     with tf.GradientTape() as tape:
        ...         loss = x.value * x.value
        ...     attempt.check()
        ...     optimizer.apply([tape.gradient(loss, x.value)], [x])
        >>> attempt.completed
        True
    """

    def __init__(
        self, overtaken: Callable[[], bool], skip: Callable[[], object], rounds: Callable[[], int]
    ) -> None:
        self._overtaken, self._skip, self._rounds = overtaken, skip, rounds
        self._before = 0
        self.completed = False
        """Whether the block ran to its end."""

    def check(self) -> None:
        """Leave the block if its work can no longer count.

        Raises:
            Overtaken: The round was sealed without this rank. The block catches it.
        """
        if self._overtaken():
            raise Overtaken

    def __enter__(self) -> Attempt:
        self._before = self._rounds()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, Overtaken):
            self._skip()
        elif kind is None:
            self.completed = True
            if (made := self._rounds() - self._before) != 1:
                raise RuntimeError(
                    f"the attempt() block made {made} steps; apply_gradients() belongs into it, "
                    "once"
                )
        return isinstance(error, Overtaken)
