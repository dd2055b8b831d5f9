"""Process sets: some of the ranks, that make calls among themselves. Horovod's interface."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hvd_backup.config import misspelt
from hvd_backup.horovod import environment
from hvd_backup.horovod.timeline import start_timeline
from hvd_backup.phrases import ranks_text
from hvd_backup.world import runtime
from hvd_backup.world.table import Table
from hvd_backup.world.wire import Channel

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("hvd_backup")

_WRONG = "ProcessSet should be initialized with a list of process ranks or an mpi4py Comm object"


class ProcessSet:
    """Some ranks of the world, which make calls among themselves. Horovod's ``ProcessSet``.

    The set can be used from ``init(process_sets=[...])`` or ``add_process_set`` until
    ``remove_process_set`` or ``shutdown()``.

    Args:
        ranks_or_comm: Ranks of the world, in any order, or an mpi4py communicator of them. A
            communicator can only be registered by ``init``.

    Attributes:
        process_set_id: The number of the set, the same on all ranks; None while it is not
            registered.
        ranks: The ranks of the set, ascending; None before a set of a communicator is registered.
        mpi_comm: The communicator that the set was made from; None if it was made from ranks.

    Raises:
        ValueError: `ranks_or_comm` is neither a sequence of ints nor a communicator.

    Example:
        >>> import hvd_backup as hb
        >>> hb.init()
        >>> pair = hb.ProcessSet([1, 0])
        >>> pair.ranks
        [0, 1]
        >>> pair.size() is None  # not registered yet
        True
    """

    process_set_id: int | None = None
    ranks: list[int] | None = None
    mpi_comm: MPI.Comm | None = None

    def __init__(self, ranks_or_comm: Sequence[int] | MPI.Comm) -> None:
        if isinstance(ranks_or_comm, Iterable):
            ranks = list(ranks_or_comm)
            if any(isinstance(rank, bool) or not isinstance(rank, int) for rank in ranks):
                raise ValueError(_WRONG)
            self.ranks = sorted(ranks)
        elif hasattr(ranks_or_comm, "Get_group"):
            self.mpi_comm = ranks_or_comm
        else:
            raise ValueError(_WRONG)

    def size(self) -> int | None:
        """The number of ranks in the set.

        Returns:
            The number; None if the set is not registered.

        Raises:
            ValueError: The set was registered in a world that this process has left.
        """
        table = self._table()
        return None if table is None else len(table.ranks)

    def rank(self) -> int | None:
        """The position of this process in the set. (Roots are given by their rank in the world.)

        Returns:
            The position, counted from 0; None if the set is not registered.

        Raises:
            ValueError: This process is not in the set, or the set is of a world that was left.
        """
        table = self._table()
        if table is None:
            return None
        mine = runtime.rank()
        if mine not in table.ranks:
            raise ValueError(
                f"Process is not part of provided process set. (Rank {mine}; the set has "
                f"{ranks_text(table.ranks)}.)"
            )
        return table.ranks.index(mine)

    def included(self) -> bool | None:
        """Whether this process is in the set.

        Returns:
            True or False; None before a set of a communicator is registered.

        Raises:
            NotInitialized: ``init()`` was not called.
        """
        return None if self.ranks is None else runtime.rank() in self.ranks

    def _table(self) -> Table | None:
        if self.process_set_id is None:
            return None
        table = runtime.current().sets.get(self.process_set_id)
        if table is None or table.ranks != self.ranks:  # of a world that has been left
            raise ValueError("Process set does not exist or has not been registered.")
        return table

    def __str__(self) -> str:
        return (
            f"ProcessSet(process_set_id={self.process_set_id}, ranks={self.ranks}, "
            f"mpi_comm={self.mpi_comm})"
        )


class _Global(ProcessSet):
    """All ranks, of whatever world there is."""

    process_set_id = 0

    def __init__(self) -> None:
        pass

    @property
    def ranks(self) -> list[int]:  # type: ignore[override]
        return list(range(runtime.size())) if runtime.is_initialized() else []


global_process_set: ProcessSet = _Global()
"""All ranks of the world: the default of every `process_set`. Horovod's ``global_process_set``."""


