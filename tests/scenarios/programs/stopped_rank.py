"""Rank 2 of 3 is stopped for two seconds: with room in the window, with little room, with b=0."""

import hashlib
import time

import numpy as np
from facts import new_world, start, stop_for, tell

import hvd_backup as hb

RANK, SIZE = start()
STOPPED = 2


def rounds(case, count, *, stop_at, pace_s, **options):
    """Tells when each round began and ended, and what came out."""
    state = hashlib.sha1()
    times, late = [], 0
    for k in range(count):
        if k == stop_at and RANK == STOPPED:
            stop_for(2)
        time.sleep(pace_s)
        began = time.monotonic()
        value, round_ = hb.partial_allreduce(np.full(1000, RANK + k, np.float32), **options)
        times.append((began, time.monotonic()))
        late += not round_.contributed
        state.update(value.tobytes() + repr(round_.contributors).encode())
    tell(case=case, times=times, late=late, digest=state.hexdigest())


def times_out():
    for k in range(100):
        if k == 20 and RANK == STOPPED:
            stop_for(2)
        hb.partial_allreduce(np.ones(1000), timeout=0.7)


rounds("room", 500, stop_at=20, pace_s=0.005, backup_workers=1, window=2000)
new_world()
rounds("little room", 150, stop_at=20, pace_s=0.005, backup_workers=1, window=30)
new_world()
rounds("no backup", 60, stop_at=20, pace_s=0.001)
new_world()
began = time.monotonic()
try:
    times_out()
except hb.Error as error:
    tell(case="time-out", error=type(error).__name__, text=str(error), began=began)
