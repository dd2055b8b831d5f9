"""Who goes through rounds together: all ranks, or those of a process set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvd_backup.collectives.process_sets import ProcessSet, global_process_set
from hvd_backup.config import RoundOptions
from hvd_backup.phrases import ranks_text
from hvd_backup.world import runtime
from hvd_backup.world.table import Operation


class Group:
    """All ranks, or those of a process set.

    All ranks may be a set of Horovod's, too. Raises TypeError for what is no ProcessSet, and
    ValueError for one that is not registered.
    """

    def __init__(self, process_set: Any = None) -> None:
        world = runtime.current()
        self._number, self._ranks = 0, list(range(world.size))
        self.process_set = global_process_set
        self.size = world.size
        self.included = True
        """Whether this rank does."""
        if process_set is None or getattr(process_set, "process_set_id", None) == 0:
            return
        if getattr(process_set, "ranks", None) == self._ranks:
            return
        if not isinstance(process_set, ProcessSet):
            raise TypeError(
                f"process_set must be a ProcessSet of hvd_backup's, not {process_set!r}"
            )
        if not process_set.size():
            raise ValueError(f"{process_set} is not registered; see add_process_set()")
        assert process_set.process_set_id is not None
        assert process_set.ranks is not None
        self._number, self._ranks = process_set.process_set_id, process_set.ranks
        self.process_set = process_set
        self.size = len(process_set.ranks)
        self.included = world.rank in process_set.ranks

    def check(self, options: Mapping[str, Any]) -> RoundOptions:
        """The options of an exchange, in full. Raises ValueError or TypeError."""
        world = runtime.current()
        return RoundOptions.resolve(world.config, world=self.size, nbytes=0, **options)

    def world(self) -> runtime.Runtime:
        """Their world. All of them call it together.

        Raises ValueError if the process set has been removed.
        """
        top = runtime.current()
        if self._number == 0:
            return top
        table = top.sets.get(self._number)
        if table is None or table.ranks != self._ranks:  # of a world that has been left
            raise ValueError("Process set does not exist or has not been registered.")
        if self._number not in top.parts:
            where = f" (in the process set of {ranks_text(table.ranks)}, counted from 0)"
            with top.one_at_a_time:
                table.complete(table.add(Operation("meet", "rounds", lambda _: None, name="meet")))
                part = runtime.Runtime(table.channel.comm, top.config, top, where)
            top.parts[self._number] = part
        return top.parts[self._number]
