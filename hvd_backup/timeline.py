"""What calls spend their time with, as a trace for chrome://tracing or Perfetto. Horovod's words.

Rank 0 writes it, as in Horovod: per call how long it waited for the others (NEGOTIATE_…) and how
long it took then.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import IO

from hvd_backup import runtime
from hvd_backup.table import Operation


class Timeline:
    """An open trace file. It can be read when it is closed, or cut off: the format allows that."""

    def __init__(self, path: str) -> None:
        self._file: IO[str] = Path(path).open("w", encoding="utf-8")  # noqa: SIM115
        self._file.write("[\n")
        self._lanes: dict[str, int] = {}
        self._began = time.monotonic()

    def record(self, operation: Operation, began: float, ended: float) -> None:
        """A call that was put down at its ``since``, and done from `began` to `ended`."""
        lane = self._lane(operation.name)
        kind = operation.kind.upper()
        self._write(f"NEGOTIATE_{kind}", lane, operation.since, began)
        self._write(kind, lane, began, ended, operation.call)
        self._file.flush()

    def _lane(self, name: str) -> int:
        """A row of the picture for each name; calls without one share their kind's."""
        name = name.partition(".noname.")[0]
        if name not in self._lanes:
            self._lanes[name] = len(self._lanes) + 1
            self._put(
                {
                    "name": "process_name",
                    "ph": "M",
                    "pid": self._lanes[name],
                    "args": {"name": name},
                }
            )
        return self._lanes[name]

    def _write(self, name: str, lane: int, began: float, ended: float, call: str = "") -> None:
        event: dict[str, object] = {
            "name": name,
            "ph": "X",
            "pid": lane,
            "tid": 0,
            "ts": round((began - self._began) * 1e6),
            "dur": round((ended - began) * 1e6),
        }
        self._put(event | ({"args": {"call": call}} if call else {}))

    def _put(self, event: dict[str, object]) -> None:
        self._file.write(json.dumps(event) + ",\n")

    def close(self) -> None:
        self._put({"name": "end", "ph": "M", "pid": 0})
        # JSON has no comma before the end; the trace format would not mind.
        self._file.seek(self._file.tell() - 2)
        self._file.truncate()
        self._file.write("\n]\n")
        self._file.close()


def start_timeline(file_path: str | os.PathLike[str], mark_cycles: bool = False) -> None:
    """Rank 0 begins to write a trace of the calls that all ranks make to `file_path`.

    `mark_cycles` is accepted and changes nothing: there are no cycles. Raises ValueError if a trace
    is being written, OSError if the file cannot be.
    """
    world = runtime.current()
    if world.table.observer is not None:
        raise ValueError("a timeline is being written; stop_timeline() first")
    if world.rank == 0:
        world.table.observer = Timeline(os.fspath(file_path))


def stop_timeline() -> None:
    """End the trace, if there is one."""
    runtime.current().table.stop_observing()
