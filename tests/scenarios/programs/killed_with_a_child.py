"""A rank forks a process, as a DataLoader does, and is killed; its child lives on.

killed_with_a_child.py FOLDER RANK: which. The child ends when there is a file FOLDER/over.
"""

import os
import time

import numpy as np
from facts import ARGUMENTS, FOLDER, start, tell

import hvd_backup as hb

WHO = int(ARGUMENTS[0])
RANK, SIZE = start()
array = np.ones(70_000, np.float32)
hb.partial_allreduce(array)


def refusal(call):
    try:
        call()
    except hb.Error as error:
        return str(error)
    return "none"


def be_a_child():
    """What a rank's child may ask, and what it is refused."""
    facts = {"rank": hb.rank(), "size": hb.size()}
    facts["round"] = refusal(lambda: hb.partial_allreduce(array))
    facts["call"] = refusal(lambda: hb.broadcast_object(1))
    os.setsid()
    tell(child=facts)
    deadline = time.monotonic() + 60
    while not (FOLDER / "over").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os._exit(0)


if RANK == WHO and os.fork() == 0:
    be_a_child()
try:
    for k in range(1_000_000):
        if k == 20:
            tell(running=True)
        hb.partial_allreduce(array)
except BaseException as error:
    tell(error=type(error).__name__, text=str(error))
    raise
