"""Rank 0 sends so many million bytes to the last rank, which prints how long it took."""

import json
import sys
import time

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
last = comm.size - 1
count = int(float(sys.argv[1]) * 1e6) // 8
data = np.arange(count) if comm.rank == 0 else np.zeros(count, int)
comm.Barrier()
began = time.monotonic()
if comm.rank == 0:
    print("sending", flush=True)
    comm.Send(data, last)
if comm.rank == last:
    comm.Recv(data, 0)
    whole = bool((data == np.arange(count)).all())
    print(json.dumps({"rank": last, "took": time.monotonic() - began, "whole": whole}), flush=True)
