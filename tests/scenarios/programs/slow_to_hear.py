"""Rank 2 fails while the others compute: they hear of it seconds later, and save their work."""

import time

import numpy as np
from facts import start, tell

import hvd_backup as hb

RANK, SIZE = start()
hb.partial_allreduce(np.ones(10))
if RANK == 2:
    raise KeyError("a bug in the user's code")
time.sleep(5)
try:
    hb.partial_allreduce(np.ones(10))
except hb.PeerFailed as error:
    time.sleep(0.5)  # a checkpoint is written
    tell(text=str(error))
    raise
