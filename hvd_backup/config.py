"""The configuration, read once. An argument beats the environment."""

from __future__ import annotations

import difflib
import logging
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

T = TypeVar("T")

HOST_ROOM = 1 << 30
"""Bytes of results that a window keeps in the memory of the host if nobody has chosen one."""


_PREFIX = "HVD_BACKUP_"
_SETTINGS = (
    *("HVD_BACKUP_WORKERS", "HVD_BACKUP_TIMEOUT", "HVD_BACKUP_WINDOW", "HVD_BACKUP_GRACE"),
    *("HVD_BACKUP_LATE_WARNING", "HVD_BACKUP_HOST_TIMEOUT"),
    *("HVD_BACKUP_INTERFACE", "HVD_BACKUP_NODE_SIZE", "HVD_BACKUP_DEVICE_PATH"),
)
# Of the launcher, the build and the tests.
_NO_SETTINGS = ("HVD_BACKUP_LAUNCH_", "HVD_BACKUP_CMAKE_", "HVD_BACKUP_TEST_", "HVD_BACKUP_BESIDE")


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The ``HVD_BACKUP_*`` variables that are read, as far as they are set to something."""
    texts = {name: environ.get(name, "").strip() for name in _SETTINGS}
    return {name: text for name, text in texts.items() if text}


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """``HVD_BACKUP_*`` variables that nobody reads, each with the one that may be meant."""
    told = []
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in _SETTINGS or name.startswith(_NO_SETTINGS):
            continue
        word = name.removeprefix(_PREFIX)
        close = difflib.get_close_matches(word, [one.removeprefix(_PREFIX) for one in _SETTINGS], 1)
        told.append(f"{name} (did you mean {_PREFIX}{close[0]}?)" if close else name)
    return told


# Horovod's names of levels.
_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}


@dataclass(frozen=True)
class Config:
    """Defaults of a process, from the ``HVD_BACKUP_*`` environment variables."""

    backup_workers: int | None = None
    """``HVD_BACKUP_WORKERS``: b, how many of the R ranks a round does not wait for; None: 0. One
    rank alone has none."""
    timeout: float = 600.0
    """``HVD_BACKUP_TIMEOUT``: seconds in one wait, after which ``RoundTimeout`` is raised; ``inf``:
    never. Else ``HOROVOD_STALL_SHUTDOWN_TIME_SECONDS``, of which 0 means never."""
    window: int | None = None
    """``HVD_BACKUP_WINDOW``: results kept for ranks that have not loaded them; None: by size."""
    grace: float = 0.0
    """``HVD_BACKUP_GRACE``: seconds a round stays open after its quorum."""
    interface: str = ""
    """``HVD_BACKUP_INTERFACE``: network interface of rank 0's host at which the other nodes reach
    its coordinator; empty: any that works."""
    node_size: int | None = None
    """``HVD_BACKUP_NODE_SIZE``: splits each host into nodes of this many ranks, for tests."""
    device_path: str = "staged"
    """``HVD_BACKUP_DEVICE_PATH``: how gradients on GPUs travel: "staged", by way of the host, or
    "mapped", in memory of the GPUs that all ranks map, where that can be. No GPU has run the latter
    yet."""

    host_timeout: float = 60.0
    """``HVD_BACKUP_HOST_TIMEOUT``: seconds after which a host that does not answer (it has lost its
    power, or a cable is cut) is taken for dead, with its ranks. Only between hosts."""

    late_warning: bool = True
    """``HVD_BACKUP_LATE_WARNING=0``: no warning that a rank's share of the rounds is far below
    chance."""

    stall_warning: float = 60.0
    """``HOROVOD_STALL_CHECK_TIME_SECONDS``: seconds after which a wait logs the missing ranks;
    0, or ``HOROVOD_STALL_CHECK_DISABLE=1``: never."""
    log_level: int | None = None
    """``HOROVOD_LOG_LEVEL``: trace, debug, info, warning, error, fatal; None: as logging has it."""
    timeline: str = ""
    """``HOROVOD_TIMELINE``: the file that rank 0 writes what its calls spent their time with to."""

    def contradicted_by(self, backup_workers: int | None) -> str:
        """What to say of an argument that overrides ``HVD_BACKUP_WORKERS``; empty if nothing."""
        if None in (backup_workers, self.backup_workers) or backup_workers == self.backup_workers:
            return ""
        return (
            f"the program's backup_workers={backup_workers} overrides HVD_BACKUP_WORKERS="
            f"{self.backup_workers} (which `hvd-backup run -b` sets); leave the argument None to "
            "follow the launcher"
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Read the variables above from `environ`.

        Raises ValueError that names the variable whose text is not a number of its kind.
        """

        def read(name: str, parse: Callable[[str], T], default: T) -> T:
            text = environ.get(name, "").strip()
            if not text:
                return default
            try:
                return parse(text)
            except ValueError:
                kind = _KINDS.get(parse, "a number")
                raise ValueError(f"{name}={text!r} is not {kind}") from None

        quiet = environ.get("HOROVOD_STALL_CHECK_DISABLE", "").strip() not in ("", "0")
        stalled = read("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", _or_never, cls.timeout)
        return cls(
            backup_workers=read("HVD_BACKUP_WORKERS", int, cls.backup_workers),
            timeout=read("HVD_BACKUP_TIMEOUT", _above_0, stalled),
            window=read("HVD_BACKUP_WINDOW", int, None),
            grace=read("HVD_BACKUP_GRACE", _at_least_0, cls.grace),
            interface=read("HVD_BACKUP_INTERFACE", str, cls.interface),
            node_size=read("HVD_BACKUP_NODE_SIZE", _at_least_1, None),
            host_timeout=read("HVD_BACKUP_HOST_TIMEOUT", _above_0, cls.host_timeout),
            device_path=read("HVD_BACKUP_DEVICE_PATH", _device_path, cls.device_path),
            stall_warning=0.0
            if quiet
            else read("HOROVOD_STALL_CHECK_TIME_SECONDS", _at_least_0, cls.stall_warning),
            late_warning=read("HVD_BACKUP_LATE_WARNING", _switch, cls.late_warning),
            log_level=log_level(environ),
            timeline=read("HOROVOD_TIMELINE", str, cls.timeline),
        )


