"""How this process was started, and whether that made one MPI world of all processes.

The launchers say in the environment how many processes there are; MPI says how large its world is.
When MPI's word is "one" and the launcher's is not, every process would train alone and nobody would
notice. `detect` and the checks are pure functions of what they are given.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvd_backup.errors import LaunchError

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
    OPEN_MPI: "this mpirun belongs to Open MPI, and mpi4py has loaded another MPI; start with the "
    "mpirun that lies beside mpi4py's library, or install mpi4py for this Open MPI",
    HYDRA: "this mpirun belongs to MPICH, Intel MPI or another MPI with hydra, and mpi4py has "
    "loaded another MPI; start with the mpirun that lies beside mpi4py's library, or install "
    "mpi4py for this MPI",
    SRUN: "srun started the processes without the interface that this MPI needs; use "
    "'srun --mpi=pmix' (Open MPI) or 'srun --mpi=pmi2' (MPICH), see 'srun --mpi=list', or run "
    "mpirun inside the allocation",
    HOROVODRUN_MPI: "the mpirun that horovodrun called belongs to another MPI than the one mpi4py "
    "has loaded; put the right mpirun first on PATH, or call it directly: mpirun -n {size} …",
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


def check(launch: Launch, mpi_rank: int, mpi_size: int) -> None:
    """Raise LaunchError if the launcher started several processes that MPI sees as worlds of one.

    When MPI's world has several ranks its word counts: a launcher's numbers may rightly differ (a
    job of several programs, a spawned world).
    """
    if launch.size is None or launch.size <= 1 or mpi_size > 1 or launch.launcher == LOCAL:
        return  # LOCAL makes its world without MPI
    way_out = _WAY_OUT[launch.launcher].format(size=launch.size)
    raise LaunchError(
        f"{launch.launcher} started {launch.size} processes, but this one is rank {mpi_rank} of an "
        f"MPI world of {mpi_size}: {way_out}"
    )


def check_before_init(launch: Launch, version: str) -> None:
    """Raise LaunchError if Open MPI's mpirun started several processes with an MPI like MPICH.

    That MPI may abort in MPI_Init, with words about PMI that name no way out, before ``check`` has
    its turn. `version` is MPI_Get_library_version's text.
    """
    if launch.launcher not in BY_OPEN_MPI or (launch.size or 1) <= 1:
        return
    if _LIKE_MPICH.search(version):
        raise LaunchError(
            f"{launch.launcher} started {launch.size} processes, but the MPI of this one is "
            f"{_first_line(version)}: {_WAY_OUT[launch.launcher].format(size=launch.size)}"
        )


def mpi4py_library_version() -> str:
    """MPI_Get_library_version's text of the MPI that mpi4py.MPI calls; "" if it cannot be told.

    Loads that MPI, but does not initialize it as an import of mpi4py.MPI would.
    """
    try:
        module = importlib.util.find_spec("mpi4py.MPI")
        function = ctypes.CDLL(module.origin if module else None).MPI_Get_library_version
    except (AttributeError, ImportError, OSError, RuntimeError):
        return ""
    text, length = ctypes.create_string_buffer(8192), ctypes.c_int()  # of MPI_MAX_… and more
    function(text, ctypes.byref(length))
    return text.value.decode(errors="replace")


def loaded_mpi_library() -> str:
    """Path of the shared object that mpi4py's MPI calls go to; "" if the system does not tell.

    Imports mpi4py.MPI, which loads (and by default initializes) MPI.
    """
    from mpi4py import MPI

    class Symbol(ctypes.Structure):
        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        )

    try:
        # Looked up through mpi4py's own module, so that it is what mpi4py calls.
        function = ctypes.CDLL(MPI.__file__).MPI_Get_library_version
        dladdr = ctypes.CDLL(None).dladdr
    except (AttributeError, OSError):
        return ""
    symbol = Symbol()
    if dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(symbol)) == 0:
        return ""
    file = symbol.file
    return file.decode() if isinstance(file, bytes) else ""


def check_same_library(
    mpi4py_version: str, mpi4py_path: str, ext_version: str, ext_path: str
) -> None:
    """Raise LaunchError unless mpi4py and hvd_backup._mpi call one and the same MPI library.

    The versions are MPI_Get_library_version's texts; the paths are those of the shared objects, or
    "" where unknown. Two copies of the same version are two libraries: a handle of one means
    nothing to the other.
    """
    one_version = _tidy(mpi4py_version) == _tidy(ext_version)
    known = bool(mpi4py_path and ext_path)
    one_file = not known or Path(mpi4py_path).resolve() == Path(ext_path).resolve()
    if one_version and one_file:
        return
    raise LaunchError(
        "hvd_backup was built for another MPI library than the one mpi4py has loaded.\n"
        f"  mpi4py:     {_first_line(mpi4py_version)}, {mpi4py_path or 'path unknown'}\n"
        f"  hvd_backup: {_first_line(ext_version)}, {ext_path or 'path unknown'}\n"
        "Keep one MPI in the environment and build again with its mpicxx first on PATH: "
        "pip install --force-reinstall --no-cache-dir --no-deps hvd_backup"
    )


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


def _tidy(version: str) -> str:
    return version.strip("\0 \n\t")


def _first_line(version: str) -> str:
    return _tidy(version).partition("\n")[0]
