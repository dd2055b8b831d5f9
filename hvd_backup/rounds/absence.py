"""What a rank that has called ``join()`` does in the rounds that other ranks open meanwhile.

It abstains in each, with weight 0 and without computing, as soon as another rank has arrived in it:
never before, so that ranks without data seal no round among themselves. When all have joined, it
goes through what it has missed, and takes over the replicas of the rank that went furthest.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

from hvd_backup import errors
from hvd_backup.phrases import ranks_text
from hvd_backup.rounds.reports import Round, Stats
from hvd_backup.world.board import Board
from hvd_backup.world.table import WAY_OUT, Table
from hvd_backup.world.wire import Channel


class Replicas(Protocol):
    """What an exchange's rounds keep equal on all ranks: a model and the state of its optimizer.

    It holds neither: they may be gone on this rank, though other ranks still go through rounds.
    """

    def is_gone(self) -> bool:
        """Whether this rank will never begin a round of the exchange again."""

    def keep_gradients(self) -> None:
        """What user code has of the last result stays as it is: its memory will be used again."""

    def take_over(self, channel: Channel, root: int) -> None:
        """Become what `root` has. All ranks of the channel call it together."""


class Attended(Protocol):
    """An exchange, as one that is absent sees it."""

    stats: Stats

    @property
    def replicas(self) -> Replicas | None: ...
    @property
    def number(self) -> int: ...
    @property
    def quorum(self) -> int: ...
    def present(self) -> int: ...
    def arrive(self, weight: float) -> bool: ...
    def wait(self) -> Round: ...
    def close(self) -> None: ...


class World(Protocol):
    """A ``Runtime``, as one that is absent sees it."""

    rounds: int
    board: Board
    table: Table

    @property
    def parts(self) -> Mapping[int, Any]: ...
    @property
    def sets(self) -> Mapping[int, Table]: ...
    @property
    def attended(self) -> Mapping[int, Attended]: ...
    @property
    def plans(self) -> MutableMapping[Any, Attended]: ...
    @property
    def comm(self) -> Any: ...


def close_what_is_gone(world: World) -> None:
    """Close the exchanges whose replicas are gone on all ranks, which call it together.

    When Python collects them differs between ranks, and one that has joined may be needed for the
    others' rounds. So they are not closed before.
    """
    gone = {
        number
        for number, exchange in world.attended.items()
        if exchange.replicas is not None and exchange.replicas.is_gone()
    }
    for number in sorted(set.intersection(*world.comm.allgather(gone))):
        world.attended[number].close()


# A process set's number (0: all ranks), and which exchange of its world.
Key = tuple[int, int]


class Stand(NamedTuple):
    """How far a rank has come in an exchange, in rounds."""

    at_join: int
    now: int


class Facts(NamedTuple):
    """What a rank tells the others when all have joined."""

    at_join: int  # rounds of all exchanges of the world
    now: int
    stands: dict[Key, Stand]


class _Seat:
    """This rank's place in one exchange."""

    def __init__(self, exchange: Attended) -> None:
        self.exchange = exchange
        self.at_join = exchange.number
        self._arrived = False

    def attend(self) -> bool:
        """Make one step, if there is one. Waits for no rank that computes."""
        present = self.exchange.present()
        if not self._arrived:
            if present:
                self._abstain()
            return present > 0
        if present < self.exchange.quorum:
            return False
        self._finish()
        return True

    def catch_up(self, number: int) -> None:
        """Go through all rounds before `number`, which other ranks have been through."""
        while self.exchange.number < number:
            if not self._arrived:
                self._abstain()
            self._finish()

    def _abstain(self) -> None:
        if self.exchange.number == self.at_join and self.exchange.replicas is not None:
            self.exchange.replicas.keep_gradients()
        self.exchange.arrive(0.0)
        self._arrived = True

    def _finish(self) -> None:
        self.exchange.wait()
        self._arrived = False


class Absence:
    """From this rank's ``join()`` until all ranks have joined. A context."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._worlds: dict[int, World] = {0: world, **world.parts}
        self._at_join = world.rounds
        self._seats = {
            (number, which): _Seat(exchange)
            for number, one in sorted(self._worlds.items())
            for which, exchange in sorted(one.attended.items())
        }

    def __enter__(self) -> None:
        for world in self._worlds.values():
            world.board.be_absent(absent=True)

    def __exit__(self, *_: object) -> None:
        for world in self._worlds.values():
            world.board.be_absent(absent=False)

    def attend(self) -> bool:
        """Make a step in every exchange that has one. False if there was nothing to do."""
        steps = [seat.attend() for seat in self._seats.values()]
        return any(steps)

    def facts(self) -> Facts:
        stands = {
            key: Stand(seat.at_join, seat.exchange.number) for key, seat in self._seats.items()
        }
        return Facts(self._at_join, self._world.rounds, stands)

    def settle(self, everybody: Sequence[Facts], latest: set[int]) -> int:
        """All ranks have joined: let them be equal again. The rank that came last.

        `everybody` is what the ranks of the world have told, and `latest` are those that did not
        join before others made a call. Of these the one with the most rounds is the last. Raises
        Mismatch, on every rank, if there were rounds in which no rank can be absent.
        """
        self._check(everybody)
        stands: dict[Key, dict[int, Stand]] = {}
        for rank, facts in enumerate(everybody):
            for key, stand in facts.stands.items():
                stands.setdefault(key, {})[rank] = stand
        for key, seat in self._seats.items():
            seat.catch_up(max(stand.now for stand in stands[key].values()))
        moved = {
            key: theirs
            for key, theirs in sorted(stands.items())
            if len({stand.at_join for stand in theirs.values()}) > 1
        }
        for key, theirs in moved.items():
            if key in self._seats:
                root = max(theirs, key=lambda rank: (theirs[rank].at_join, rank in latest, rank))
                self._take_over(key, root)
        if moved:  # in which order plans were used last is not the same on all ranks any more
            for plan in self._world.plans.values():
                plan.close()
            self._world.plans.clear()
        return max(latest, key=lambda rank: (everybody[rank].at_join, rank))

    def _take_over(self, key: Key, root: int) -> None:
        replicas = self._seats[key].exchange.replicas
        if replicas is not None:
            ranks = self._world.sets[key[0]].ranks
            replicas.take_over(self._worlds[key[0]].table.channel, ranks.index(root))

    def _check(self, everybody: Sequence[Facts]) -> None:
        ends: dict[Key, int] = {}
        for facts in everybody:
            for key, stand in facts.stands.items():
                ends[key] = max(stand.now, ends.get(key, 0))
        totals = [
            facts.now
            + sum(ends[key] - stand.now for key, stand in facts.stands.items() if not key[0])
            for facts in everybody
        ]
        if len(set(totals)) > 1:
            behind = [rank for rank, total in enumerate(totals) if total < max(totals)]
            raise errors.Mismatch(
                f"{ranks_text(behind)} called join() while others went on in rounds that no rank "
                "can be absent from (of a TensorFlow or Keras optimizer, or a DDP hook); "
                f"{WAY_OUT}"
            )
