"""The world of this process: ranks, nodes, shared memory, and what ends waits."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from hvd_backup import _core, errors
from hvd_backup.config import Config
from hvd_backup.phrases import ranks_have
from hvd_backup.world import joining, last_words, launch, local_comm, node_service
from hvd_backup.world.board import Board, Hosts
from hvd_backup.world.gate import Watch, pass_gate
from hvd_backup.world.node_service import NodeService
from hvd_backup.world.part_board import PartBoard
from hvd_backup.world.setting_up import AllRanks, SettingUp
from hvd_backup.world.table import Operation, Table
from hvd_backup.world.together import Together
from hvd_backup.world.topology import Topology
from hvd_backup.world.wire import Channel

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger("hvd_backup")


class Leaver(Protocol):
    """Something that lives in the runtime and must be left with it."""

    def leave(self) -> None: ...


class Collective(Protocol):
    """Something that goes through rounds."""

    def last_round(self) -> str: ...


class Runtime:
    """One process's membership in a world. Made by ``init()``; all ranks make it together.

    Some ranks of a world, a process set, are a world themselves if they go through rounds: a part
    of the one `above`. Errors add `where`, as the part counts its ranks from 0.
    """

    def __init__(
        self, comm: MPI.Intracomm, config: Config, above: Runtime | None = None, where: str = ""
    ) -> None:
        self.config = config
        self.where = where
        self.end = ""
        """In words, once the process set of this part has been removed."""
        self.parts: dict[int, Runtime] = {}
        """Process sets that go through rounds, by number."""
        self._pid = os.getpid()
        self.comm = comm.Dup()
        self.mpi = local_comm.module_of(comm)
        """mpi4py.MPI, or what stands in for it: its operations go with `comm`."""
        self.together = Together(self.comm, config.timeout, f"set-up of the world{where}")
        """What set-ups wait with."""
        try:
            self._find_topology(above)
        except errors.RoundTimeout:
            _core.exit_without_mpi(True)  # MPI_Finalize would wait for those that did not come
            raise
        self.table = Table(AllRanks(self), Channel(self.comm, self.mpi), range(self.size))
        """Calls of all ranks that are registered, and not yet done."""
        self.sets: dict[int, Table] = {0: self.table}
        """The tables of the process sets that there are; of other ranks' sets: with no channel."""
        self.next_set = 1
        try:
            self._meet_nodes()
        except BaseException as error:
            self.leave(error)
            if self.topology.is_split and self.node_service is None:
                self.together.fail(error)
            if above is None and not self.together.have_agreed_on(error):
                _failed.append(self)
            raise

    def _find_topology(self, above: Runtime | None) -> None:
        """The part of the set-up before there is a notice board."""
        self.topology = topology = Topology(self.together, self.config.node_size)
        self.rank, self.size = topology.rank, topology.size
        self.local_rank, self.local_size = topology.local_rank, topology.local_size
        self.cross_rank, self.cross_size = topology.cross_rank, topology.cross_size
        self._leavers: weakref.WeakSet[Leaver] = weakref.WeakSet()
        self.plans: dict[Any, Any] = {}
        self.attended: dict[int, Any] = {}
        """Exchanges, by number, in whose rounds this rank abstains after ``join()``."""
        self.node_service: NodeService | None = None
        self.exchanges = 0
        """Exchanges made so far."""
        self.one_at_a_time = threading.RLock()
        """Held by the thread that is in a call which all ranks make together."""
        self._last_call = ""
        self._last_collective: weakref.ref[Collective] | None = None
        self._contradicted = False
        self.rounds = 0
        """Rounds this rank has been through, all exchanges together."""
        self._notes = topology.shared_segment(Board.bytes(self.size))
        self._ranks_above = self.together.allgather(above.rank) if above is not None else []
        # As all ranks have one now, a life lock that is not held means a dead rank.
        self.board: Board = self.together.agree(lambda: self._make_board(above))
        this = weakref.ref(self)  # which owns the board
        self.board.last_round = lambda: world.last_round() if (world := this()) else ""
        watch = Watch(self.board, "set-up", self.config.timeout, 0, list)
        self.together.watch(watch.look, self.board.not_told)
        self._is_part = above is not None
        self._watch(self.board.check)

    def _make_board(self, above: Runtime | None) -> Board:
        topology = self.topology
        hosts = Hosts(topology.host_names, self.config.host_timeout)
        of_board = (self._notes, self.size, self.rank, topology.local_ranks, self._ring)
        if above is None:
            return Board(*of_board, hosts)
        return PartBoard(above.board, *of_board, hosts, ranks=self._ranks_above)

    def _meet_nodes(self) -> None:
        topology = self.topology
        if topology.is_split:
            self.node_service = NodeService(topology, self.config, self._notes)
        self.remote_reads = topology.can_read_remote()
        self.spin_limits = topology.choose_spin_limits()

    def check_process(self) -> None:
        """Raises Error in a forked child, which is no rank: what it did would end nowhere."""
        if os.getpid() != self._pid:
            raise errors.Error(
                f"this process was forked from rank {self.rank}, and is no rank itself: only rank "
                f"{self.rank} (process {self._pid}) can make this call"
            )

    def meet(self, call: str, signature: Any = None, timeout: float | None = None) -> None:
        """Wait until all ranks are in this call; what follows waits for nobody who computes.

        `call`, in words, and `signature` are compared for equality. Raises Mismatch, on every
        rank, that quotes what differs, also when ranks have made different numbers of rounds;
        RoundTimeout and PeerFailed as any wait does.
        """
        operation = Operation("meet", call, lambda _: None, name="meet", signature=signature)
        with self.one_at_a_time:
            self.table.complete(self.table.add(operation), timeout)

    def gate(
        self, call: str, timeout: float | None, meanwhile: Callable[[], bool] | None = None
    ) -> None:
        """Wait until all ranks are in some call; ``board.finish_setup()`` when it is over.

        ``meanwhile()`` is called again and again; while it has something to do, no time passes.
        """
        self.board.enter_setup(call, self.rounds)
        self._pass_gate(self.comm, call, timeout, self.board.not_here, meanwhile=meanwhile)

    def gate_of_set(
        self, comm: MPI.Intracomm, ranks: list[int], visit: str, call: str, timeout: float | None
    ) -> None:
        """The same for the ranks of a set; `visit` tells this time from all others."""
        self.board.visit(visit, call)
        missing = partial(self.board.not_visiting, visit, ranks)
        self._pass_gate(comm, call, timeout, missing, ranks)

    def _pass_gate(
        self,
        comm: MPI.Intracomm,
        call: str,
        timeout: float | None,
        missing: Callable[[], list[int]],
        ranks: list[int] | None = None,
        meanwhile: Callable[[], bool] | None = None,
    ) -> None:
        self.check_process()
        limit = self.config.timeout if timeout is None else timeout
        watch = Watch(self.board, call, limit, self.config.stall_warning, missing, ranks)
        watch.meanwhile = meanwhile
        with _FailingTogether(self.board, any_error=True):  # signal handlers' errors as well
            pass_gate(comm, watch)

    def _ring(self) -> None:
        """The board has news for the other nodes."""
        if self.node_service is not None:
            self.node_service.doorbell.ring()

    def went_through(self, call: str, collective: Collective) -> None:
        """This rank has been through one more round, of this collective."""
        if call is not self._last_call:
            self._last_call = call
            self._last_collective = weakref.ref(collective)
            self.board.changes_to(call, self.rounds)
        self.rounds += 1

    def last_round(self) -> str:
        """In words: the last round that all ranks are known to have completed; empty for none."""
        collective = self._last_collective() if self._last_collective is not None else None
        return collective.last_round() if collective is not None else ""

    def setting_up(self) -> SettingUp:
        """A context in which all ranks set something up: an error on one reaches the others.

        Not what ``together.agree`` raises: all have that already, and may go on.
        """
        return SettingUp(self)

    def warn_if_contradicted(self, backup_workers: int | None) -> None:
        """Say once, on rank 0, that an argument overrides the launcher's setting.

        Not in a process set: its ranks have a number of their own.
        """
        if self.rank == 0 and self.size > 1 and not self.where and not self._contradicted:
            told = self.config.contradicted_by(backup_workers)
            if told:
                self._contradicted = True
                log.warning("%s", told)

    def failing_together(self) -> _FailingTogether:
        """A context in which an error of this package reaches the other ranks as well."""
        return _FailingTogether(self.board)

    def is_of(self, comm: MPI.Intracomm) -> bool:
        """Whether `comm` has the ranks of this world, in its order."""
        MPI = self.mpi
        congruent: bool = MPI.Comm.Compare(comm, self.comm) in (MPI.IDENT, MPI.CONGRUENT)
        return congruent

    def add(self, leaver: Leaver) -> None:
        self._leavers.add(leaver)

    def leave(self, error: BaseException | None = None) -> None:
        """Nobody waits for this rank any more; with `error`, the others raise PeerFailed."""
        if os.getpid() != self._pid:
            return  # a forked child, a DataLoader's worker say, ends: that is not this rank's end
        if error is not None:  # KeyboardInterrupt, too
            self.board.fail(error)
        for part in self.parts.values():
            part.leave()
        for leaver in list(self._leavers):
            leaver.leave()
        self._watch(lambda: None)
        self.plans.clear()
        self.attended.clear()
        self.table.stop_observing()
        self.board.leave()
        if self.node_service is not None and self.node_service.service is not None:
            _services.append((self.node_service.service, self.board))

    def _watch(self, look: Callable[[], None]) -> None:
        """Without MPI, waits behind a gate can look at the board, too."""
        comm: Any = self.comm
        if not self._is_part and joining.is_local(comm):
            comm.watch(look)


