"""The configuration, read once. An argument beats the environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """Defaults of a process, from the ``HVD_BACKUP_*`` environment variables."""

    backup_workers: int = 0
    """``HVD_BACKUP_WORKERS``: b, how many of the R ranks a round does not wait for."""
    timeout: float = 600.0
    """``HVD_BACKUP_TIMEOUT``: seconds in one wait, after which ``RoundTimeout`` is raised."""
    window: int | None = None
    """``HVD_BACKUP_WINDOW``: results kept for ranks that have not loaded them; None: by size."""
    grace: float = 0.0
    """``HVD_BACKUP_GRACE``: seconds a round stays open after its quorum."""
    interface: str = ""
    """``HVD_BACKUP_INTERFACE``: network interface of rank 0's host at which the other nodes reach
    its coordinator; empty: any that works."""
    node_size: int | None = None
    """``HVD_BACKUP_NODE_SIZE``: splits each host into nodes of so many ranks, for tests."""

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
                kind = {int: "a whole number", _at_least_1: "1 or more"}.get(parse, "a number")
                raise ValueError(f"{name}={text!r} is not {kind}") from None

        return cls(
            backup_workers=read("HVD_BACKUP_WORKERS", int, cls.backup_workers),
            timeout=read("HVD_BACKUP_TIMEOUT", float, cls.timeout),
            window=read("HVD_BACKUP_WINDOW", int, None),
            grace=read("HVD_BACKUP_GRACE", float, cls.grace),
            interface=read("HVD_BACKUP_INTERFACE", str, cls.interface),
            node_size=read("HVD_BACKUP_NODE_SIZE", _at_least_1, None),
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
    ) -> RoundOptions:
        """Fill what is None from `config`; `nbytes` is the size of one contribution.

        Raises ValueError for a value that no world of `world` ranks could follow.
        """
        b = config.backup_workers if backup_workers is None else backup_workers
        if isinstance(b, bool) or not isinstance(b, int):
            raise TypeError(f"backup_workers must be an int, not {b!r}")
        if not 0 <= b < world:
            raise ValueError(
                f"backup_workers={b} leaves a quorum of {world - b} in a world of {world} ranks; "
                f"use 0 <= backup_workers <= {world - 1}"
            )
        if late not in ("drop", "carry"):
            raise ValueError(f"late={late!r}: use 'drop' or 'carry'")
        window = config.window if window is None else window
        if window is None:
            window = default_window(b, nbytes)
        if not 1 <= window <= 4096:
            raise ValueError(f"window={window}: use 1 <= window <= 4096")
        return cls(
            backup_workers=b,
            late=late,
            grace=_seconds("grace", config.grace if grace is None else grace, zero=True),
            window=window,
            timeout=_seconds("timeout", config.timeout if timeout is None else timeout, zero=False),
        )


def default_window(backup_workers: int, nbytes: int) -> int:
    """How many results of `nbytes` to keep for ranks that have not loaded them.

    Without backups nobody can be ahead by more than a round. With backups: 64 rounds, or what 1 GiB
    holds, at least 4. The memory is used only while a rank is behind.
    """
    if backup_workers == 0:
        return 1
    return max(4, min(64, (1 << 30) // max(nbytes, 1)))


def _at_least_1(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _seconds(name: str, value: float, *, zero: bool) -> float:
    if math.isnan(value) or value < 0 or (value == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{name}={value!r}: use seconds, {least}")
    return float(value)
