"""Start a Python module on several ranks of this machine, and read what rank 0 prints."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from hvd_backup.errors import LaunchError
from hvd_backup.world.mpirun import find_mpirun

GRACE_S = 5.0  # between asking mpirun to end and making it
LOOK_S = 0.5  # Ctrl-C just before a read does not end it: it would wait for the next line
OVERSUBSCRIBE = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # Open MPI 5
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # Open MPI 4
}
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def shares_cores(ranks: int, cores: int) -> bool:
    """Whether Open MPI needs an option to put this many ranks on one machine.

    `cores` are those that the system shows, which may be hardware threads, two to a core; Open MPI
    counts cores.
    """
    return ranks > cores / 2


def environment(base: Mapping[str, str], ranks: int, cores: int, root: bool) -> dict[str, str]:
    """`base` and what the ranks need: one thread each, and leave to share cores or be root."""
    more = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    more |= OVERSUBSCRIBE if shares_cores(ranks, cores) else {}
    more |= AS_ROOT if root else {}
    return {**base, **more}


def run_ranks(ranks: int, module: list[str], log: Path) -> Generator[dict[str, Any], None, None]:
    """Run `python -m *module` on `ranks` ranks, and yield the JSON objects that they print.

    A JSON object has a line of its own. All that is printed goes to `log`. Ends the ranks if the
    caller stops early or is interrupted. Raises LaunchError with the end of the log if mpirun
    fails.
    """
    command = [find_mpirun(), "-np", str(ranks), sys.executable, "-m", *module]
    env = environment(os.environ, ranks, len(os.sched_getaffinity(0)), os.geteuid() == 0)
    with log.open("w") as copy, _process(command, env) as process:
        for line in _lines(process):
            copy.write(line)
            message = parse(line)
            if message is not None:
                yield message
    if process.returncode:
        raise LaunchError(
            f"`{' '.join(command)}` failed with exit status {process.returncode}; "
            f"the end of {log}:\n{tail(log)}"
        )


@contextlib.contextmanager
def _process(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C reaches only us, and we pass it on once. Two interrupts, one
    # from the terminal and one from us, would make mpirun give up without cleaning up.
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
    )
    try:
        yield process
        process.wait()
    finally:
        _end(process)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    assert process.stdout is not None
    fd, rest = process.stdout.fileno(), b""
    while True:
        if not select.select([fd], [], [], LOOK_S)[0]:
            continue
        data = os.read(fd, 1 << 16)
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") + "\n" for line in lines)
        if not data:
            if rest:
                yield rest.decode(errors="replace")
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)


def parse(line: str) -> dict[str, Any] | None:
    """The JSON object on a line, None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of `log` that are no progress messages."""
    text = [line for line in log.read_text(errors="replace").splitlines() if parse(line) is None]
    return "\n".join(text[-lines:])
