"""The table in which ranks register calls, and do those that all ranks have registered.

As in Horovod, calls are matched by their names, in whatever order a rank makes them. Nothing runs
in the background. A rank registers a call by ``add``. When a rank waits for one (``complete``), it
meets all other ranks. Then all do the calls that each of them has registered, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from hvd_backup import errors
from hvd_backup.phrases import QUOTE, quote_groups, ranks_have, ranks_text
from hvd_backup.world import wire

JOIN = "join"
MEET = "meet"  # before what all ranks set up together
_CAN_JOIN = "allreduce"
WAY_OUT = (
    "give every rank the same number of steps: steps = hvd.allreduce(<this rank's batches>, "
    "op=Max), and abstain with optimizer.weight = 0 in those for which it has no data"
)
_NO_SET_UP = (
    "{} cannot be set up: {} called join() before. Let every rank make one step before any calls "
    "join(), and begin with no new optimizer until all have; or " + WAY_OUT
)


class Entry(NamedTuple):
    """What the others are told of a call."""

    name: str
    kind: str
    call: str  # in words
    signature: str  # what else must be the same
    awaited: bool  # this rank does nothing else before it is done


class Operation:
    """A call that all ranks of a set make, under one name; a handle to it, too.

    `call`, in words, and `signature` must be the same on every rank. `run` does it when all are
    there; what it returns is the result.
    """

    def __init__(
        self,
        kind: str,
        call: str,
        run: Callable[[wire.Channel], Any],
        *,
        name: str | None = None,
        signature: Any = None,
    ) -> None:
        self.kind = kind
        self.call = call
        self.name = name or ""
        self.signature = "" if signature is None else repr(signature)
        self.table: Table | None = None
        self.since = time.monotonic()
        self.done = False
        self.taken = False
        """Whether somebody has got the result."""
        self._run: Callable[[wire.Channel], Any] | None = run
        self._result: Any = None
        self._error: Exception | None = None

    def entry(self, *, awaited: bool) -> Entry:
        return Entry(self.name, self.kind, self.call, self.signature, awaited)

    def run(self, channel: wire.Channel) -> None:
        """Do it. What it raises, ``result`` raises: who meets the others may wait for another."""
        assert self._run is not None
        try:
            self._result = self._run(channel)
        except Exception as error:  # noqa: BLE001
            self._error = error
        self._finish()

    def fail(self, text: str) -> None:
        self._error = errors.Mismatch(text)
        self._finish()

    def drop(self, error: BaseException) -> None:
        """It will never be done: a wait for it has ended with that error."""
        if not isinstance(error, Exception):  # Ctrl-C is told once
            error = errors.Error(f"{self.call}: {type(error).__name__} ended the wait for it")
        self._error = error
        self._finish()

    def _finish(self) -> None:
        self.done, self._run = True, None  # which holds the arrays

    def result(self) -> Any:
        """Raises Mismatch if the ranks disagreed. Once only: the operation forgets it."""
        result, self._result, self.taken = self._result, None, True
        if self._error is not None:
            raise self._error
        return result


class Participants(Protocol):
    """The ranks of a table, and how to wait for them."""

    def gate(
        self, call: str, timeout: float | None, meanwhile: Callable[[], bool] | None = None
    ) -> None:
        """Wait until all ranks are here, and do what else there is.

        Raises RoundTimeout, PeerFailed, Mismatch.
        """

    def limit(self, timeout: float | None) -> float:
        """Seconds that a wait may take in all."""

    def give_up(self, error: BaseException) -> None:
        """Let the others' waits end with this error, too."""

    def leave_gate(self) -> None:
        """All have told one another what they came for."""

    def rounds(self) -> int:
        """What all ranks must have been through: rounds of all exchanges."""


