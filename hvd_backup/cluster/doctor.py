"""`hvd-backup doctor`: what is here, and what is in the way.

Under a launcher every rank runs it, and rank 0 prints. Outside of one, it starts a few ranks with
mpirun to see what they would see. All that may crash or hang runs in a process of its own
(probe.py) with a time limit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from hvd_backup.cluster import findings
from hvd_backup.cluster.findings import FAIL, OK, Answer, Finding
from hvd_backup.cluster.probe import START, alone, told
from hvd_backup.errors import LaunchError
from hvd_backup.study.mpirun import environment
from hvd_backup.world import launch
from hvd_backup.world.mpirun import find_mpirun

FRAMEWORKS = ("torch", "tensorflow", "keras")
# The other ranks of a world wait this much longer: rank 0 must print before one of them gives up,
# since a rank that gives up may make the launcher end all.
OTHERS_S = 15.0


def examine(trial_ranks: int, limit_s: float) -> Iterator[Finding]:
    """What is found, one thing after the other; nothing on ranks other than 0.

    Outside of a launcher `trial_ranks` ranks are started. `limit_s` is for each probe.
    """
    how = launch.detect(os.environ)
    later = OTHERS_S if how.rank else 0.0
    without_mpi = how.launcher == launch.LOCAL
    answer = ask("local" if without_mpi else "mpi", limit_s, later)
    # MPI may see R worlds of one: then what the launcher says.
    rank = answer.facts["rank"] if answer.facts.get("size", 1) > 1 else how.rank or 0
    if rank != 0:
        return
    yield Finding(OK, "hvd_backup", f"{_version()}, Python {sys.version.split()[0]}")
    yield from findings.library(answer) if not without_mpi else [findings.no_library()]
    seen, found = _world(how, answer, trial_ranks, limit_s)
    yield from found
    yield findings.cuda(ask("cuda", limit_s), seen.facts.get("ranks", ()))
    for name in FRAMEWORKS:
        yield findings.framework(name, ask(name, limit_s) if _installed(name) else None)
    yield findings.horovod(
        ask("horovod", limit_s) if _installed("horovod") else None, answer.facts.get("path", "")
    )


def _world(
    how: launch.Launch, answer: Answer, trial_ranks: int, limit_s: float
) -> tuple[Answer, list[Finding]]:
    """What the ranks told, those of a trial if there was one, and what is found in it."""
    seen, found = answer, []
    if how.launcher == launch.NONE and answer.facts.get("works") and answer.facts["size"] == 1:
        try:
            mpirun = find_mpirun()
        except LaunchError as error:
            found.append(findings.no_mpirun(str(error)))
        else:
            trial = ask_ranks(mpirun, trial_ranks, limit_s)
            found.append(findings.tried(mpirun, trial_ranks, trial))
            seen = trial if "ranks" in trial.facts else answer
    else:
        found.append(findings.started(how, answer))
    if "ranks" in seen.facts:
        found += findings.places(seen.facts["ranks"])
        found.append(findings.settings(seen.facts["ranks"]))
    else:
        found += findings.places([alone()])[1:]
    if "ranks" in answer.facts:
        found.append(findings.exchange(seen if seen.facts.get("works") else answer))
    return seen, found


def unusable(found: Sequence[Finding]) -> bool:
    """Whether something makes hvd_backup unusable."""
    return any(finding.status == FAIL for finding in found)


def ask(probe: str, limit_s: float, later_s: float = 0.0) -> Answer:
    """Run a probe in a process of its own; never raises for what it does."""
    return _ask([], probe, limit_s, later_s, os.environ)


def ask_ranks(mpirun: str, ranks: int, limit_s: float) -> Answer:
    """Run the probe of MPI on a few ranks; what rank 0 told counts."""
    env = environment({}, ranks, len(os.sched_getaffinity(0)), os.geteuid() == 0)
    for name in ("OMP_NUM_THREADS", "PYTHONUNBUFFERED"):  # as the user's own ranks would have them
        del env[name]
    return _ask([mpirun, "-np", str(ranks)], "mpi", limit_s, 0.0, {**os.environ, **env})


def _ask(
    launcher: list[str], probe: str, limit_s: float, later_s: float, env: Mapping[str, str]
) -> Answer:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        _text() as out,
        _text() as err,
    ):
        command = [*launcher, *START, probe, folder, f"{limit_s:g}"]
        # To files: a grandchild that survives would keep a pipe open.
        try:
            status = _run(command, env, limit_s + later_s, out, err, group=bool(launcher))
        except OSError as error:
            return Answer({}, f"cannot start {command[0]}: {error}")
        for file in (out, err):
            file.seek(0)
        answers = told(Path(folder), out.read())
        return read_answer(answers, err.read(), status, limit_s + later_s)


def _text() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")


def _run(
    command: list[str],
    env: Mapping[str, str],
    limit_s: float,
    out: IO[str],
    err: IO[str],
    *,
    group: bool,
) -> int | None:
    """The exit status, None if it did not end in time."""
    # A probe that is a rank's child stays in the rank's process group, which the launcher ends.
    process = subprocess.Popen(
        command,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=group,
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            _end(process, group=group)


def _end(process: subprocess.Popen[bytes], *, group: bool) -> None:
    # mpirun is asked first, so that it ends its ranks.
    for number in (signal.SIGTERM, signal.SIGKILL) if group else (signal.SIGKILL,):
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def read_answer(
    answers: Sequence[Mapping[str, Any]], err: str, status: int | None, limit_s: float
) -> Answer:
    """What rank 0 of a probe has told, and what was wrong with any rank of it.

    `answers` has one entry for each process.
    """
    facts = next((one for one in answers if one.get("rank", 0) == 0), {})
    problem = next((one["error"] for one in answers if "error" in one), "")
    if facts.get("done") and not problem:
        return Answer(facts)  # what a library does at its end is not our business
    if not problem and status is None:
        problem = f"no answer within {limit_s:g} s"
    elif not problem:
        how = f"signal {-status}" if status and status < 0 else f"exit status {status}"
        problem = f"it ended with {how}{_last_words(err)}"
    return Answer(facts, problem)


def _last_words(text: str) -> str:
    """The last line of an error output that says something."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if any(letter.isalpha() for letter in line)]
    return f": {lines[-1][:300]}" if lines else ""


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _version() -> str:
    try:
        return metadata.version("hvd_backup")
    except metadata.PackageNotFoundError:
        return "not installed, used from its sources"