class _FailingTogether:
    def __init__(self, board: Board, *, any_error: bool = False) -> None:
        self._board = board
        self._any = any_error

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and (self._any or isinstance(error, errors.Error)):
            self._board.fail(error)


_runtime: Runtime | None = None

# Of worlds that this process has left: other ranks may need them until it ends.
_services: list[tuple[_core.NodeService, Board]] = []
_failed: list[Runtime] = []
_pid = 0  # of the process that called init()


def init(comm: MPI.Intracomm | Sequence[int] | None = None) -> None:
    """Join the world of `comm` (an mpi4py communicator; default ``MPI.COMM_WORLD``).

    All ranks of `comm` call it together. It may be a list of the launcher's ranks, too. Calling it
    again changes nothing; with another communicator, call ``shutdown()`` first. Initializes MPI if
    nobody has. Under ``hvd-backup run --no-mpi`` the default is the launcher's ranks, and no MPI is
    loaded.

    Raises LaunchError when the job was started so that it cannot work, and says how to start it;
    TypeError for what is no communicator.
    """
    global _runtime, _pid
    ranks = joining.ranks_of(comm)
    if isinstance(comm, list | tuple):
        comm = None
    if ranks is None and comm is not None and not hasattr(comm, "Split_type"):
        raise TypeError(f"init() takes an mpi4py communicator, not {comm!r}")
    if _runtime is not None:
        given: Any = joining.sub_world(joining.launched_world(), ranks) if ranks else comm
        if given is not None and not _runtime.is_of(given):
            raise ValueError("init() was called before with another communicator; shutdown() first")
        return
    world: Any = joining.launched_world() if comm is None else comm
    if comm is not None and not joining.is_local(comm):
        joining.load_mpi()
    if ranks is not None:
        world = joining.sub_world(world, ranks)
    config = joining.agree_on_config(world)
    if joining.is_local(world):
        joining.check_one_node(config, world.size)
    _services[:] = [one for one in _services if not node_service.is_over(one[0])]
    _pid = os.getpid()
    atexit.unregister(_leave_at_exit)
    atexit.register(_leave_at_exit)
    last_words.print_in_one_piece()
    os.environ[launch.RANK_PROCESS] = launch.rank_process(os.environ, _pid)
    _runtime = Runtime(world, config)
    if config.log_level is not None:
        log.setLevel(config.log_level)
    _core.exit_without_mpi(False)  # an earlier call may have failed


