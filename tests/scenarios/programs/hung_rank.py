"""Rank 2 never comes to its second round, and does not end either.

hung_rank.py FOLDER [shutdown]: whether the others leave the world before they end.
"""

import time

import numpy as np
from facts import ARGUMENTS, start, tell

import hvd_backup as hb

RANK, SIZE = start()
hb.partial_allreduce(np.ones(10))
if RANK == 2:
    time.sleep(600)
try:
    hb.partial_allreduce(np.ones(10), timeout=1)
except hb.RoundTimeout as error:
    tell(text=str(error))
    if "shutdown" not in ARGUMENTS:
        raise
    hb.shutdown()
