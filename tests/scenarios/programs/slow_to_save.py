"""Rank 1 is killed. Rank 0 hears of it and ends at once; rank 2 saves its work first."""

import os
import signal
import time

import numpy as np
from facts import start, tell

import hvd_backup as hb

RANK, SIZE = start()
try:
    for k in range(1_000_000):
        if k == 50 and RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        hb.partial_allreduce(np.ones(10))
except hb.PeerFailed as error:
    if RANK == 2:
        time.sleep(4)  # a checkpoint is written
    tell(text=str(error))
    raise