@dataclass(frozen=True)
class RoundOptions:
    """The options of one collective, complete and checked."""

    backup_workers: int
    late: str
    grace: float
    window: int
    timeout: float

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())

    @classmethod
    def resolve(
        cls,
        config: Config,
        *,
        world: int,
        nbytes: int,
        backup_workers: int | None,
        late: str = "drop",
        grace: float | None = None,
        window: int | None = None,
        timeout: float | None = None,
        room: int = HOST_ROOM,
    ) -> RoundOptions:
        """Fill what is None from `config`; `nbytes` is the size of one contribution.

        A window that nobody has chosen takes `room` bytes.

        Raises ValueError for a value that no world of `world` ranks could follow.
        """
        b, name = backup_workers, "backup_workers"
        if b is None:
            b, name = config.backup_workers or 0, "HVD_BACKUP_WORKERS"
            b = 0 if world == 1 else b
        if isinstance(b, bool) or not isinstance(b, int):
            raise TypeError(f"backup_workers must be an int, not {b!r}")
        if not 0 <= b < world:
            raise ValueError(
                f"{name}={b} leaves a quorum of {world - b} among {world} ranks; "
                f"use 0 <= {name} <= {world - 1}"
            )
        if late not in ("drop", "carry"):
            raise ValueError(f"late={late!r}: use 'drop' or 'carry'")
        window = config.window if window is None else window
        if window is None:
            window = default_window(b, nbytes, room)
        if isinstance(window, bool) or not isinstance(window, int):
            raise TypeError(f"window must be an int, not {window!r}")
        if not 1 <= window <= 4096:
            raise ValueError(f"window={window}: use 1 <= window <= 4096")
        return cls(
            backup_workers=b,
            late=late,
            grace=_seconds("grace", config.grace if grace is None else grace, zero=True),
            window=window,
            timeout=_seconds("timeout", config.timeout if timeout is None else timeout, zero=False),
        )


def default_window(backup_workers: int, nbytes: int, room: int = HOST_ROOM) -> int:
    """How many results of `nbytes` to keep for ranks that have not loaded them.

    Without backups nobody can be ahead by more than a round. With backups: 64 rounds, or what
    `room` bytes hold, at least 4. Memory of the host is used only while a rank is behind.
    """
    if backup_workers == 0:
        return 1
    return max(4, min(64, room // max(nbytes, 1)))


def _at_least_1(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _above_0(text: str) -> float:
    if not (number := float(text)) > 0:
        raise ValueError
    return number


def _at_least_0(text: str) -> float:
    if not (number := float(text)) >= 0:
        raise ValueError
    return number


def _or_never(text: str) -> float:
    """Horovod waits for ever if it is told to wait for no time, or less."""
    if math.isnan(number := float(text)):
        raise ValueError
    return number if number > 0 else math.inf


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def _device_path(text: str) -> str:
    if text not in ("staged", "mapped"):
        raise ValueError
    return text


_KINDS: dict[Callable[[str], object], str] = {
    int: "a whole number",
    _at_least_1: "a whole number, 1 or more",
    _above_0: "a number of seconds, more than 0",
    _at_least_0: "a number of seconds, 0 or more",
    _or_never: "a number of seconds, or 0 for never",
    _switch: "0 or 1",
    _device_path: "staged or mapped",
}


def _seconds(name: str, value: float, *, zero: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or value < 0 or (value == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{name}={value!r}: use seconds, {least}")
    return float(value)


def log_level(environ: Mapping[str, str]) -> int | None:
    """What HOROVOD_LOG_LEVEL asks for. Raises ValueError for a level that there is not."""
    text = environ.get("HOROVOD_LOG_LEVEL", "").strip().lower()
    if not text:
        return None
    if text not in _LEVELS:
        raise ValueError(f"HOROVOD_LOG_LEVEL={text!r}: use one of {', '.join(_LEVELS)}")
    return _LEVELS[text]
