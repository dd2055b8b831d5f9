"""Starts ranks, under mpirun or `hvd-backup run --no-mpi`, for the tests in scenarios/.

    run = run_ranks(3, PROGRAM, "--steps", 5, timeout=60)
    assert run.returncode == 0, str(run)

    with start_ranks(5, PROGRAM) as ranks:
        os.kill(ranks.pids()[4], signal.SIGSTOP)
        ranks.wait_for("rank 0: done", timeout=30)
        run = ranks.wait(timeout=60)

The program says `print("pid", rank, os.getpid(), flush=True)`. With flush=True a line is written in
one piece, else mpirun may mix the ranks' lines. However the block is left, no process of the run
survives it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from hvd_backup.study.mpirun import environment
from hvd_backup.world.mpirun import find_mpirun

ROOT = Path(__file__).resolve().parent.parent
# In the environment of every process of a run, and of no other one.
MARK = "HVD_BACKUP_TEST_RUN"
PID_LINE = re.compile(r"^pid (\d+) (\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class CompletedRun:
    """How mpirun ended, and all that it and the ranks printed."""

    returncode: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit status {self.returncode}\n{describe(self.stdout, self.stderr)}"


class StillRunning(AssertionError):
    """Something that was waited for did not happen in time."""


class Ranks:
    """A running mpirun. `process` is the Popen of mpirun itself."""

    def __init__(self, count: int, command: list[str], env: Mapping[str, str | None]) -> None:
        self._count = count
        self._mark = uuid.uuid4().hex
        # mpirun keeps files there, under its process id. When it is killed they stay, and would
        # keep a later one that has this process id from starting.
        self.folder = Path(tempfile.mkdtemp(prefix="hvd-backup-test-"))
        ours = {"PYTHONUNBUFFERED": None, "TMPDIR": str(self.folder), MARK: self._mark}
        wanted = {**os.environ, **ours, **env}
        self.process = subprocess.Popen(
            command,
            env={name: value for name, value in wanted.items() if value is not None},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a signal to our group is not one to theirs
        )
        self._text: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._grown = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(name, pipe), daemon=True)
            for name, pipe in (("stdout", self.process.stdout), ("stderr", self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def stdout(self) -> str:
        """What has been printed so far."""
        return "".join(self._text["stdout"])

    @property
    def stderr(self) -> str:
        """What has been printed so far."""
        return "".join(self._text["stderr"])

    def pids(self, timeout: float = 60) -> list[int]:
        """Process ids by rank, once every rank has printed `pid <rank> <pid>`."""
        self._wait_until(
            lambda: len(self._found_pids()) == self._count, "every rank's `pid` line", timeout
        )
        found = self._found_pids()
        return [found[rank] for rank in range(self._count)]

    def wait_for(self, words: str, timeout: float = 60, times: int = 1) -> None:
        """Wait until stdout has `words`, `times` times."""
        self._wait_until(lambda: self.stdout.count(words) >= times, repr(words), timeout)

    def wait(self, timeout: float = 120) -> CompletedRun:
        """Wait for mpirun's end."""
        try:
            returncode = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise StillRunning(self._late("mpirun's end", timeout)) from None
        for reader in self._readers:
            reader.join(5)  # a process that outlived mpirun may hold the pipe
        return CompletedRun(returncode, self.stdout, self.stderr)

    def survivors(self) -> list[int]:
        """Process ids of the run's processes that are alive, mpirun's included."""
        numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in numbers if self._ours(pid)]

    def close(self) -> None:
        """Kill all that is left. Once more changes nothing."""
        deadline = time.monotonic() + 10
        while (left := self.survivors()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.02)
        self.process.wait()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        for line in pipe:
            with self._grown:
                self._text[name].append(line.decode(errors="replace"))
                self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()

    def _wait_until(self, happened: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._grown:
            while not happened():
                ended = self.process.poll() is not None
                if ended and not any(reader.is_alive() for reader in self._readers):
                    raise AssertionError(
                        f"mpirun ended with {self.process.returncode} before {what}\n"
                        f"{describe(self.stdout, self.stderr)}"
                    )
                if time.monotonic() > deadline:
                    raise StillRunning(self._late(what, timeout))
                self._grown.wait(0.1)

    def _found_pids(self) -> dict[int, int]:
        return {int(rank): int(pid) for rank, pid in PID_LINE.findall(self.stdout)}

    def _late(self, what: str, timeout: float) -> str:
        return f"no sign of {what} in {timeout:g} s\n{describe(self.stdout, self.stderr)}"

    def _ours(self, pid: int) -> bool:
        try:
            if f"{MARK}={self._mark}".encode() not in Path(f"/proc/{pid}/environ").read_bytes():
                return False
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended meanwhile
            return False
        return state != "Z"


def start_ranks(
    count: int,
    program: str | Path,
    *args: object,
    env: Mapping[str, str | None] | None = None,
    python: tuple[str, ...] = (),
    no_mpi: bool = False,
    options: tuple[str, ...] = (),
) -> Ranks:
    """Start `program` (a path) with `args` on `count` ranks; a context manager.

    `env` is added to the environment, None removes a variable; `python` are options of the
    interpreter, as in ("-m",) for a program that is a module, `options` those of the launcher.
    """
    launcher = [sys.executable, "-m", "hvd_backup.cli", "run", "--no-mpi"]
    launcher = [*(launcher if no_mpi else [find_mpirun()]), "-np", str(count), *options]
    command = [*launcher, sys.executable, *python, str(program)]
    cores = len(os.sched_getaffinity(0))
    ours = environment({}, count, cores, os.geteuid() == 0)
    ours.pop("PYTHONUNBUFFERED", None)  # it makes print() write every word by itself
    return Ranks(count, [*command, *map(str, args)], {**ours, **(env or {})})


def run_ranks(
    count: int,
    program: str | Path,
    *args: object,
    env: Mapping[str, str | None] | None = None,
    python: tuple[str, ...] = (),
    timeout: float = 120,
    no_mpi: bool = False,
    options: tuple[str, ...] = (),
) -> CompletedRun:
    """Run `program` as `start_ranks` does, to its end. Raises StillRunning after `timeout` s."""
    with start_ranks(
        count, program, *args, env=env, python=python, no_mpi=no_mpi, options=options
    ) as ranks:
        return ranks.wait(timeout)


def describe(stdout: str, stderr: str) -> str:
    """Both outputs with headings, for a failed test's report."""
    return f"--- stdout\n{stdout}\n--- stderr\n{stderr}"
