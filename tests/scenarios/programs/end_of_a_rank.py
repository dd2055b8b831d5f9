"""Rank 1 ends in the middle of training, in the way the first argument says."""

import os
import sys
import time

import numpy as np
from facts import ARGUMENTS, start, tell

import hvd_backup as hb

WAY, B = ARGUMENTS[0], int(ARGUMENTS[1])
RANK, SIZE = start()


def end():
    if WAY == "raise":
        raise KeyError("a bug in the user's code")
    if WAY == "sys.exit":
        sys.exit(3)
    if WAY == "os._exit":
        os._exit(3)
    if WAY == "pause":
        time.sleep(3)
    # "signal": from the test


array = np.ones(70_000, np.float32)
try:
    for k in range(1_000_000):
        if k == 300:
            tell(running=True)
            if RANK == 1:
                end()
        hb.partial_allreduce(array, backup_workers=B)
except BaseException as error:
    tell(error=type(error).__name__, text=str(error))
    raise
