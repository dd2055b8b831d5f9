"""`hvd-backup run`: the command line of the mpirun that is here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hvd_backup.errors import LaunchError
from hvd_backup.study.mpirun import AS_ROOT, shares_cores
from hvd_backup.world import launch
from hvd_backup.world import mpirun as mpirun_here

# Set in a job's allocation: mpirun knows then how many ranks fit, and on which hosts.
_MANAGERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "FLUX_JOB_ID")


@dataclass(frozen=True)
class Job:
    """What is to be run."""

    ranks: int
    backup_workers: int | None
    """None: 0, and not a word of it to the ranks, whose programs may choose."""
    command: Sequence[str]
    hosts: str | None = None
    """``name:ranks,name:ranks`` or ``name,name``; None is this machine, or the allocation."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables of the ranks."""
    options: Sequence[str] = ()
    """Further options of mpirun."""


def check(job: Job) -> None:
    """Raise ValueError, with the way out, for what cannot be run."""
    if not job.command:
        raise ValueError("no command to run: hvd-backup run -np 4 -b 1 -- python train.py")
    if (job.backup_workers or 0) >= job.ranks:
        raise ValueError(
            f"{job.backup_workers} backup workers among {job.ranks} ranks leave nobody to wait "
            f"for: use -b {job.ranks - 1} or less"
        )
    if job.hosts is not None:
        slots(job.hosts, job.ranks)


def check_local(job: Job) -> None:
    """Raise ValueError for what cannot be run without an MPI."""
    if job.hosts is not None:
        raise ValueError(f"-H {job.hosts}: {launch.LOCAL} starts ranks on this host only")
    if job.options:
        raise ValueError(f"--mpi-args are mpirun's; {launch.LOCAL} starts none")


def local_environment(job: Job, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the ranks that are started without an MPI."""
    return {**environ, **ranks_environment(job, environ)}


def kind_of(mpirun: str) -> str:
    """launch.OPEN_MPI or launch.HYDRA; LaunchError if this mpirun is of neither kind."""
    kind = mpirun_here.kind_of(mpirun)
    if kind is None:
        raise LaunchError(
            f"{mpirun} is of no kind known here (Open MPI, MPICH and others with hydra); start "
            "the ranks with it directly, and pass them HVD_BACKUP_WORKERS"
        )
    return kind


def command_line(
    job: Job, mpirun: str, kind: str, environ: Mapping[str, str], *, cores: int, root: bool
) -> list[str]:
    """mpirun with all that `job` needs; complete, so that it can be copied.

    `cores` are those that the system shows, see study.mpirun.shares_cores.
    """
    variables = ranks_environment(job, environ)
    places = slots(job.hosts, job.ranks) if job.hosts is not None else []
    hosts = ",".join(f"{host}:{n}" for host, n in places)
    line = [mpirun, "-np", str(job.ranks)]
    if kind == launch.OPEN_MPI:
        line += ["-H", hosts] if hosts else []
        if root:
            line.append("--allow-run-as-root")
        alone = not hosts and not any(name in environ for name in _MANAGERS)
        if alone and shares_cores(job.ranks, cores):
            line += ["--map-by", ":OVERSUBSCRIBE"]
        # Else it binds few ranks to one core each, with all their threads and loaders, and
        # refuses more ranks than cores on a host that was named.
        if not any(option.lstrip("-") == "bind-to" for option in job.options):
            line += ["--bind-to", "none"]
        for name, value in variables.items():
            line += ["-x", f"{name}={value}"]
    else:
        line += ["-hosts", hosts] if hosts else []
        for name, value in variables.items():
            line += ["-genv", name, value]
    return [*line, *job.options, *job.command]


def ranks_environment(job: Job, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that the ranks must get, also on other hosts."""
    ours = {
        name: environ[name]
        for name in sorted(environ)
        if name.startswith("HVD_BACKUP_") and name not in launch.LOCAL_VARIABLES
    }
    if job.backup_workers is not None:
        ours["HVD_BACKUP_WORKERS"] = str(job.backup_workers)
    # As with torchrun: without it every rank would take all cores.
    ours["OMP_NUM_THREADS"] = environ.get("OMP_NUM_THREADS") or "1"
    return {**ours, **job.variables}


def launcher_environment(environ: Mapping[str, str], *, root: bool) -> dict[str, str]:
    """What mpirun itself is started with."""
    # Within a rank of ours, the new ranks are not that launcher's.
    kept = {name: environ[name] for name in environ if name not in launch.LOCAL_VARIABLES}
    return {**kept, **(AS_ROOT if root else {})}


def variables(texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """``NAME=value`` or ``NAME``, which takes the value from `environ`."""
    found = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"-x {text}: use -x NAME or -x NAME=value")
        if not given and name not in environ:
            raise ValueError(f"-x {name}: it is not set; use -x {name}=value")
        found[name] = value if given else environ[name]
    return found


def words(option: str, text: str) -> list[str]:
    """What a shell would make of the value of `option`."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{option} {text}: {error}") from None


def slots(hosts: str, ranks: int) -> list[tuple[str, int]]:
    """How many ranks run on which host; ValueError if they do not fit.

    Without numbers the ranks are spread evenly, the first hosts taking what is left over.
    """
    names: list[tuple[str, int | None]] = []
    for word in hosts.split(","):
        name, colon, number = word.strip().partition(":")
        if not re.fullmatch(r"[^\s:]+", name) or (
            colon and not (number.isdigit() and int(number) > 0)
        ):
            raise ValueError(f"-H {hosts}: use name:ranks,name:ranks or name,name")
        names.append((name, int(number) if colon else None))
    if all(number is None for _, number in names):
        names = names[:ranks]
        share, more = divmod(ranks, len(names))
        return [(name, share + (i < more)) for i, (name, _) in enumerate(names)]
    known = [(name, 1 if number is None else number) for name, number in names]
    room = sum(number for _, number in known)
    if room < ranks:
        raise ValueError(f"-H {hosts} has room for {room} ranks, not for {ranks}")
    return known
