"""Calls that all ranks make together while they set something up, with an end in any case.

MPI's blocking calls wait for ever for a rank that has failed before its turn. These test, nap, and
look around meanwhile: so a failure that is on the notice board ends them, and so does a time-out.
"""

from __future__ import annotations

import pickle
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hvd_backup import errors, local_comm

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

_NAPS_S = (20e-6, 5e-3)

# Buffers of calls that were given up. MPI may still write to them.
_given_up: list[Any] = []


class Together:
    """The ranks of `comm`. One wait takes `timeout` seconds at most.

    Until ``watch()`` there is no notice board: then a rank that fails takes part in ``agree()``
    all the same.
    """

    def __init__(self, comm: MPI.Intracomm, timeout: float, doing: str) -> None:
        """`doing`, in words, begins the text of a time-out."""
        self.comm = comm
        self._timeout = timeout
        self._doing = doing
        self._look: Callable[[], None] = lambda: None
        self._agreed: weakref.ref[errors.Error] | None = None  # the last that all ranks raised

    def watch(self, look: Callable[[], None]) -> None:
        """From now on ``look()`` is called while waiting; what it raises ends the wait."""
        self._look = look

    def of(self, comm: MPI.Intracomm) -> Together:
        """The same for some of the ranks."""
        some = Together(comm, self._timeout, self._doing)
        some.watch(lambda: self._look())
        return some

    def allgather(self, mine: T) -> list[T]:
        """The objects of all ranks, by rank. Raises RoundTimeout, and what ``look()`` raises."""
        data = pickle.dumps(mine, pickle.HIGHEST_PROTOCOL)
        if isinstance(self.comm, local_comm.Intracomm):
            request = self.comm.iallgather_bytes(data)
            self._await(request)
            parts = request.parts
        else:
            parts = self._gather(np.frombuffer(data, np.uint8))
        return [pickle.loads(part) for part in parts]

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
            raise problem
        for rank, text in enumerate(problems):
            if text:
                error = kind(f"rank {rank}: {text}")
                self._agreed = weakref.ref(error)
                # What is no error of this package is a surprise: then its traceback helps.
                raise error from (None if isinstance(problem, errors.Error) else problem)
        return made[0]

    def have_agreed_on(self, error: BaseException) -> bool:
        """Whether ``agree()`` has raised this very error, on all ranks alike."""
        return self._agreed is not None and self._agreed() is error

    def _gather(self, mine: Any) -> list[bytes]:
        """MPI has no allgather of unknown sizes: they are told first."""
        sizes = np.empty(self.comm.size, np.int64)
        size = np.array([mine.size], np.int64)
        self._await(self.comm.Iallgather(size, sizes), size, sizes)
        counts = sizes.tolist()
        result = np.empty(sum(counts), np.uint8)
        self._await(self.comm.Iallgatherv(mine, (result, counts)), mine, result)
        ends = np.cumsum(sizes).tolist()
        return [result[end - n : end].tobytes() for n, end in zip(counts, ends, strict=True)]

    def _await(self, request: Any, *buffers: Any) -> None:
        deadline = time.monotonic() + self._timeout
        nap, longest = _NAPS_S
        try:
            while not request.Test():
                self._look()
                if time.monotonic() > deadline:
                    raise errors.RoundTimeout(
                        f"{self._doing}: not all {self.comm.size} ranks came within "
                        f"{self._timeout:g} s; see whether one has failed or stands still, or "
                        "raise HVD_BACKUP_TIMEOUT"
                    )
                time.sleep(nap)
                nap = min(2 * nap, longest)
        except BaseException:
            _given_up.append((request, buffers))
            raise


def _told(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, errors.Error):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
