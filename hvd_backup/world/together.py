"""Gathers that all ranks make while they set something up, and that always end.

MPI's blocking calls wait for ever for a rank that has failed before its turn. These gathers are
nonblocking and tested with naps. Between the tests they look at the notice board, so a failure that
a rank has told there ends them. A time-out ends them as well.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np

from hvd_backup import errors, phrases
from hvd_backup.world import local_comm

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

_NAPS_S = (20e-6, 5e-3)
# How long a rank that has failed waits, at most, until the others have come and heard of it.
_FAREWELL_S = 60.0
_SOON_S = 1.0


class _Exchange(Protocol):
    """A nonblocking gather of bytes."""

    parts: list[bytes]

    def Test(self) -> bool: ...  # noqa: N802 (mpi4py's name)


# Gathers that were given up. MPI may still write to their buffers, so they are kept.
_given_up: list[_Exchange] = []


class _Message(NamedTuple):
    content: Any
    failure: str = ""  # why the rank sets up nothing more


class _OfMPI:
    """A gather by MPI, in two steps: first the sizes, then the bytes."""

    def __init__(self, comm: MPI.Intracomm, mine: bytes) -> None:
        self.parts: list[bytes] = []
        self._comm = comm
        self._mine = np.frombuffer(mine, np.uint8)
        self._size = np.array([len(mine)], np.int64)
        self._sizes = np.empty(comm.size, np.int64)
        self._result: Any = None
        self._request = comm.Iallgather(self._size, self._sizes)

    def Test(self) -> bool:  # noqa: N802
        if not self._request.Test():
            return False
        if self._result is None:
            self._result = np.empty(self._sizes.sum(), np.uint8)
            self._request = self._comm.Iallgatherv(self._mine, (self._result, self._sizes.tolist()))
            return self.Test()
        ends = np.cumsum(self._sizes).tolist()
        self.parts = [
            self._result[end - n : end].tobytes()
            for n, end in zip(self._sizes.tolist(), ends, strict=True)
        ]
        return True


class Together:
    """Gathers among the ranks of `comm`. One wait takes `timeout` seconds at most."""

    def __init__(self, comm: MPI.Intracomm, timeout: float, doing: str) -> None:
        """`doing` says what the ranks set up; a time-out's text begins with it."""
        self.comm = comm
        self._timeout = timeout
        self._doing = doing
        self._look: Callable[[], None] = lambda: None
        self._forget: Callable[[BaseException], None] = lambda _: None
        self._under_way: _Exchange | None = None
        self._agreed: BaseException | None = None  # the last error that all ranks have raised

    def watch(
        self, look: Callable[[], None], forget: Callable[[BaseException], None] = lambda _: None
    ) -> None:
        """Call ``look()`` in all later waits. An error that it raises ends the wait.

        If all ranks had come nevertheless, the wait goes on, and ``forget(error)`` is called.
        """
        self._look, self._forget = look, forget

    def of(self, comm: Any) -> Together:
        """Gathers among the ranks of `comm`, with the same time-out and looks."""
        some = Together(comm, self._timeout, self._doing)
        some.watch(self._look_around, self._forget_what_it_told)
        return some

    def _look_around(self) -> None:
        self._look()  # watch() may have replaced it since of()

    def _forget_what_it_told(self, error: BaseException) -> None:
        self._forget(error)

    def allgather(self, mine: T) -> list[T]:
        """Return the objects of all ranks, by rank.

        Raises RoundTimeout, the errors of ``look()``, and PeerFailed if a rank has called
        ``fail()``.
        """
        self._under_way = under_way = self._begin(_Message(mine))
        self._await(under_way, self._look, self._timeout)
        self._under_way = None
        messages = [pickle.loads(part) for part in under_way.parts]
        for rank, message in enumerate(messages):
            if message.failure:
                error = errors.PeerFailed(phrases.failure(rank, message.failure))
                self._agreed = error
                raise error
        return [message.content for message in messages]

    def bcast(self, mine: T) -> T:
        """The object of rank 0."""
        return self.allgather(mine if self.comm.rank == 0 else None)[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        self.allgather(None)

    def agree(self, make: Callable[[], T], kind: type[errors.Error] = errors.Error) -> T:
        """What ``make()`` returns, once it has returned on every rank.

        If it raises on one, all raise `kind`, which names that rank; Ctrl-C there stays what it is.
        """
        made: list[T] = []
        problem: BaseException | None = None
        try:
            made.append(make())
        except BaseException as error:  # noqa: BLE001 (it is raised below, once all know)
            problem = error
        problems = self.allgather("" if problem is None else _told(problem))
        if problem is not None and not isinstance(problem, Exception):
            self._agreed = problem
            raise problem
        for rank, text in enumerate(problems):
            if text:
                agreed = self._agreed = kind(f"rank {rank}: {text}")
                # What is no error of this package is a surprise: then its traceback helps.
                raise agreed from (None if isinstance(problem, errors.Error) else problem)
        return made[0]

    def have_agreed_on(self, error: BaseException) -> bool:
        """Whether all ranks have raised this very error alike."""
        return self._agreed is error

    def fail(self, error: BaseException) -> None:
        """This rank goes on no more: tell those that will come to, or are in, the next call.

        For failures that no notice board can tell, as the nodes have no connection yet.
        """
        if self.have_agreed_on(error):
            return
        under_way = self._under_way or self._begin(_Message(None, _named(error)))
        try:
            self._await(under_way, lambda: None, min(self._timeout, _FAREWELL_S))
        except errors.RoundTimeout:
            return  # nobody listens; what this rank has failed with is raised by the caller

    def _begin(self, message: _Message) -> _Exchange:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if isinstance(self.comm, local_comm.Intracomm):
            return self.comm.iallgather_bytes(data)
        return _OfMPI(self.comm, data)

    def _await(self, exchange: _Exchange, look: Callable[[], None], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        nap, longest = _NAPS_S
        try:
            while not exchange.Test():
                try:
                    look()
                except errors.Error as error:
                    # A rank for which it is complete may have left, or failed, behind it. For this
                    # one it is complete soon, too.
                    if _is_soon_over(exchange):
                        self._forget(error)
                        return
                    raise
                if time.monotonic() > deadline:
                    self._raise_timeout(timeout)
                time.sleep(nap)
                nap = min(2 * nap, longest)
        except BaseException:
            _given_up.append(exchange)
            raise

    def _raise_timeout(self, seconds: float) -> NoReturn:
        raise errors.RoundTimeout(
            f"{self._doing}: not all {self.comm.size} ranks came within {seconds:g} s; see whether "
            "one has failed or stands still, or raise HVD_BACKUP_TIMEOUT"
        )


def _is_soon_over(exchange: _Exchange) -> bool:
    deadline = time.monotonic() + _SOON_S
    while not exchange.Test():
        if time.monotonic() > deadline:
            return False
        time.sleep(1e-3)
    return True


def _named(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, errors.Error) else _named(error)
