"""The errors of hvd_backup.

Each text says what happened with its numbers (round, rank, how many of how many, after how long)
and what to do about it. Wrong arguments are plain ``ValueError`` and ``TypeError``.
"""

from typing import TYPE_CHECKING

__all__ = [
    "DeviceError",
    "Error",
    "LaunchError",
    "Mismatch",
    "NotInitialized",
    "PeerFailed",
    "RoundTimeout",
]


class Error(RuntimeError):
    """Base of the errors below: what can go wrong although the arguments are right.

    It is also Horovod's ``HorovodInternalError``.
    """

    if not TYPE_CHECKING:
        # AutoGraph keeps the class of an error that comes while a step is traced only if it is made
        # as an Exception is. RuntimeError's own __init__ does the same, but is another.
        __init__ = Exception.__init__


class RoundTimeout(Error):
    """A wait ran into its time-out; the text names the round and the missing ranks."""


class PeerFailed(Error):
    """Another rank died, left, or raised an error, so this rank cannot continue either."""


class Mismatch(Error):
    """The ranks disagree on what to exchange: shapes, dtypes, names, or options differ."""


class NotInitialized(Error, ValueError):
    """The call needs ``init()`` first, or came after ``shutdown()``. Horovod's is a ValueError."""


class DeviceError(Error):
    """A GPU or its driver refused something, or hvd_backup was built without CUDA."""


class LaunchError(Error):
    """The processes were started in a way that does not make one MPI world of them."""