def shutdown() -> None:
    """Leave the world. A second call does nothing. Horovod's ``shutdown``.

    Late ranks can still load the results of rounds that this rank took part in. A rank that needs
    this one for a further round or call raises PeerFailed.
    """
    global _runtime
    if _runtime is not None:
        _runtime.leave()
        if _runtime.board.is_told():
            _failed.append(_runtime)
        _runtime = None
        if not _services and not _failed:
            atexit.unregister(_leave_at_exit)


def _leave_at_exit() -> None:
    if os.getpid() != _pid:
        return  # a forked child
    # An exception that nobody caught: the interpreter has printed it and kept it here.
    if _runtime is not None:
        _runtime.leave(getattr(sys, "last_value", None))
        if _runtime.board.is_told():
            _failed.append(_runtime)
    # MPI_Finalize waits for every rank, also for one that will never come.
    missing = next(filter(None, map(_await_all, _failed)), [])
    if missing:
        if not hasattr(sys, "last_value"):  # else the traceback has said it
            log.warning(
                "this process ends with status 1, and without MPI_Finalize, which would wait for "
                "ever: %s not left after the failure; see whether it hangs or has died, or "
                "raise timeout= if it is only slow",
                ranks_have(missing),
            )
        _core.exit_without_mpi(True)
    while _services:
        service, board = _services.pop()
        node_service.close(service, failed=board.is_told())


