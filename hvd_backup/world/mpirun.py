"""Which mpirun to start ranks with: the one that belongs to the MPI that mpi4py loads."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from hvd_backup.errors import LaunchError
from hvd_backup.world import mpi_library
from hvd_backup.world.launch import HYDRA, OPEN_MPI

_LIKE_MPICH = re.compile(r"MPICH|MVAPICH|Intel\(R\) MPI")
_LIKE_OPEN_MPI = re.compile("Open MPI|OpenRTE|PRRTE|prterun")


def find_mpirun() -> str:
    """The mpirun to start ranks with; LaunchError, with the way out, if there is none.

    The first that is here, unless it is known to belong to another MPI than mpi4py's and one that
    belongs to mpi4py's is here as well.
    """
    found = all_here()
    if not found:
        raise LaunchError(
            f"no mpirun beside {sys.executable} nor on PATH: {mpi_library.install_command()}, or "
            "put the bin folder of an MPI on PATH"
        )
    if len(found) == 1 or kind_of(found[0]) is None:
        return found[0]
    return belonging_to(mpi_library.version()) or found[0]


def belonging_to(library: str) -> str | None:
    """The first mpirun here, if any, for `library`, a text of MPI_Get_library_version."""
    kind = kind_of_library(library)
    return next((mpirun for mpirun in all_here() if kind and kind_of(mpirun) == kind), None)


def way_to_start(library: str, size: int) -> str:
    """What to type to start ranks of `library`, a text of MPI_Get_library_version."""
    if (right := belonging_to(library)) is not None:
        return f"start with {right} -n {size} …, or hvd-backup run -np {size} -- …"
    return f"{mpi_library.install_command()}, then hvd-backup run -np {size} -- …"


def all_here() -> list[str]:
    """Each mpirun of this environment, of the user's Python packages, and on PATH, in this order.

    mpi4py looks for libraries in the same order. Debian has several commands side by side.
    """
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    if site.ENABLE_USER_SITE:
        folders.append(str(Path(site.getuserbase()) / "bin"))
    found = [shutil.which("mpirun", path=folder) for folder in folders]
    found += [shutil.which(name) for name in ("mpirun", "mpirun.openmpi", "mpirun.mpich")]
    return list(dict.fromkeys(one for one in found if one))


def kind_of(mpirun: str) -> str | None:
    """OPEN_MPI or HYDRA; None if this mpirun is of neither kind, or does not work."""
    try:
        done = subprocess.run(
            [mpirun, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_kind(done.stdout + done.stderr)


def parse_kind(text: str) -> str | None:
    """The kind of an mpirun by what `mpirun --version` prints."""
    if _LIKE_OPEN_MPI.search(text):
        return OPEN_MPI
    return HYDRA if "HYDRA" in text or _LIKE_MPICH.search(text) else None


def kind_of_library(text: str) -> str | None:
    """The kind of mpirun that starts ranks of this library, by MPI_Get_library_version's text."""
    if "Open MPI" in text:
        return OPEN_MPI
    return HYDRA if _LIKE_MPICH.search(text) else None
