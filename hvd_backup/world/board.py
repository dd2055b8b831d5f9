"""The notice board: every rank has a status there, which the others read while they wait.

It answers the questions that a wait cannot answer by itself. Has the missing rank died? Has it
left? Is it in another call?

Every node has a board of its own. Its ranks read and write it at once. A status is copied to the
other nodes when its rank tells it, so it comes late there. Therefore a status states only what
stays true, however late it is read: that the rank has waited in this call, after so many set-ups
and rounds.
"""

from __future__ import annotations

import json
import re
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hvd_backup import errors, phrases
from hvd_backup._core import LifeLock, Segment, StatusBoard

# After so many seconds in one call a rank tells the other nodes which call it is. Set-ups are told
# sooner: they are rarer than rounds, and a rank that waits in a round for one that is in a set-up
# learns of it in no other way.
TELL_AFTER_S = 1.0
TELL_SETUP_AFTER_S = 0.05

_TEXT = 940  # bytes of each of the two texts in a status, which has numbers as well
_KIND = 32
_WHEN = 300

_SETUP, _ROUND, _JOINED = "set-up", "round", "joined"

# Errors that keep their class on the other ranks, and the beginning of texts that a rank passes on.
_OURS = ("Mismatch", "RoundTimeout", "PeerFailed")
_OF_ANOTHER = re.compile(r"rank \d+ (failed(:| with )|is in )")

# Seconds for the first failing rank of a node to write its failure. If it takes longer, it died.
_WRITING_S = 1.0
# Seconds for the text of a dead rank's node, which sees the death first, to reach other nodes.
_TELLING_S = 0.5

# How many changes from one collective to another a rank remembers.
_CHANGES = 256

_AGAIN = " (this failure was told before; all ranks: shutdown(), then init(), to go on)"
_SAME_CALLS = (
    "every rank must make the same calls, in the same order, with the same names, shapes, dtypes "
    "and options"
)


class Status(NamedTuple):
    """What a rank tells the others of itself."""

    setups: int = 0  # how many set-ups it had completed when it came to the call below
    rounds: int = 0  # how many rounds it had completed, of all collectives together
    doing: str = ""  # the kind of that call: set-up, round or join(); empty after a set-up
    call: str = ""
    failure: str = ""  # class of the error with which it failed
    text: str = ""
    visit: str = ""  # which wait for the other ranks of a process set it came to last


class Hosts(NamedTuple):
    """Where the ranks are, for errors."""

    names: Sequence[str]  # of every rank's host
    timeout: float  # seconds after which a host that does not answer counts as dead