def _await_all(world: Runtime) -> list[int]:
    """Wait until every rank has heard of the failure and left, as long as that can be hoped for.

    Returns the ranks that have not.
    """
    # Who has been missing for a whole time-out does not come; others may compute for a while.
    # A time-out of never is for waits in which nothing has failed.
    most = min(world.config.timeout, Config.timeout)
    hope = node_service.AFTER_FAILURE_S if world.board.has_timed_out() else most
    deadline = time.monotonic() + hope
    while (missing := _still_in(world)) and time.monotonic() < deadline:
        # What carries the news between nodes may have died, too. One's own node's ranks are seen.
        dead = set(world.board.dead()).union(world.board.cut_off())
        if dead and not set(missing).intersection(world.topology.local_ranks) - dead:
            break
        time.sleep(0.01)
    return missing


def _still_in(world: Runtime) -> list[int]:
    """Ranks that have not left, as far as this process can be told of them."""
    missing = world.board.not_left()
    if world.topology.is_split and world.node_service is None:  # its set-up has failed
        return sorted(set(missing).intersection(world.topology.local_ranks))
    return missing


def is_initialized() -> bool:
    """Whether this process is in a world. Horovod's ``is_initialized``.

    Returns:
        True from ``init()`` to ``shutdown()``.
    """
    return _runtime is not None


def current() -> Runtime:
    """The runtime; raises NotInitialized before ``init()``."""
    if _runtime is None:
        raise errors.NotInitialized("call hvd_backup.init() first")
    return _runtime


def rank() -> int:
    """The rank of this process in the world. Horovod's ``rank``.

    Returns:
        An int from 0 to ``size() - 1``.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return current().rank


def size() -> int:
    """The number of ranks in the world, R = N + b: backup workers count. Horovod's ``size``.

    Returns:
        An int, at least 1.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return current().size


def local_rank() -> int:
    """The rank of this process among those of its node. Horovod's ``local_rank``.

    Returns:
        An int from 0 to ``local_size() - 1``.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return current().local_rank


def local_size() -> int:
    """The number of ranks on this node. Horovod's ``local_size``.

    Returns:
        An int, at least 1.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return current().local_size


def cross_rank() -> int:
    """The number of this node. Horovod's ``cross_rank``.

    Returns:
        An int from 0 to ``cross_size() - 1``.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return current().cross_rank


def cross_size() -> int:
    """The number of nodes. Horovod's ``cross_size``.

    Returns:
        An int, at least 1.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return current().cross_size


def is_homogeneous() -> bool:
    """Whether all nodes have the same number of ranks. Horovod's ``is_homogeneous``.

    Returns:
        True or False, the same on every rank.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    nodes = current().topology.node_of
    return len({nodes.count(node) for node in set(nodes)}) == 1
