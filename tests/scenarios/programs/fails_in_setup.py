"""One rank fails at some point of a set-up; the others must hear of it.

fails_in_setup.py FOLDER RANK POINT WAY [--one-node]: which rank, where, and how: by an error of
ours, by one that no code expects, or by Ctrl-C. The process goes on for a while.
"""

import os
import sys
import time

import numpy as np
from facts import ARGUMENTS, tell

import hvd_backup as hb
from hvd_backup import _core
from hvd_backup.rounds import exchange
from hvd_backup.world import board, launch, node_service, topology

WHO, POINT, WAY = int(ARGUMENTS[0]), ARGUMENTS[1], ARGUMENTS[2]
RANK = launch.detect(os.environ).rank
ERRORS = {
    "error": hb.Error("no file descriptors left"),
    "memory": MemoryError("no memory left"),
    "ctrl-c": KeyboardInterrupt(),
}
# Where the code is replaced by what fails, and which time it does.
POINTS = {
    "segment of the board": (_core.Segment, "create" if WHO % 2 == 0 else "open", 1),
    "board": (board.Board, "__init__", 1),
    "doorbell": (node_service.NodeService, "__init__", 1),
    "data": (node_service.NodeService, "_data_transport", 1),
    "service": (_core, "NodeService", 1),
    "reads": (topology.Topology, "can_read_remote", 1),
    "spin_limits": (topology.Topology, "choose_spin_limits", 1),
    "arena": (exchange.Exchange, "_place", 1),
    "segment of an arena": (topology.Topology, "shared_segment", 3),
    "serve": (node_service.NodeService, "serve", 1),
    "collective": (_core, "Collective", 1),
}


def fail_at(owner, name, time_of):
    real, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == time_of:
            raise ERRORS[WAY]
        return real(*args, **kwargs)

    setattr(owner, name, failing)


if RANK == WHO:
    owner, name, time_of = POINTS[POINT]
    if POINT == "segment of an arena" and "--one-node" in sys.argv:
        time_of = 2
    fail_at(owner, name, time_of)
try:
    hb.init()
    tell(init=True)
    value, _ = hb.partial_allreduce(np.ones(30_000, np.float32))
    tell(value=float(value[0]))
except BaseException as error:  # noqa: BLE001
    tell(error=type(error).__name__, text=str(error))
    if RANK == WHO:
        time.sleep(2)  # caught: nothing in the process's end tells the others
