"""What `hvd-backup run --no-mpi` does for the communicators of hvd_backup/world/local_comm.py.

`Exchanges` is pure: messages go in, messages come out. `Hub` has the sockets.
"""

from __future__ import annotations

import contextlib
import hmac
import selectors
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hvd_backup.world.frames import BadFrame, Decoder, Frame, encode


@dataclass
class _Exchange:
    members: tuple[int, ...]  # ranks of the world, in the communicator's order
    parts: dict[int, bytes] = field(default_factory=dict)


class Exchanges:
    """Every member of a communicator gives some bytes, and gets those of all."""

    def __init__(self) -> None:
        self._open: dict[str, _Exchange] = {}
        self._gone: set[int] = set()

    def give(self, rank: int, frame: Frame) -> list[tuple[int, Frame]]:
        """A member's part; returns the messages to send, and to whom. BadFrame for nonsense."""
        tag, members = frame.header.get("tag"), frame.header.get("members")
        if not isinstance(tag, str) or not isinstance(members, list) or rank not in members:
            raise BadFrame(f"rank {rank} sent {frame.header}")
        exchange = self._open.setdefault(tag, _Exchange(tuple(members)))
        if exchange.members != tuple(members) or rank in exchange.parts:
            raise BadFrame(f"rank {rank} sent {frame.header} into an exchange of others")
        exchange.parts[rank] = frame.payload
        return self._look(tag, exchange, {rank})

    def end(self, rank: int) -> list[tuple[int, Frame]]:
        """A rank has ended: nobody shall wait for what it has not given."""
        self._gone.add(rank)
        replies: list[tuple[int, Frame]] = []
        for tag, exchange in list(self._open.items()):
            if rank in exchange.members and rank not in exchange.parts:
                replies += self._look(tag, exchange, set(exchange.parts))
        return replies

    def _look(self, tag: str, exchange: _Exchange, new: set[int]) -> list[tuple[int, Frame]]:
        """Replies: to all when it is complete, to `new` when it cannot be any more."""
        missing = [rank for rank in exchange.members if rank not in exchange.parts]
        if not missing:
            del self._open[tag]
            parts = [exchange.parts[rank] for rank in exchange.members]
            reply = Frame({"tag": tag, "sizes": [len(part) for part in parts]}, b"".join(parts))
            return [(rank, reply) for rank in exchange.members]
        if gone := self._gone.intersection(missing):
            reply = Frame({"tag": tag, "missing": sorted(gone)})
            return [(rank, reply) for rank in sorted(new)]
        return []


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.decoder = Decoder()
        self.rank: int | None = None  # until it has shown the token
        self.out: deque[memoryview] = deque()


class Hub:
    """The ranks' sockets. Belongs to the launcher's selector, whose events it is handed."""

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        size: int,
        selector: selectors.BaseSelector,
        abort: Callable[[int, int], None],
        say: Callable[[str], None],
    ) -> None:
        self._listener = listener
        self._token = token
        self._size = size
        self._selector = selector
        self._abort = abort
        self._say = say
        self._exchanges = Exchanges()
        self._connections: dict[int, _Connection] = {}  # by rank
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def end(self, rank: int) -> None:
        """The rank's process has ended: what it sent last counts, then it is gone."""
        connection = self._connections.get(rank)
        if connection is not None:
            self._handle(connection, selectors.EVENT_READ)
        if (connection := self._connections.pop(rank, None)) is not None:
            self._drop(connection)
        self._send(self._exchanges.end(rank))

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            connection = _Connection(sock)
            self._selector.register(
                sock, selectors.EVENT_READ, lambda events: self._handle(connection, events)
            )

    def _handle(self, connection: _Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(connection)
        if not events & selectors.EVENT_READ:
            return None
        while True:
            try:
                piece = connection.socket.recv(1 << 20)
            except BlockingIOError:
                return None
            except OSError:
                piece = b""
            if not piece and connection.rank is None:
                return self._drop(connection)
            if not piece:
                # Its process may live on, and its end is told by end().
                return self._forget(connection)
            try:
                for frame in connection.decoder.feed(piece):
                    self._take(connection, frame)
            except BadFrame as error:
                self._say(f"closes a connection: {error}")
                return self._drop(connection)

    def _take(self, connection: _Connection, frame: Frame) -> None:
        if connection.rank is None:
            rank, token = frame.header.get("rank"), frame.header.get("token")
            known = isinstance(rank, int) and 0 <= rank < self._size and isinstance(token, str)
            if not known or not hmac.compare_digest(str(token).encode(), self._token.encode()):
                raise BadFrame("a connection without this job's token")
            connection.rank = rank
            self._connections[int(str(rank))] = connection
        elif "abort" in frame.header:
            self._abort(connection.rank, int(frame.header["abort"]))
        else:
            self._send(self._exchanges.give(connection.rank, frame))

    def _send(self, messages: list[tuple[int, Frame]]) -> None:
        for rank, frame in messages:
            if (connection := self._connections.get(rank)) is not None:
                connection.out.append(memoryview(encode(frame)))
                self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.out:
                rest = connection.out[0][connection.socket.send(connection.out[0]) :]
                connection.out.popleft()
                if rest:
                    connection.out.appendleft(rest)
        except BlockingIOError:
            pass
        except OSError:  # it has ended
            connection.out.clear()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        with contextlib.suppress(KeyError, ValueError):  # it is not watched any more
            key = self._selector.get_key(connection.socket)
            if key.events != wanted:
                self._selector.modify(connection.socket, wanted, key.data)

    def _forget(self, connection: _Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)

    def _drop(self, connection: _Connection) -> None:
        self._forget(connection)
        connection.socket.close()
