"""Rank 1 never calls init()."""

import time

from facts import tell
from mpi4py import MPI

import hvd_backup as hb

if MPI.COMM_WORLD.rank == 1:
    time.sleep(6)
else:
    try:
        hb.init()
    except hb.Error as error:
        tell(error=type(error).__name__, text=str(error))
        raise