def init(
    comm: MPI.Intracomm | Sequence[int] | None = None,
    process_sets: Sequence[ProcessSet] | str | None = None,
) -> None:
    """Join the world. All of its ranks call this together, once. Horovod's ``init``.

    A second call for the same world changes nothing. ``init()`` initializes MPI if that has not
    been done. Under ``hvd-backup run --no-mpi`` no MPI is loaded.

    Args:
        comm: An mpi4py communicator whose ranks become the world, or a list of ranks of
            ``MPI.COMM_WORLD``. None or []: all ranks that the launcher started.
        process_sets: ``ProcessSet`` objects to register, the same ones on every rank. "dynamic" is
            Horovod's word for adding sets later, which is always possible here.

    Raises:
        TypeError: `comm` is not a communicator or a list of ints, or `process_sets` has other
            objects.
        ValueError: This process is in another world already, is not in the list `comm`, a process
            set is there twice or has ranks outside of the world, or an HVD_BACKUP_* variable is
            wrong.
        LaunchError: The processes were started in a way that makes no world; the text says how to.
        RoundTimeout: Not all ranks came within HVD_BACKUP_TIMEOUT (600 seconds).
        PeerFailed: Another rank died or failed.

    Example:
        >>> import hvd_backup as hb
        >>> hb.init()
        >>> 0 <= hb.rank() < hb.size()
        True
    """
    if isinstance(process_sets, str):
        if process_sets.lower() != "dynamic":
            raise ValueError(
                f"process_sets={process_sets!r}: use a list of ProcessSet or 'dynamic'"
            )
        os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"  # for children, as in Horovod
        process_sets = []
    wanted = list(process_sets or [])
    for one in wanted:
        if not isinstance(one, ProcessSet):
            raise TypeError(f"process_sets must have ProcessSet objects, not {one!r}")
    is_new = not runtime.is_initialized()
    runtime.init(comm)
    if is_new and runtime.rank() == 0:
        _warn_of_settings_without_effect()
    path = runtime.current().config.timeline
    if is_new and path and path.upper() != "DYNAMIC":  # Horovod's word for: later
        start_timeline(path)
    for i, one in enumerate(wanted):
        if one.ranks is None:
            _register_by_comm(one)
            continue
        _check_ranks(one)
        if _find(one.ranks) is not None:
            raise ValueError(
                "Horovod could not be initialized because process_sets entry number "
                f"{i} is a duplicate: {one}"
            )
        one.process_set_id = _register(one.ranks)


def _warn_of_settings_without_effect() -> None:
    environment.warn_of(environment.without_effect(os.environ))
    if unknown := misspelt(os.environ):
        log.warning("%s: there is no such setting", ", ".join(unknown))


def add_process_set(process_set: ProcessSet | Sequence[int]) -> ProcessSet:
    """Register a set of ranks. All ranks of the world call this together, in the set or not.

    Horovod's ``add_process_set``; HOROVOD_DYNAMIC_PROCESS_SETS is not needed.

    Args:
        process_set: A ``ProcessSet`` that was made from ranks, or the ranks.

    Returns:
        The ``ProcessSet``, now with its `process_set_id`.

    Raises:
        ValueError: A set of these ranks is registered, or a rank is named twice or is not in the
            world.
        NotImplementedError: The set was made from a communicator; give such sets to ``init``.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks named different sets; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.

    Example:
        >>> import numpy as np
        >>> import hvd_backup as hb
        >>> hb.init()
        >>> if hb.size() > 1:  # the set of all ranks is registered already
        ...     even = hb.add_process_set(range(0, hb.size(), 2))
        ...     if even.included():
        ...         ranks = hb.allgather(np.array([hb.rank()]), process_set=even)
        ...     assert hb.remove_process_set(even)
    """
    if not isinstance(process_set, ProcessSet):
        process_set = ProcessSet(process_set)
    if process_set.ranks is None:
        raise NotImplementedError(
            "Dynamically adding process sets defined by an MPI communicator is not implemented. "
            "Please build the process set via a list of ranks."
        )
    _check_ranks(process_set)
    if _find(process_set.ranks) is not None:
        raise ValueError(f"Attempted to add a duplicate process set: {process_set}")
    process_set.process_set_id = _register(process_set.ranks)
    return process_set


