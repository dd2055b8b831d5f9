"""Rounds and calls while a timeline is written to a disk that is full.

full_disk.py FOLDER WAY: "setting", by HOROVOD_TIMELINE, or "call", by start_timeline().
"""

import logging

import numpy as np
import torch
from facts import ARGUMENTS, start, tell

import hvd_backup as hb
import hvd_backup.torch as hvd

warnings = []
logging.getLogger("hvd_backup").addHandler(logging.Handler())
logging.getLogger("hvd_backup").handlers[0].emit = lambda record: warnings.append(
    record.getMessage()
)
RANK, SIZE = start()
hvd.init()  # HOROVOD_TIMELINE is of Horovod's init()
if ARGUMENTS[0] == "call":
    hvd.start_timeline("/dev/full")
elif ARGUMENTS[0] == "folder":
    hvd.start_timeline("/no/such/folder/trace.json")
value, _ = hb.partial_allreduce(np.ones(3))
total = [hvd.allreduce(torch.ones(2), op=hvd.Sum)[0].item() for _ in range(3)]
hvd.stop_timeline()
tell(value=value.tolist(), total=total, warnings=warnings)
