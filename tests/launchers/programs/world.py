"""Joins the world and makes rounds in it; or tells why it may not.

An argument is the thread level that MPI is asked for.
"""

import time

import mpi4py
import numpy as np
from facts import ARGUMENTS, digest, tell

import hvd_backup as hb

if ARGUMENTS:
    (mpi4py.rc.thread_level,) = ARGUMENTS

try:
    hb.init()
except hb.Error as error:
    tell(error=type(error).__name__, text=str(error))
    # A launcher may end the others as soon as one has failed; all of them are to tell.
    raise SystemExit from None

rank, size = hb.rank(), hb.size()
ones = hb.allreduce(np.full(1000, rank + 1, np.float32), op=hb.Sum)
share = np.random.default_rng(rank).random(1000, np.float32)
if rank == size - 1:
    time.sleep(0.2)  # late: the others' round is sealed
mean, last = hb.partial_allreduce(share, backup_workers=min(1, size - 1))
tell(
    rank=rank,
    size=size,
    local_rank=hb.local_rank(),
    local_size=hb.local_size(),
    sum=float(ones[-1]),
    mean=digest(mean),
    contributors=len(last.contributors),
)
