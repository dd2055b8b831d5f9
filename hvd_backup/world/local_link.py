"""A rank's connection to the launcher, ``hvd-backup run --no-mpi``."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import weakref
from collections.abc import Callable, Iterator

from hvd_backup import errors
from hvd_backup.world import frames, launch
from hvd_backup.world.frames import Frame


class Link:
    """This process's socket to the launcher. Several threads may wait for replies.

    A forked child does not have it: it must not keep its parent's connection open.
    """

    def __init__(self, path: str, token: str, rank: int) -> None:
        self.rank = rank
        self.look: Callable[[], None] = lambda: None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            raise errors.LaunchError(
                f"rank {rank} cannot reach {launch.LOCAL} at {path}: {error}; has it ended?"
            ) from None
        self._decoder = frames.Decoder()
        self._replies: dict[str, Frame] = {}
        self._reading, self._writing = threading.Lock(), threading.Lock()
        _links.add(self)
        self.send(Frame({"token": token, "rank": rank}))

    def close(self) -> None:
        self._socket.close()

    def send(self, frame: Frame) -> None:
        with self._writing, self._naming_the_launcher():
            self._socket.sendall(frames.encode(frame))

    def take(self, tag: str, timeout: float) -> Frame | None:
        """The reply to what was sent with this tag; None if it is not there within `timeout` s."""
        with self._reading:
            if tag not in self._replies and select.select([self._socket], [], [], timeout)[0]:
                with self._naming_the_launcher():
                    piece = self._socket.recv(1 << 20)
                    if not piece:
                        raise ConnectionResetError("it has closed the connection")
                for frame in self._decoder.feed(piece):
                    self._replies[frame.header["tag"]] = frame
            return self._replies.pop(tag, None)

    @contextlib.contextmanager
    def _naming_the_launcher(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.PeerFailed(
                f"rank {self.rank} has lost {launch.LOCAL}, which started it: {error}"
            ) from None


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _close_in_child() -> None:
    for link in list(_links):
        link.close()


os.register_at_fork(after_in_child=_close_in_child)