class Absent(Protocol):
    """What a rank that has joined does in the others' rounds; see ``hvd_backup.rounds.absence``."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
    def attend(self) -> bool: ...
    def facts(self) -> Any: ...
    def settle(self, everybody: Sequence[Any], latest: set[int]) -> int: ...


class Observer(Protocol):
    """Who is told of calls that were done, at what times (``time.monotonic``)."""

    def record(self, operation: Operation, began: float, ended: float) -> None: ...
    def close(self) -> None: ...


class Decision(NamedTuple):
    """What becomes of the calls that lie there; the same on every rank."""

    run: list[str]
    failed: dict[str, str]
    stuck: str = ""  # why no rank's awaited call will ever be done


class Table:
    """The calls that one process has registered for one set of ranks."""

    def __init__(
        self, participants: Participants, channel: wire.Channel, ranks: Sequence[int]
    ) -> None:
        self.channel = channel
        self.ranks = list(ranks)
        """Of the world; position in the list is the rank in the set."""
        self._participants = participants
        self._pending: dict[str, Operation] = {}
        self._unnamed = 0  # calls without a name, so far
        self._joined: set[int] = set()
        self._zeros: Callable[[str, wire.Channel], None] | None = None
        self._absent: Absent | None = None
        self.observer: Observer | None = None

    def stop_observing(self) -> None:
        """Close the observer, if there is one."""
        if self.observer is not None:
            self.observer.close()
            self.observer = None

    def add(self, operation: Operation) -> Operation:
        """Register a call. Raises ValueError if one of that name is registered."""
        if not operation.name:
            self._unnamed += 1
            operation.name = f"{operation.kind}.noname.{self._unnamed}"
        if operation.name in self._pending:
            raise ValueError(
                "Requested to allreduce, allgather, or broadcast a tensor with the same name as "
                "another tensor that is currently being processed.  If you want to request another "
                f"tensor, use a different tensor name. (The name is {operation.name!r}; "
                "synchronize() frees it.)"
            )
        operation.table = self
        self._pending[operation.name] = operation
        return operation

    def complete(self, operation: Operation, timeout: float | None = None) -> Any:
        """Wait until it is done, doing all other calls that are due. Returns its result."""
        limit = self._participants.limit(timeout)
        deadline = time.monotonic() + limit
        try:
            while not operation.done:
                if time.monotonic() > deadline:
                    self._give_up(operation, limit)
                self._meet(operation, limit)
                if operation.kind == JOIN:  # others go on, for as long as they have data
                    deadline = time.monotonic() + limit
        except BaseException as error:
            operation.drop(error)
            raise
        finally:
            self._pending.pop(operation.name, None)
        return operation.result()

    def _give_up(self, operation: Operation, limit: float) -> None:
        """All ranks come, but some never to this call."""
        error = errors.RoundTimeout(
            f"{operation.call}: not called by all ranks within {limit:g} s, while all wait for "
            "something; every rank must make the same calls; raise timeout= or HVD_BACKUP_TIMEOUT"
        )
        self._participants.give_up(error)
        raise error

    def look(self, operation: Operation) -> bool:
        """Meet the others once, if it is not done yet. Whether it is done now."""
        if not operation.done:
            self._meet(None, None)
        return operation.done

    def join(self, zeros: Callable[[str, wire.Channel], None], absent: Absent) -> int:
        """Take part in the others' all-reduces and rounds until they have joined, too.

        ``zeros(signature, channel)`` is this rank's part in an all-reduce, `absent` that in rounds.
        The rank that came last.
        """
        operation = Operation(
            JOIN, "join()", lambda channel: self._end_join(channel, absent), name=JOIN
        )
        self._zeros, self._absent = zeros, absent
        try:
            with absent:
                last: int = self.complete(self.add(operation))
        finally:
            self._zeros = self._absent = None
            self._joined.clear()
        return last

    def _end_join(self, channel: wire.Channel, absent: Absent) -> int:
        """The rank that came last. Ranks with fewer calls count on from where the others are."""
        everybody = channel.comm.allgather((self._unnamed, absent.facts()))
        self._unnamed = max(unnamed for unnamed, _ in everybody)
        latest = set(range(len(self.ranks))) - self._joined
        return self.ranks[absent.settle([facts for _, facts in everybody], latest)]

    def _meet(self, awaited: Operation | None, timeout: float | None) -> None:
        meanwhile = self._absent.attend if self._absent is not None else None
        self._participants.gate(awaited.call if awaited else "poll()", timeout, meanwhile)
        try:
            self._act(awaited)
        except errors.Error:
            raise
        except BaseException as error:  # a signal handler's: the ranks' calls match no more
            self._participants.give_up(error)
            raise

    def _act(self, awaited: Operation | None) -> None:
        """All ranks are here: find out which calls all have registered, and do them."""
        mine = [op.entry(awaited=op is awaited) for op in self._pending.values()]
        rounds = self._participants.rounds()
        told = repr((rounds, [entry[:-1] for entry in mine])).encode()
        if wire.same_everywhere(self.channel, told):
            self._participants.leave_gate()
            self._do(Decision([entry.name for entry in mine], {}), {})
            return
        everybody: list[tuple[int, list[Entry]]] = self.channel.comm.allgather((rounds, mine))
        self._participants.leave_gate()
        decision = decide(everybody, self.ranks)
        if decision.stuck and awaited is not None:
            awaited.fail(decision.stuck)
            return
        if decision.stuck:
            raise errors.Mismatch(decision.stuck)
        entries = {entry.name: entry for _, list_ in everybody for entry in list_}
        self._do(decision, entries)
        # After what all did: who joins last is not among those that came before.
        self._joined = {r for r, (_, list_) in enumerate(everybody) if _has_joined(list_)}

    def _do(self, decision: Decision, entries: dict[str, Entry]) -> None:
        for name, text in decision.failed.items():
            if name in self._pending:
                self._pending.pop(name).fail(text)
            elif entries[name].kind == MEET and JOIN in self._pending:  # the others cannot go on
                self._pending.pop(JOIN).fail(text)
        for name in decision.run:
            operation = self._pending.pop(name, None)
            if operation is not None:
                began = time.monotonic()
                operation.run(self.channel)
                if self.observer is not None:
                    self.observer.record(operation, began, time.monotonic())
            elif self._zeros is not None:
                self._zeros(entries[name].signature, self.channel)


def decide(everybody: Sequence[tuple[int, Sequence[Entry]]], ranks: Sequence[int]) -> Decision:
    """Which registered calls are done, of the ranks `ranks` of the world and their rounds."""
    lists = [{entry.name: entry for entry in entries} for _, entries in everybody]
    here = [i for i, (_, entries) in enumerate(everybody) if not _has_joined(entries)]
    active = here or list(range(len(lists)))
    have = [ranks[i] for i in range(len(lists)) if i not in active]
    note = f"; {ranks_have(have)} called join()" if have else ""
    if len({everybody[i][0] for i in here}) > 1:  # a rank that has joined catches up in the end
        return Decision([], {}, _disagree(everybody, ranks) + note)
    run, failed = [], {}
    for name in lists[active[0]]:
        theirs = {i: lists[i][name] for i in range(len(lists)) if name in lists[i]}
        if not set(active) <= set(theirs):
            continue
        if len({(e.kind, e.call, e.signature) for e in theirs.values()}) > 1:
            failed[name] = "the ranks disagree: " + quote_groups(
                [entry.call for entry in theirs.values()], [ranks[i] for i in theirs]
            )
            failed[name] += note
        elif have and lists[active[0]][name].kind != _CAN_JOIN:
            kind = lists[active[0]][name].kind
            failed[name] = (
                _NO_SET_UP.format(lists[active[0]][name].call[:QUOTE], ranks_text(have))
                if kind == MEET
                else f"{kind.capitalize()} is not supported with Join at this time. "
                f"({ranks_text(have)} called join(); an allreduce is supported.)"
            )
        else:
            run.append(name)
    if not run and not failed and all(any(e.awaited for e in list_) for _, list_ in everybody):
        return Decision([], {}, _disagree(everybody, ranks) + note)
    return Decision(run, failed)


def _has_joined(entries: Sequence[Entry]) -> bool:
    return any(entry.kind == JOIN for entry in entries)


def _disagree(everybody: Sequence[tuple[int, Sequence[Entry]]], ranks: Sequence[int]) -> str:
    same_rounds = len({rounds for rounds, _ in everybody}) == 1
    calls, names = [], []
    for rounds, entries in everybody:
        awaited = next((entry for entry in entries if entry.awaited), None)
        call = awaited.call if awaited else "poll()"
        calls.append(f"{call}{'' if same_rounds else f' after {rounds} rounds'}")
        names.append(awaited.name if awaited else call)
    if len(set(calls)) == 1:
        return (
            f"all ranks wait in {calls[0][:QUOTE]}, but not in the same one: "
            f"{quote_groups(names, ranks)}; calls without a name are matched by their number, so "
            "some ranks have made more of them: every rank must make the same calls"
        )
    return "the ranks disagree: " + quote_groups(calls, ranks)
