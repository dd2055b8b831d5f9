"""How this process was started, and whether that made one MPI world of all processes.

The launchers say in the environment how many processes there are; MPI says how large its world is.
When MPI's word is "one" and the launcher's is not, every process would train alone and nobody would
notice. `detect` and the checks are pure functions of what they are given.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hvd_backup.errors import LaunchError
from hvd_backup.world.mpi_library import first_line

OPEN_MPI = "mpirun (Open MPI)"
HYDRA = "mpirun (MPICH/hydra)"
SRUN = "srun"
HOROVODRUN_MPI = "horovodrun --mpi"
HOROVODRUN_GLOO = "horovodrun --gloo"
TORCHRUN = "torchrun"
LOCAL = "hvd-backup run --no-mpi"
NONE = "none"

# What LOCAL hands over to a rank: where to reach it, and with what; rank and size besides.
LOCAL_SOCKET = "HVD_BACKUP_LAUNCH_SOCKET"
LOCAL_TOKEN = "HVD_BACKUP_LAUNCH_TOKEN"
LOCAL_RANK = "HVD_BACKUP_LAUNCH_RANK"
LOCAL_SIZE = "HVD_BACKUP_LAUNCH_SIZE"
LOCAL_VARIABLES = (LOCAL_SOCKET, LOCAL_TOKEN, LOCAL_RANK, LOCAL_SIZE)

# Set by init(): which process is the rank, and by which launch. Its children inherit it.
RANK_PROCESS = "HVD_BACKUP_LAUNCH_PROCESS"
# What tells one launch from another, besides rank and size.
_OF_ONE_LAUNCH = ("PMIX_NAMESPACE", "PMI_FD", "PMI_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
_STARTERS = re.compile(
    "mpirun|mpiexec|prte|orte|hydra|pmi_proxy|srun|slurm|hvd-backup|horovodrun|ssh"
)

BY_OPEN_MPI = (OPEN_MPI, HOROVODRUN_MPI)
_LIKE_MPICH = re.compile("MPICH|MVAPICH|Intel\\(R\\) MPI")

# Launcher, the variable that only it sets, and those with rank, size, local rank, local size.
# Innermost first: mpirun and torchrun may be started by srun and then inherit its variables.
_VARIABLES = (
    (LOCAL, LOCAL_SOCKET, (LOCAL_RANK, LOCAL_SIZE, LOCAL_RANK, LOCAL_SIZE)),
    (
        OPEN_MPI,
        "OMPI_COMM_WORLD_SIZE",
        (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
    ),
    (
        HYDRA,
        "MPI_LOCALRANKID",
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ),
    (
        HOROVODRUN_GLOO,
        "HOROVOD_SIZE",
        ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    ),
    (
        TORCHRUN,
        "TORCHELASTIC_RUN_ID",
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ),
    (
        SRUN,
        "SLURM_STEP_NUM_TASKS",
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    ),
)

_WAY_OUT = {
    OPEN_MPI: "this mpirun belongs to Open MPI, and mpi4py has loaded another MPI; {start}",
    HYDRA: "this mpirun belongs to MPICH, Intel MPI or another MPI with hydra, and mpi4py has "
    "loaded another MPI; {start}",
    SRUN: "srun started the processes without the interface that this MPI needs; use "
    "'srun --mpi=pmix' (Open MPI) or 'srun --mpi=pmi2' (MPICH), see 'srun --mpi=list', or run "
    "mpirun inside the allocation",
    HOROVODRUN_MPI: "the mpirun that horovodrun called belongs to another MPI than the one mpi4py "
    "has loaded; put the right mpirun first on PATH, or call it directly; {start}",
    HOROVODRUN_GLOO: "horovodrun --gloo starts no MPI; use 'horovodrun --mpi' or "
    "'mpirun -n {size} …'",
    TORCHRUN: "torchrun starts no MPI; use 'mpirun -n {size} python …' instead of torchrun",
}


@dataclass(frozen=True)
class Launch:
    """The launcher, and what it promised: None is for what it did not say."""

    launcher: str
    rank: int | None = None
    size: int | None = None
    local_rank: int | None = None
    local_size: int | None = None


def detect(environ: Mapping[str, str]) -> Launch:
    """Which launcher started this process, by the variables it sets (pass ``os.environ``)."""
    for launcher, mark, names in _VARIABLES:
        if mark not in environ:
            continue
        rank, size, local_rank, local_size = (_number(environ.get(name, "")) for name in names)
        if launcher == SRUN:
            local_size = _tasks_of_this_node(environ)
        elif launcher == OPEN_MPI and any(name.startswith("HOROVOD_") for name in environ):
            launcher = HOROVODRUN_MPI  # it runs mpirun, and passes its options on as HOROVOD_…
        return Launch(launcher, rank, size, local_rank, local_size)
    return Launch(NONE)


def right_mpirun(size: int) -> str:
    """What to start `size` ranks with, where that has not been looked up."""
    return f"start {size} ranks with the mpirun that lies beside mpi4py's library"


def check(
    launch: Launch, mpi_rank: int, mpi_size: int, start: Callable[[int], str] = right_mpirun
) -> None:
    """Raise LaunchError if the launcher started several processes that MPI sees as worlds of one.

    When MPI's world has several ranks its word counts: a launcher's numbers may rightly differ (a
    job of several programs, a spawned world). `start` says what to type to start this many ranks of
    this process's MPI.
    """
    if launch.size is None or launch.size <= 1 or mpi_size > 1 or launch.launcher == LOCAL:
        return  # LOCAL makes its world without MPI
    way_out = _way_out(launch, start)
    raise LaunchError(
        f"{launch.launcher} started {launch.size} processes, but this one is rank {mpi_rank} of an "
        f"MPI world of {mpi_size}: {way_out}"
    )


def check_before_init(
    launch: Launch, version: str, start: Callable[[int], str] = right_mpirun
) -> None:
    """Raise LaunchError if Open MPI's mpirun started several processes with an MPI like MPICH.

    That MPI may abort in MPI_Init, with words about PMI that name no way out, before ``check`` has
    its turn. `version` is MPI_Get_library_version's text, `start` as in ``check``.
    """
    if launch.launcher not in BY_OPEN_MPI or (launch.size or 1) <= 1:
        return
    if _LIKE_MPICH.search(version):
        raise LaunchError(
            f"{launch.launcher} started {launch.size} processes, but the MPI of this one is "
            f"{first_line(version)}: {_way_out(launch, start)}"
        )


def rank_process(environ: Mapping[str, str], pid: int) -> str:
    """The value of RANK_PROCESS for a process that joins the world; pass ``os.environ``."""
    names = (*_OF_ONE_LAUNCH, LOCAL_TOKEN)
    how = detect(environ)
    launch = repr((how.rank, how.size, [environ.get(name) for name in names]))
    return f"{pid} {zlib.crc32(launch.encode()):08x}"


def check_is_no_child(
    environ: Mapping[str, str], pid: int, parents: Iterable[tuple[int, str]]
) -> None:
    """Raise LaunchError if this process has its rank from a parent that is the rank itself.

    A process that a rank starts (multiprocessing, subprocess) inherits the launcher's variables,
    with which MPI would take it for the rank. `parents` are the process id and name of its parent,
    of that one's parent and so on. A launcher among them has started a job of its own.
    """
    rank_pid, _, launch = environ.get(RANK_PROCESS, "").partition(" ")
    how = detect(environ)
    same_launch = launch == rank_process(environ, pid).partition(" ")[2]
    if how.launcher == NONE or not same_launch or rank_pid == str(pid):
        return
    for parent, name in parents:
        if _STARTERS.match(name):
            return
        if str(parent) == rank_pid:
            raise LaunchError(
                f"init() in process {pid}, which was started by rank {how.rank} (process "
                f"{rank_pid}) and is no rank itself: call init() only in the processes that "
                f"{how.launcher} started. Code that a child process imports again belongs under "
                "`if __name__ == '__main__':`. To start another job from a rank, call its launcher"
            )


def _way_out(launch: Launch, start: Callable[[int], str]) -> str:
    text, size = _WAY_OUT[launch.launcher], launch.size or 1
    return text.format(size=size, start=start(size) if "{start}" in text else "")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _tasks_of_this_node(environ: Mapping[str, str]) -> int | None:
    """Slurm lists the tasks of all nodes, as in "4(x2),3": 4, 4 and 3."""
    tasks: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            return None
        tasks += [int(found[1])] * int(found[2] or 1)
    node = _number(environ.get("SLURM_NODEID", ""))
    return tasks[node] if node is not None and node < len(tasks) else None
