"""`hvd-backup run --no-mpi`: ranks on this host, without an MPI.

One thread: it starts the ranks, hands on what they print, brings their communicators together
(hub.py), passes signals on, and sees to it that none of them outlives the others' failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from hvd_backup.cluster.hub import Hub
from hvd_backup.world import launch

_LINE = 64 * 1024  # bytes of a line that are handed on before its end
_DRAIN_S = 0.5  # how long output is read that a rank's children hold open after its end
_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)


def environment(environ: Mapping[str, str], rank: int, size: int) -> dict[str, str]:
    """What a rank finds in its environment, but for the way to the launcher."""
    return {
        "PYTHONUNBUFFERED": "1",  # a pipe; what is printed should be seen
        **environ,
        launch.LOCAL_RANK: str(rank),
        launch.LOCAL_SIZE: str(size),
    }


def exit_status(returncode: int) -> int:
    """A shell's word for how a process ended: its status, or 128 and the signal."""
    return returncode if returncode >= 0 else 128 - returncode


def ending(rank: int, returncode: int) -> str:
    """How a rank ended, in words."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"rank {rank} was killed by signal {-returncode} ({name})"
    return f"rank {rank} ended with exit status {returncode}"


KILL_AFTER_S = 5.0  # what ranks get to end when one has failed


class Lines:
    """Cuts what a rank prints into lines, so that those of several ranks are not mixed. Pure."""

    def __init__(self, prefix: bytes = b"") -> None:
        self._prefix = prefix
        self._rest = bytearray()

    def feed(self, piece: bytes) -> bytes:
        """The lines that are complete; a carriage return ends one, too (progress bars)."""
        self._rest += piece
        cut = max(self._rest.rfind(b"\n"), self._rest.rfind(b"\r")) + 1
        if not cut and len(self._rest) > _LINE:
            cut = len(self._rest)
        done = bytes(self._rest[:cut])
        del self._rest[:cut]
        return self._marked(done)

    def end(self) -> bytes:
        """What is left when nothing more comes."""
        done = bytes(self._rest)
        self._rest.clear()
        return self._marked(done)

    def _marked(self, text: bytes) -> bytes:
        if not self._prefix or not text:
            return text
        return b"".join(self._prefix + line for line in text.splitlines(keepends=True))


class LocalRun:
    """The ranks of one job.

    `kill_after` is how many seconds ranks get to end when one has failed, before they are asked to
    (SIGTERM), and again before they are killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        ranks: int,
        environ: Mapping[str, str],
        *,
        prefix: bool = False,
        kill_after: float = 5.0,
    ) -> None:
        self._command = list(command)
        self._size = ranks
        self._environ = dict(environ)
        self._prefix = prefix
        self._kill_after = kill_after
        self._selector = selectors.DefaultSelector()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._running: set[int] = set()
        self._lines: dict[int, tuple[int, Lines]] = {}  # by pipe: where to, and how
        self._status = 0
        self._steps: list[tuple[float, signal.Signals]] = []  # what is to come, and when
        self._folder = Path(tempfile.mkdtemp(prefix="hvd_backup-"))  # for this user only
        self._token = secrets.token_hex(16)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._folder / "launcher"))
        listener.listen(ranks)
        self._listener = listener
        self._hub = Hub(listener, self._token, ranks, self._selector, self._abort, self._say)

    def run(self) -> int:
        """Run the job to its end.

        Returns the exit status: 0, that of the first rank that failed, or 128 and the signal that
        this process got. Raises OSError if the command cannot be started.
        """
        with self._signals():
            try:
                for rank in range(self._size):
                    self._start(rank)
                while self._running:
                    self._turn()
                self._drain()
            finally:
                self._kill()
                self._listener.close()
                shutil.rmtree(self._folder, ignore_errors=True)
        return self._status

    # Ranks

    def _start(self, rank: int) -> None:
        env = environment(self._environ, rank, self._size)
        env[launch.LOCAL_SOCKET] = str(self._folder / "launcher")
        env[launch.LOCAL_TOKEN] = self._token
        process = subprocess.Popen(
            self._command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a signal from the terminal comes once, through us
            preexec_fn=_end_with_parent(),  # noqa: PLW1509 (there is one thread)
        )
        self._processes.append(process)
        self._running.add(rank)
        prefix = f"[{rank}] ".encode() if self._prefix else b""
        for pipe, to in ((process.stdout, 1), (process.stderr, 2)):
            assert pipe is not None
            fd = pipe.fileno()
            os.set_blocking(fd, False)
            self._lines[fd] = to, Lines(prefix)
            forward = functools.partial(self._forward, fd)
            self._selector.register(fd, selectors.EVENT_READ, forward)

    def _reap(self) -> None:
        for rank in sorted(self._running):
            returncode = self._processes[rank].poll()
            if returncode is None:
                continue
            self._running.discard(rank)
            self._hub.end(rank)
            if returncode != 0:
                self._fail(ending(rank, returncode), exit_status(returncode))

    def _fail(self, why: str, status: int) -> None:
        """The first failure counts; the others get time to end of themselves."""
        if self._status or self._steps:
            return
        self._status = status
        others = "; the others are to end" if self._running else ""
        self._say(f"{why}{others}")
        now = time.monotonic()
        self._steps = [
            (now + self._kill_after, signal.SIGTERM),
            (now + 2 * self._kill_after, signal.SIGKILL),
        ]

    def _abort(self, rank: int, status: int) -> None:
        self._fail(f"rank {rank} has called Abort({status})", status or 1)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for rank in self._running:
            process = self._processes[rank]
            with contextlib.suppress(ProcessLookupError):
                # Those that a rank has started end with it; asked is the rank itself.
                if number == signal.SIGKILL:
                    os.killpg(process.pid, number)
                else:
                    process.send_signal(number)

    def _kill(self) -> None:
        """Nothing of the job is left after it."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    # One turn of the loop

    def _turn(self) -> None:
        timeout = None
        if self._steps:
            timeout = max(0.0, self._steps[0][0] - time.monotonic())
        for key, events in self._selector.select(timeout):
            key.data(events)
        self._reap()
        while self._steps and self._steps[0][0] <= time.monotonic():
            self._signal(self._steps.pop(0)[1])

    def _forward(self, fd: int, _events: int) -> None:
        to, lines = self._lines[fd]
        try:
            piece = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        text = lines.feed(piece) if piece else lines.end()
        if not piece:
            self._selector.unregister(fd)
            del self._lines[fd]
        self._write(to, text)

    def _write(self, to: int, text: bytes) -> None:
        try:
            while text:
                text = text[os.write(to, text) :]
        except BrokenPipeError:  # as with `| head`
            self._fail("nobody reads the output any more", 128 + signal.SIGPIPE)
            self._signal(signal.SIGTERM)

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_S
        while self._lines and (left := deadline - time.monotonic()) > 0:
            for key, events in self._selector.select(left):
                if key.fd in self._lines:
                    key.data(events)
        for to, lines in self._lines.values():
            self._write(to, lines.end())

    def _say(self, text: str) -> None:
        self._write(2, f"hvd-backup run: {text}\n".encode())

    # Signals

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """While it lasts, signals wake the loop and are handled."""
        waker, woken = socket.socketpair()
        for end in (waker, woken):
            end.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ, lambda _: woken.recv(4096))
        before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._got) for number in _ENDING + _PASSED_ON}
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            waker.close()
            woken.close()

    def _got(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDING:
            if self._status == 128 + number:  # a second time: at once
                number = signal.SIGKILL
            else:
                self._fail(f"got {signal.Signals(number).name}", 128 + number)
        self._signal(number)


def run_without_typer(ranks: int, command: Sequence[str]) -> int:
    """Start `command` on `ranks` ranks, as ``hvd-backup run --no-mpi`` does by default.

    For machines without typer (tests/gpu). Returns the exit status.
    """
    environ = {"OMP_NUM_THREADS": "1", **os.environ}
    try:
        return LocalRun(command, ranks, environ, prefix=False, kill_after=KILL_AFTER_S).run()
    except OSError as error:
        print(f"local_run: cannot run {command[0]}: {error}", file=sys.stderr)
        return 127


def _end_with_parent() -> Callable[[], None]:
    """For Popen: makes the kernel end the child when this process is killed itself."""
    libc = ctypes.CDLL(None, use_errno=True)

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return end_with_parent


if __name__ == "__main__":  # no options: those are hvd-backup's
    sys.exit(run_without_typer(int(sys.argv[1]), sys.argv[2:]))