class Board:
    """One rank's view of its node's board.

    `segment` is shared by the node's ranks `local`; zeros are a valid board. `ring` wakes the
    service, which copies statuses to other nodes.
    """

    is_part = False

    @staticmethod
    def bytes(world: int) -> int:
        return StatusBoard.bytes(world)

    def __init__(
        self,
        segment: Segment,
        world: int,
        rank: int,
        local: Sequence[int],
        ring: Callable[[], None] | None = None,
        hosts: Hosts | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._statuses = StatusBoard(segment, world)
        self._life = LifeLock(segment, local, rank)
        self._rank = rank
        self._ring = ring
        self._hosts = hosts
        self._clock = clock
        self._world = world
        self._local = frozenset(local)
        self._seen: dict[int, Status] = {}  # statuses that this node has got, as of the last look
        self._failures: dict[int, Status] = {}  # those that have failed
        self._mine = Status()
        self._changes: deque[tuple[int, str]] = deque(maxlen=_CHANGES)
        self._absent = False
        self._here = ("", 0, "")  # the call of this rank, in full
        self._since = 0.0  # when it came there
        self._met: set[int] = set()  # ranks of this node seen in a set-up since it came there
        self._untold = False  # other nodes have not been told that it is there
        self._told = False  # this rank has raised the failure, or is about to
        self._known: weakref.ref[errors.Error] | None = None  # the last error raised or told
        self.last_round: Callable[[], str] = str
        """In words: the last round that all ranks are known to have completed; empty for none."""

    @property
    def rank(self) -> int:
        return self._rank

    def enter_setup(self, text: str, rounds: int) -> None:
        """Note that this rank, after `rounds` rounds, sets up `text` together with all others."""
        self._come_to(_JOINED if self._absent else _SETUP, rounds, text)

    def be_absent(self, *, absent: bool) -> None:
        """From ``join()`` on this rank goes through rounds in the order in which it learns of them.

        So until all ranks have joined, it compares no calls. Others do not wait for its word.
        """
        self._absent = absent
        if not absent:
            self._changes.clear()

    def joined(self) -> list[int]:
        """Ranks that have joined, while others go on."""
        self._look()
        setups = self._mine.setups  # who has been through more has seen the end of it
        return [
            rank
            for rank, status in sorted(self._seen.items())
            if status.doing == _JOINED and status.setups == setups
        ]

    def finish_setup(self) -> None:
        self._here = ("", 0, "")
        self._untold = False
        self._write(self._mine._replace(setups=self._mine.setups + 1, doing="", call=""))

    def visit(self, visit: str, call: str) -> None:
        """Note that this rank waits for the others of a process set, in `call`.

        That is no set-up: ranks that are not in the set go on. `visit` is 40 bytes at most.
        """
        self._here = ("", 0, call)
        self._since = self._clock()
        self._untold = True
        self._write(self._mine._replace(visit=visit))

    def not_visiting(self, visit: str, ranks: Sequence[int]) -> list[int]:
        """Those of the set's ranks that have not come to wait this time."""
        self._look()
        return [r for r in ranks if r not in self._seen or self._seen[r].visit != visit]

    def leave(self) -> None:
        """This rank ends in good order: its process may go."""
        self._statuses.set_left(self._rank)
        self._tell(self._rank)

    def fail(self, error: BaseException, during: str = "") -> None:
        """Let the others' waits end with this rank's error, unless it knows of an earlier one.

        `during` says in words which call it has ended, if the error does not.
        """
        self._told = True
        if isinstance(error, errors.Error):
            self._known = weakref.ref(error)
        if self._is_first_failure():
            self._write_failure(error, during)

    def death(self, dead: Sequence[int], text: Callable[[], str]) -> errors.Error:
        """The error for this rank to raise, as these ranks have died; the others know of it then.

        Several ranks see a death at the same time. All raise the text of the first that tells it.
        """
        return self._tell_once(text, self._wait_for_others(dead))

    def _wait_for_others(self, dead: Sequence[int]) -> float:
        """Seconds in which another node, which knows more of the death, may tell it."""
        if self._local.issuperset(dead):
            return 0
        alive = set(range(self._world)) - set(dead) - set(self.left())
        return _TELLING_S if min(alive) in self._local else 2 * _TELLING_S

    def _tell_once(self, text: Callable[[], str], wait: float) -> errors.Error:
        deadline = time.monotonic() + wait
        self._look()
        while not self._failures and time.monotonic() < deadline:
            time.sleep(2e-3)
            self._look()
        if not self._is_first_failure() and (reason := self.reason()) is not None:
            return reason
        error = errors.PeerFailed(text())
        self._told = True
        self._known = weakref.ref(error)
        self._write_failure(error, "")
        return error

    def _is_first_failure(self) -> bool:
        """Whether no rank has told a failure before. Then this one must tell its own."""
        self._look()
        if not self._failures and not self._statuses.claim():
            deadline = time.monotonic() + _WRITING_S
            while not self._failures and time.monotonic() < deadline:
                time.sleep(1e-3)
                self._look()
        return not self._failures

    def _write_failure(self, error: BaseException, during: str) -> None:
        kind = _cut(type(error).__name__, _KIND)
        text = ", in ".join(filter(None, (str(error), during)))
        when = "" if kind in _OURS else _cut(f" ({phrases.moment(self.last_round())})", _WHEN)
        text = _cut(text, _TEXT - len(_json(when))) + when
        self._write(self._mine._replace(failure=kind, text=text))
        self._tell(self._rank)

    def check(self) -> None:
        """Raise what a rank has failed with, in this rank's words."""
        if (reason := self.reason()) is not None:
            raise reason

    def reason(self) -> errors.Error | None:
        """What ``check()`` would raise."""
        self._look()
        if not self._failures:
            return self._silent_hosts()
        rank = min(self._failures)  # if several failed at once, the same one on every rank
        kind, text = self._failures[rank].failure, self._failures[rank].text
        again = _AGAIN if self._told else ""
        self._told = True
        error = self._retold(rank, kind, text, again)
        self._known = weakref.ref(error)
        return error

    def _retold(self, rank: int, kind: str, text: str, again: str) -> errors.Error:
        """An error that a rank has failed with, as this one is to read it: its cause named once."""
        if kind == "PeerFailed":  # which names the rank that was the first
            return errors.PeerFailed(text + again)
        if kind in _OURS:
            is_whole = rank == self._rank or _OF_ANOTHER.match(text)
            of_kind: type[errors.Error] = getattr(errors, kind)
            return of_kind((text if is_whole else f"rank {rank} failed: {text}") + again)
        what = f"{kind}{'' if text.startswith(' (') else ': '}{text}"
        if rank == self._rank:
            return errors.Error(
                f"rank {rank}: an earlier call was ended by {what}; it cannot be taken up again, "
                f"and the other ranks raise PeerFailed{again}"
            )
        return errors.PeerFailed(phrases.failure(rank, what) + again)

    def _silent_hosts(self) -> errors.PeerFailed | None:
        silent = self._statuses.silent()
        if not silent or self._hosts is None:
            return None
        names = sorted({self._hosts.names[rank] for rank in silent})
        self._told = True
        error = errors.PeerFailed(
            f"{' and '.join(names)}, with rank{'s' if len(silent) > 1 else ''} "
            f"{', '.join(map(str, silent))}, did not answer for {self._hosts.timeout:g} s: the "
            "host is down, or the network to it; start again from the last checkpoint, or raise "
            "HVD_BACKUP_HOST_TIMEOUT"
        )
        self._known = weakref.ref(error)
        return error

    def knows(self, error: BaseException) -> bool:
        """Whether `check()` has raised this very error, or `fail()` has told it."""
        return self._known is not None and self._known() is error

    def not_told(self, error: BaseException) -> None:
        """What `check()` has raised ends no call: the next one is the first to tell it."""
        if self.knows(error):
            self._told = False

    def is_told(self) -> bool:
        """Whether this rank knows of a failure already."""
        return self._told

    def dead(self) -> list[int]:
        """Ranks whose process has ended without leaving. The other nodes are told of this one's."""
        ended = self._life.dead()
        left = set(self._statuses.left())  # asked after `ended`: a rank leaves before it ends
        known = set(self._statuses.dead())
        for rank in set(ended) - left - known:
            self._statuses.set_dead(rank)
            self._tell(rank)
        return sorted(known.union(ended) - left)

    def cut_off(self) -> list[int]:
        """Ranks of other nodes of which nothing is heard any more."""
        return self._statuses.cut_off()

    def left(self) -> list[int]:
        return self._statuses.left()

    def has_timed_out(self) -> bool:
        """Whether the failure is a wait that was over: some rank has been missing for long."""
        self._look()
        return any(
            status.failure == errors.RoundTimeout.__name__ for status in self._failures.values()
        )

    def not_left(self) -> list[int]:
        return sorted(set(range(self._world)) - set(self.left()))

    def not_here(self) -> list[int]:
        """Ranks that are not yet in the set-up this rank is in."""
        self._look()
        mine = self._mine.setups
        here = {
            rank
            for rank, status in self._seen.items()
            if status.setups > mine or (status.setups == mine and status.doing in (_SETUP, _JOINED))
        }
        return sorted(set(range(self._world)) - here)

    def changes_to(self, call: str, rounds: int) -> None:
        """Note that this rank, after `rounds` rounds, has been through one of `call`."""
        self._changes.append((rounds, _cut(call, _TEXT)))

    def check_same_rounds(self) -> None:
        """While this rank waits, in whatever call.

        Raises Mismatch if another rank waits in a round that was one of another collective here.
        """
        if self._absent:
            return
        self._look()
        for rank, status in sorted(self._seen.items()):
            if status.doing != _ROUND or status.rounds >= self._mine.rounds:
                continue
            been = self._been_in(status.rounds)
            if been and been != status.call:
                raise errors.Mismatch(
                    f"rank {self._rank} is in {self._here[2]} after {been}, rank {rank} in "
                    f"{status.call}; {_SAME_CALLS}{self._have_joined()}"
                )

    def _have_joined(self) -> str:
        """The end of a text, if some ranks have joined: then they may be the cause."""
        joined = self.joined()
        return f"; {phrases.ranks_have(joined)} called join()" if joined else ""

    def still_waiting(self) -> None:
        """This rank is still in the call that it has noted. To be called while waiting.

        The other nodes are told only now, if it has waited for long: while all goes well, nothing
        is sent.
        """
        if not self._untold:
            return
        after = TELL_SETUP_AFTER_S if self._mine.doing in (_SETUP, _JOINED) else TELL_AFTER_S
        if self._clock() - self._since >= after:
            self._untold = False
            self._tell(self._rank)

    def check_same_call(self, mine: str, rounds: int) -> None:
        """While this rank waits in a round of `mine`, after `rounds` rounds of any collective.

        Raises Mismatch if another rank waits elsewhere. To be called while waiting, each time after
        a look whether the wait is over.
        """
        if self._absent or self._mine.doing == _SETUP:
            return
        came = self._come_to(_ROUND, rounds, mine)
        self.still_waiting()
        self._look()
        me = self._mine
        for rank, status in sorted(self._seen.items()):
            # All ranks go through the same rounds, so that the n-th is one of the same collective.
            other_round = (
                status.doing == _ROUND and status.rounds == rounds and status.call != me.call
            )
            # After as many set-ups as this rank, it has come to one before the round this rank is
            # in. (If it had been through this round, it would only be ahead.) A round that needs
            # no more than the others is not stopped for it: they learn more when all meet.
            in_setup = status.doing == _SETUP and status.setups == me.setups
            other_setup = in_setup and status.rounds <= rounds and not came
            # What a rank of this node has been through, this rank can load: had it been through
            # this round, whatever the number it has come to, there would be no second look.
            stays = rank in self._met
            if in_setup and rank in self._local:
                self._met.add(rank)
            if other_round or other_setup or stays:
                raise errors.Mismatch(
                    f"rank {self._rank} is in {mine}, rank {rank} in {status.call}; {_SAME_CALLS}"
                    f"{self._have_joined()}"
                )
        self.check_same_rounds()

    def _been_in(self, number: int) -> str:
        """Of which collective this rank's round of that number was; empty if not known any more."""
        calls = (call for first, call in reversed(self._changes) if first <= number)
        return next(calls, "")

    def _come_to(self, doing: str, rounds: int, call: str) -> bool:
        """Note the call that this rank is in. False if it was there before."""
        if self._here == (doing, rounds, call):
            return False
        self._here = (doing, rounds, call)
        self._met.clear()
        self._since = self._clock()
        self._untold = True
        self._write(self._mine._replace(rounds=rounds, doing=doing, call=_cut(call, _TEXT)))
        return True

    def _write(self, status: Status) -> None:
        self._mine = status
        self._statuses.write(self._rank, _json(status))

    def _tell(self, rank: int) -> None:
        self._statuses.tell(rank)
        if self._ring is not None:
            self._ring()

    def _look(self) -> None:
        for rank in self._statuses.written():
            # Empty when another node's rank has told that it leaves before anything else.
            status = Status(*json.loads(self._statuses.read(rank) or "[]"))
            self._seen[rank] = status
            if status.failure:
                self._failures[rank] = status


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _json(value: object) -> bytes:
    return _ENCODER.encode(value).encode()


def _cut(text: str, most: int) -> str:
    """The first part of a text, whose JSON, without the quotes, has at most so many bytes."""
    text = text.encode(errors="replace")[:most].decode(errors="ignore")
    while (excess := len(_json(text)) - 2 - most) > 0:
        text = text[: -max(1, excess // 6)]  # a character has at most six: \u0000
    return text
