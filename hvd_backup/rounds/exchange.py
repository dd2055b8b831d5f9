"""The framework-neutral half of a DistributedOptimizer: slots in, rounds, results out."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_backup import _core, errors, phrases
from hvd_backup.config import HOST_ROOM, RoundOptions
from hvd_backup.phrases import death, ranks_text, title
from hvd_backup.rounds import mapped_memory, reports
from hvd_backup.rounds.absence import Replicas, close_what_is_gone
from hvd_backup.rounds.layout import ITEMSIZE
from hvd_backup.rounds.policy import policy_of
from hvd_backup.rounds.reports import Round, Stats
from hvd_backup.world import runtime
from hvd_backup.world.stall import Stall
from hvd_backup.world.table import WAY_OUT

log = logging.getLogger("hvd_backup")

Bytes = npt.NDArray[np.uint8]

# A process that ends has freed its memory by then, and its lock as well.
_ENDING_S = 5.0

# MPI over TCP sends messages of less than 64 KB at once. Others ask first, and the answer queues
# behind what the other side sends.
_EAGER = 60 * 1024


class Exchange:
    """One partial all-reduce, run round after round. All ranks construct it together.

    `layout` lists (dtype, count) of the flat buffers that make up a contribution, dtype one of
    float16, bfloat16, float32, float64. `name` and `signature` are compared between the ranks.
    The result is the weighted mean over the contributors, or, with `add`, their weighted sum.
    `world` is that of ``init()``, or a part of it. With a `wish`, all flat buffers but the last
    lie in memory of the ranks' devices, `mapped`, if all ranks can: then `slots` and `results` hold
    the last one alone.

    A round goes ``arrive()`` or ``skip()``, then ``wait()``; its ``results`` are valid until the
    next ``arrive()`` or ``skip()``. Every rank goes through every round.

    Raises Mismatch, on every rank, when the ranks construct different things.
    """

    def __init__(
        self,
        layout: Sequence[tuple[str, int]],
        *,
        backup_workers: int | None = None,
        late: str = "drop",
        grace: float | None = None,
        window: int | None = None,
        timeout: float | None = None,
        add: bool = False,
        name: str = "exchange",
        signature: Any = None,
        world: runtime.Runtime | None = None,
        wish: mapped_memory.Wish | None = None,
    ) -> None:
        world = world or runtime.current()
        for dtype, _ in layout:
            if dtype not in ITEMSIZE:
                known = ", ".join(ITEMSIZE)
                raise TypeError(f"{name}: dtype {dtype} cannot be averaged; use one of {known}")
        nbytes = _total_bytes(layout)
        self.options = RoundOptions.resolve(
            world.config,
            world=world.size,
            nbytes=nbytes,
            backup_workers=backup_workers,
            late=late,
            grace=grace,
            window=window,
            timeout=timeout,
            room=mapped_memory.ROOM if wish is not None else HOST_ROOM,
        )
        self.policy = policy_of(world.size, self.options)
        self.layout = list(layout)
        self.nbytes = nbytes
        self._runtime = world
        self._which = world.exchanges + 1
        world.warn_if_contradicted(backup_workers)
        self._call = f"collective {self._which}, {name}{world.where}"
        self._title = f"{title(name)}{world.where}"
        call = f"{name}{world.where} with {self.options}{', op=Sum' if add else ''}"
        world.meet(call, (self.layout, self.options, add, signature), self.options.timeout)
        world.exchanges = self._which  # a rank that has joined counts those that were set up, too
        close_what_is_gone(world)
        with world.setting_up():
            self.mapped, self._core = self._set_up(wish, add)
        world.add(self)
        self.stats = Stats()
        self._results: dict[int, list[Bytes]] = {}
        self._stall = Stall(world.config.stall_warning)
        self._warned_of_window = False
        self._is_over = False  # an error has ended a call: the ranks' rounds match no more
        self._abstains = False  # this rank's weight in the round is 0
        self._written_to = -1  # the buffer whose views were handed out
        self._can_be_absent = False
        self.replicas: Replicas | None = None
        """What the rounds keep equal on all ranks, as far as the exchange was told."""

    def _set_up(
        self, wish: mapped_memory.Wish | None, add: bool
    ) -> tuple[_core.MappedArena | None, _core.Collective]:
        world = self._runtime
        spec, mapped = self._place(wish)
        this = weakref.ref(self)  # a patrol that kept its exchange alive would leak both

        def patrol(interruption: BaseException | None) -> list[int]:
            exchange = this()
            return exchange._patrol(interruption) if exchange is not None else []  # noqa: SLF001

        def late_rank(rank: int, contributed: int, rounds: int) -> None:
            if (exchange := this()) is not None:
                exchange._warn_of_late(rank, contributed, rounds)  # noqa: SLF001

        segment = world.topology.shared_segment(spec.bytes, spec.own_part)
        node_service = world.node_service
        if node_service is not None:
            node_service.serve(self._which, segment, spec, self.policy, add=add)
        return mapped, _core.Collective(
            segment,
            spec,
            policy=self.policy,
            rank=world.rank,
            carry=self.options.late == "carry",
            timeout=self.options.timeout,
            spin_limits=world.spin_limits,
            remote_reads=world.remote_reads,
            patrol=patrol,
            doorbell=node_service.doorbell if node_service is not None else None,
            service=node_service.service if node_service is not None else None,
            sum=add,
            mapped=mapped,
            late_rank=late_rank if self._counts_late_ranks() else None,
        )

    def allow_absence(self, replicas: Replicas | None) -> None:
        """Let ranks that have joined abstain in rounds of others, and keep `replicas` equal then.

        The world holds the exchange from now on, until it is closed, or `replicas` are gone on all
        ranks. Without it, others' rounds raise Mismatch while a rank has joined.
        """
        self._can_be_absent, self.replicas = True, replicas
        self._runtime.attended[self._which] = self

    def present(self) -> int:
        """How many ranks are known to have arrived in the round that is open, or awaited."""
        return self._runtime.size - len(self._core.missing())

    @property
    def quorum(self) -> int:
        """How many arrivals seal a round."""
        return self.policy.quorum

    @property
    def number(self) -> int:
        """The round that the next ``arrive()`` or ``skip()`` is for."""
        return self._core.number

    @property
    def slots(self) -> list[Bytes]:
        """This rank's contribution: uint8 views, one per flat buffer, its to write until arrive().

        After ``wait()`` they hold what it contributed.
        """
        return self._core.slots()

    @property
    def buffer(self) -> int:
        """Index of the window's buffer with the result; -1 outside a round. Small, and reused."""
        return self._core.buffer

    @property
    def results(self) -> list[Bytes]:
        """The mean, or the sum, over the contributors: uint8 views, one per flat buffer.

        They may be written to: what is written stays with this process and this round.
        """
        buffer = self._core.buffer
        if buffer < 0:
            raise errors.Error("there is no result before wait()")
        if buffer not in self._results:
            self._results[buffer] = self._core.results(buffer)
        self._written_to = buffer
        return self._results[buffer]

    @property
    def shared_results(self) -> list[Bytes]:
        """The same, in the memory that all ranks share: to be read only, at stable addresses."""
        if self._core.buffer < 0:
            raise errors.Error("there is no result before wait()")
        return self._core.shared_results(self._core.buffer)

    def arrive(self, weight: float = 1.0) -> bool:
        """The slots are complete: contribute them, counting `weight`.

        Blocks only while the window is full. True if the contribution is in the round. With weight
        0 this rank abstains: it counts for the quorum, and what its slots hold is not read; if all
        contributors do, the result is zero.
        Raises ValueError for a weight that is neither 0 nor between 1e-30 and 1e30, before anything
        is sent.
        """
        self._begin(abstains=weight == 0)
        try:
            return self._core.arrive(weight)
        except BaseException as error:  # noqa: BLE001
            raise self._failed(error) from None

    def skip(self) -> None:
        """Go through the round without a contribution."""
        self._begin()
        try:
            self._core.skip()
        except BaseException as error:  # noqa: BLE001
            raise self._failed(error) from None

    def sealed_without_me(self) -> bool:
        """Whether the next round is closed already, so that computing for it is in vain."""
        return self._core.sealed_without_me()

    def wait(self) -> Round:
        """Block until the result can be read, helping to compute it.

        Raises RoundTimeout, which names the missing ranks, PeerFailed or Mismatch. What a signal
        handler raises meanwhile, Ctrl-C included, interrupts the round for all ranks: the others
        raise PeerFailed, and this rank's next call raises Error.
        """
        try:
            round_ = self._core.wait()
            self._record(round_)
        except BaseException as error:  # noqa: BLE001
            raise self._failed(error) from None
        return round_

    def arrive_and_wait(self, weight: float = 1.0) -> Round:
        """``arrive()`` and ``wait()`` in one call, which takes less time."""
        self._begin(abstains=weight == 0)
        try:
            round_ = self._core.arrive_and_wait(weight)
            self._record(round_)
        except BaseException as error:  # noqa: BLE001
            raise self._failed(error) from None
        return round_

    def allreduce(self, src: npt.NDArray[Any], dst: npt.NDArray[Any], weight: float = 1.0) -> Round:
        """One round from private memory to private memory; a layout of one flat buffer.

        `src` and `dst` are C-contiguous and of the layout's size; they may be the same array.
        """
        self._begin()
        try:
            round_ = self._core.allreduce(src, dst, weight)
            self._runtime.went_through(self._call, self)
        except BaseException as error:  # noqa: BLE001
            raise self._failed(error) from None
        return round_

    def failed(self, error: errors.Error) -> BaseException:
        """`error`, for the caller to raise: the other ranks' waits end with it too."""
        return self._failed(error)

    def leave(self) -> None:
        """Nobody waits for this rank in this exchange any more."""
        self._runtime.attended.pop(self._which, None)
        self._core.leave()
        if self.mapped is not None:
            mapped_memory.left(self._core)

    close = leave

    def _place(
        self, wish: mapped_memory.Wish | None
    ) -> tuple[_core.ArenaSpec, _core.MappedArena | None]:
        """The arena's spec, and this rank's device memory if there is any."""
        world = self._runtime
        nodes = world.cross_size if world.node_service is not None else 1
        chunk = chunk_bytes(self.layout, nodes, world.topology.hosts)
        if wish is not None:
            spec = mapped_memory.spec(self.policy, self.options, self.layout, chunk, self.nbytes)
            mapped = mapped_memory.agree(world, wish, self.options, spec, self._title)
            if mapped is not None:
                return spec, mapped
        spec = _core.ArenaSpec(
            self.policy,
            self.options.window,
            self.layout,
            chunk,
            world.topology.local_ranks if world.node_service is not None else [],
        )
        return spec, None

    def check_open(self) -> None:
        """Raises Error if the ranks that it is of are no world any more, or this is no rank."""
        self._runtime.check_process()
        if self._runtime.end:
            raise errors.Error(self._runtime.end)

    def _begin(self, *, abstains: bool = False) -> None:
        self.check_open()
        self._abstains = abstains
        if self._is_over:
            self._runtime.board.check()
        if self._written_to >= 0:
            self._core.reset_results(self._written_to)
            self._written_to = -1
        self._stall.restart()

    def _record(self, round_: Round) -> None:
        self.stats.add(round_)
        if self._abstains and round_.contributed:
            self.stats.abstained += 1
        self._runtime.went_through(self._call, self)
        if round_.waited_for_window_s > 0.01 and not self._warned_of_window:
            self._warn_of_window(round_)

    def _failed(self, error: BaseException) -> BaseException:
        """The error for the caller, in place of `error`; the other ranks know of it from here on.

        Unless a wrong argument has been refused: then nothing was sent, and nothing is over.
        """
        trace = error.__traceback__
        # What a user's signal handler raises comes with the handler's frame.
        by_handler = trace is None or trace.tb_next is not None
        if isinstance(error, ValueError | TypeError) and not by_handler:
            return error
        return self._told(error)

    def _told(self, error: BaseException) -> BaseException:
        board = self._runtime.board
        self._is_over = True
        if not isinstance(error, errors.Error):
            board.fail(error, f"round {self._core.number} of {self._title}")
            return error
        if board.knows(error):  # from a wait of this call
            return error.with_traceback(None)
        second_hand = isinstance(error, errors.PeerFailed) or board.is_told()
        if second_hand and (reason := board.reason()) is not None:
            return reason  # the first, in its own words
        if isinstance(error, errors.PeerFailed) and "has died" in str(error):
            told = self._seen_by_the_core()
            if told is not None:
                return told
        if self._runtime.where and not str(error).endswith(self._runtime.where):
            error = type(error)(f"{error}{self._runtime.where}")
        board.fail(error)
        return error.with_traceback(None)

    def _patrol(self, interruption: BaseException | None) -> list[int]:
        """What a waiting rank looks at now and then; returns dead ranks.

        An error is on the board before the engine ends the others' waits: they then find its kind.
        """
        try:
            if interruption is None:
                return self._look()
        except BaseException as error:  # noqa: BLE001
            raise self._told(error) from None
        raise self._told(interruption)

    def _look(self) -> list[int]:
        board = self._runtime.board
        board.check()
        board.check_same_call(self._call, self._runtime.rounds)
        if not self._can_be_absent and self.present() < self.quorum:
            self._refuse_absence(sorted(set(board.joined()) & set(self._core.missing())))
        self._stall.look(
            lambda: (
                f"rank {self._runtime.rank}, round {self._core.number} of {self._title}",
                self._core.missing(),
            )
        )
        if dead := board.dead():
            board.check()  # since the last look they may have told why
            raise board.death(dead, lambda: self._death_of(dead))
        return []

    def _seen_by_the_core(self) -> errors.Error | None:
        """A death that the core saw amid a round, in the words of the first rank that tells it.

        A process that ends gives up its memory, which the core reads, before its lock: a large one
        some time before. None if the lock is still held then.
        """
        board = self._runtime.board
        deadline = time.monotonic() + _ENDING_S
        while time.monotonic() < deadline:
            if (told := board.reason()) is not None:
                return told
            if dead := board.dead():
                return board.death(dead, lambda: self._death_of(dead))
            time.sleep(0.002)
        return None

    def last_round(self) -> str:
        """In words: the last round that all ranks are known to have completed."""
        world = self._runtime
        done = min(
            self._core.number, *self._core.progress()
        )  # which is huge for ranks that have left
        whose = "all ranks"
        if world.node_service is not None and self.options.backup_workers == 0:
            done = min(done, max(self._core.number - 1, 0))  # all have arrived in the one after it
        elif world.node_service is not None:
            whose = f"the ranks of rank {world.rank}'s node"  # no more is known of the others
        return phrases.last_round(done, whose, self._title)

    def _death_of(self, dead: list[int]) -> str:
        """What is known of the ranks whose processes have ended."""
        where = f"rank {self._runtime.rank}", f"round {self._core.number} of {self._title}"
        return death(ranks_text(dead), *where, self.last_round())

    def _counts_late_ranks(self) -> bool:
        world = self._runtime
        return world.rank == 0 and self.options.backup_workers > 0 and world.config.late_warning

    def _warn_of_late(self, rank: int, contributed: int, rounds: int) -> None:
        """A rank's share of the rounds is far below chance; see csrc/round/shares.hpp."""
        world, b = self._runtime, self.options.backup_workers
        if rank not in world.board.left():
            share = reports.Share(rank, contributed, rounds)
            log.warning("%s", reports.late_rank(share, b, world.size, self._title) + world.where)

    def _refuse_absence(self, joined: list[int]) -> None:
        if joined:
            raise errors.Mismatch(
                f"{self._title}: round {self._core.number}, rank {self._runtime.rank}: "
                f"{ranks_text(joined)} called join(), and cannot abstain in rounds of this kind; "
                f"{WAY_OUT}"
            )

    def _warn_of_window(self, round_: Round) -> None:
        self._warned_of_window = True
        me = self._runtime.rank
        others = {r: done for r, done in enumerate(self._core.progress()) if r != me}
        slowest = min(others, key=others.__getitem__)
        log.warning(
            "%s", reports.full_window(round_, me, slowest, self.options.window, self._title)
        )


def _total_bytes(layout: Sequence[tuple[str, int]]) -> int:
    return sum(ITEMSIZE[dtype] * count for dtype, count in layout)


def chunk_bytes(layout: Sequence[tuple[str, int]], nodes: int, hosts: int) -> int:
    """Bytes that one helper reduces at a time, or one message has; see docs/measurements.md."""
    nbytes = _total_bytes(layout)
    if nodes == 1:
        return 64 * 1024 if nbytes <= 4 << 20 else 256 * 1024
    most = _EAGER if nodes == hosts else 256 * 1024
    if any(ITEMSIZE[dtype] == 2 for dtype, _ in layout):
        most = most // 2 // 4096 * 4096  # sums of halves travel as float32
    share = -(-nbytes // nodes // 4096) * 4096  # something to own for every node
    return min(max(share, 16 * 1024), most)
