"""A signal handler of the user's raises while its rank waits for the others.

interrupted.py FOLDER CALL WAY: in which call rank 0 waits, and what its handler raises. It catches
that and makes the call once more.
"""

import signal
import sys
import time

import numpy as np
from facts import ARGUMENTS, start, tell

import hvd_backup as hb

CALL, WAY = ARGUMENTS
RANK, SIZE = start()


class TimeLimit(Exception):
    """The user's own."""


def handle(*_):
    if WAY == "SystemExit":
        sys.exit(7)
    raise {"TimeLimit": TimeLimit, "ValueError": ValueError}[WAY]("too slow")


def large_allreduce():
    hb.partial_allreduce(np.ones(200_000, np.float32), name="large")  # read where it lies


CALLS = {
    "partial_allreduce": lambda: hb.partial_allreduce(np.ones(100, np.float32), name="small"),
    "large": large_allreduce,
    "allgather_object": lambda: hb.allgather_object(RANK),
}

call = CALLS[CALL]
for _ in range(3):
    call()
signal.signal(signal.SIGALRM, handle)
if RANK == 0:
    signal.setitimer(signal.ITIMER_REAL, 0.7)
if RANK == 1:
    time.sleep(2)
for _ in range(2):
    began = time.monotonic()
    try:
        call()
    except BaseException as error:  # noqa: BLE001
        tell(error=type(error).__name__, text=str(error), waited=time.monotonic() - began)
