"""What calls spend their time with, as a trace for chrome://tracing or Perfetto. Horovod's words.

Rank 0 writes it, as in Horovod: per call how long it waited for the others (NEGOTIATE_…) and how
long it took then.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time

from hvd_backup.world import runtime
from hvd_backup.world.table import Operation

log = logging.getLogger("hvd_backup")


class Timeline:
    """An open trace file. It can be read when it is closed, or cut off: the format allows that.

    A trace never ends a training: if the file cannot be written any more, as the disk is full, say,
    it is closed with a warning, and nothing more is recorded. Raises OSError if it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # Without a buffer: what could not be written is not tried again, nor by a forked child.
        self._file: io.FileIO | None = io.FileIO(path, "w")
        self._lanes: dict[str, int] = {}
        self._began = time.monotonic()
        self._write("[")
        self._is_empty = True

    def record(self, operation: Operation, began: float, ended: float) -> None:
        """A call that was registered at its ``since``, and done from `began` to `ended`."""
        events = []
        name = operation.name.partition(".noname.")[0]  # calls without one share their kind's lane
        if name not in self._lanes:
            lane = self._lanes[name] = len(self._lanes) + 1
            events.append({"name": "process_name", "ph": "M", "pid": lane, "args": {"name": name}})
        lane, kind = self._lanes[name], operation.kind.upper()
        events.append(self._event(f"NEGOTIATE_{kind}", lane, operation.since, began))
        events.append(self._event(kind, lane, began, ended) | {"args": {"call": operation.call}})
        for event in events:
            self._write(("" if self._is_empty else ",") + "\n" + json.dumps(event))
            self._is_empty = False

    def _event(self, name: str, lane: int, began: float, ended: float) -> dict[str, object]:
        return {
            "name": name,
            "ph": "X",
            "pid": lane,
            "tid": 0,
            "ts": round((began - self._began) * 1e6),
            "dur": round((ended - began) * 1e6),
        }

    def _write(self, text: str) -> None:
        if self._file is None:
            return
        data = text.encode()
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        self._write("\n]\n")
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # the warning below says what is wrong
                file.close()
        log.warning("the timeline %s ends here: %s; the training goes on", self._path, error)


def start_timeline(file_path: str | os.PathLike[str], mark_cycles: bool = False) -> None:
    """Record the calls that all ranks make, in a file for chrome://tracing or Perfetto.

    Rank 0 writes the file. If it cannot be written, now or later, rank 0 logs a warning and the
    program goes on. Rounds of optimizers are not recorded. Horovod's ``start_timeline``.

    Args:
        file_path: The file, on rank 0's host. An existing file is overwritten.
        mark_cycles: Accepted for Horovod; without effect.

    Raises:
        ValueError: A timeline is being written.
        NotInitialized: ``init()`` was not called.
    """
    world = runtime.current()
    if world.table.observer is not None:
        raise ValueError("a timeline is being written; stop_timeline() first")
    if world.rank != 0:
        return
    try:
        world.table.observer = Timeline(os.fspath(file_path))
    except OSError as error:
        log.warning("no timeline is written: %s", error)


def stop_timeline() -> None:
    """Finish the file of ``start_timeline``, if there is one. Horovod's ``stop_timeline``.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    runtime.current().table.stop_observing()
