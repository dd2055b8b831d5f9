"""A rank ends in the middle of training.

end_of_a_rank.py FOLDER WAY B [RANK]: which rank (1), and in what way. With RANK, ranks also tell
when they have come through what hvd_backup does at exit.
"""

import atexit
import os
import signal
import sys
import time

import numpy as np
from facts import ARGUMENTS, start, tell

import hvd_backup as hb

WAY, B = ARGUMENTS[0], int(ARGUMENTS[1])
WHO = int(ARGUMENTS[2]) if len(ARGUMENTS) > 2 else 1
if len(ARGUMENTS) > 2:
    atexit.register(lambda: tell(at_exit=True))  # before hvd_backup's, to be called after it
    # When a rank fails, mpirun asks the others to end. It leaves them a while, and so do we.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
RANK, SIZE = start()
END_AT = 300


def end():
    if WAY == "raise":
        raise KeyError("a bug in the user's code")
    if WAY == "sys.exit":
        sys.exit(3)
    if WAY.startswith("os._exit"):
        os._exit(3)
    if WAY == "pause":
        time.sleep(3)
    # "signal": from the test


def rounds():
    """How many rounds this rank goes through; `return` is to come to one's end in good order."""
    if WAY != "return":
        return 1_000_000
    return END_AT + 1 if RANK == WHO else END_AT + 200


array = np.ones(70_000, np.float32)
try:
    for k in range(rounds()):
        if k == END_AT:
            tell(running=True)
            if RANK == WHO:
                end()
            if WAY == "os._exit in a barrier":
                hb.barrier()
        hb.partial_allreduce(array, backup_workers=B)
except BaseException as error:
    tell(error=type(error).__name__, text=str(error))
    raise
tell(rounds=rounds())