def remove_process_set(process_set: ProcessSet) -> bool:
    """Forget a set of ranks. All ranks of the world call this together.

    Horovod's ``remove_process_set``. Rounds that the set has gone through end with it.

    Args:
        process_set: The set to remove.

    Returns:
        True if it was removed; False if it was not registered, or is that of all ranks.

    Raises:
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks named different sets; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    number = process_set.process_set_id
    if number is None or number == 0:
        return False
    world = runtime.current()
    with world.one_at_a_time:
        world.meet(f"remove_process_set({process_set.ranks})")
        table = world.sets.pop(number, None)
        process_set.process_set_id = None
        if (part := world.parts.pop(number, None)) is not None:
            part.leave()
            part.end = f"the process set of {ranks_text(process_set.ranks or [])} was removed"
        if table is not None:
            table.channel.comm.Free()
    return table is not None


def table_of(process_set: ProcessSet, kind: str) -> Table:
    """The table in which calls of that kind are registered for the set.

    Raises ValueError if there is no such set, or this rank is not in it.
    """
    world = runtime.current()
    if not isinstance(process_set, ProcessSet):
        raise TypeError(f"process_set must be a ProcessSet, not {process_set!r}")
    if process_set.process_set_id == 0:
        return world.table
    number = process_set.process_set_id
    table = None if number is None else world.sets.get(number)
    if table is None or table.ranks != process_set.ranks:
        raise ValueError(
            f"{kind.capitalize()}: Process set provided does not exist, or has not been registered."
        )
    if world.rank not in table.ranks:
        raise ValueError(
            f"{kind.capitalize()}: Rank {world.rank} is not a member of the provided process set."
        )
    return table


def _check_ranks(process_set: ProcessSet) -> None:
    world = runtime.current()
    if not process_set.ranks:
        raise ValueError(f"{process_set} has no ranks")
    if len(set(process_set.ranks)) < len(process_set.ranks):
        raise ValueError(f"{process_set} names a rank twice")
    wrong = [rank for rank in process_set.ranks if not 0 <= rank < world.size]
    if wrong:
        raise ValueError(
            f"{process_set}: {ranks_text(wrong)} not in a world of {world.size} ranks; use 0 to "
            f"{world.size - 1}"
        )


def _register_by_comm(process_set: ProcessSet) -> None:
    """All ranks have given their communicator, of one ``Split``, say: register each that differs.

    Raises ValueError, on every rank, if one has ranks that are not in the world.
    """
    world = runtime.current()
    assert process_set.mpi_comm is not None
    group = process_set.mpi_comm.Get_group()
    mine = sorted(group.Translate_ranks(list(range(group.size)), world.comm.Get_group()))
    with world.one_at_a_time:
        world.meet("init(process_sets=[ProcessSet(comm)])")
        everybody = world.comm.allgather(mine)
    for rank, ranks in enumerate(everybody):
        if ranks[0] < 0:  # MPI.UNDEFINED
            raise ValueError(f"rank {rank}: {process_set}: its ranks are not all in the world")
    for ranks in dict.fromkeys(map(tuple, everybody)):
        number = _find(ranks)
        number = _register(list(ranks)) if number is None else number
        if list(ranks) == mine:
            process_set.ranks, process_set.process_set_id = mine, number


def _find(ranks: Sequence[int]) -> int | None:
    """The number of the set with these ranks."""
    sets = runtime.current().sets.items()
    return next((number for number, table in sets if table.ranks == list(ranks)), None)


def _register(ranks: list[int]) -> int:
    world = runtime.current()
    with world.one_at_a_time:
        world.meet(f"add_process_set({ranks})")
        number, world.next_set = world.next_set, world.next_set + 1
        comm: Any = world.comm.Split(int(world.rank in ranks), key=world.rank)
        world.sets[number] = Table(
            _Some(world, comm, number, ranks), Channel(comm, world.mpi), ranks
        )
    return number


class _Some:
    """The ranks of a process set, as participants of a table."""

    def __init__(
        self, world: runtime.Runtime, comm: MPI.Intracomm, number: int, ranks: list[int]
    ) -> None:
        self._world = world
        self._comm = comm
        self._number = number
        self._ranks = ranks
        self._visits = 0

    def gate(self, call: str, timeout: float | None, meanwhile: object = None) -> None:
        assert meanwhile is None  # only all ranks together can join
        self._visits += 1
        visit = f"{self._number}:{self._visits}"
        where = f"{call} in the process set of {ranks_text(self._ranks)}"
        self._world.gate_of_set(self._comm, self._ranks, visit, where, timeout)

    def limit(self, timeout: float | None) -> float:
        return self._world.config.timeout if timeout is None else timeout

    def give_up(self, error: BaseException) -> None:
        self._world.board.fail(error)

    def leave_gate(self) -> None:
        pass

    def rounds(self) -> int:
        return 0  # ranks of the set may differ in them for a while
