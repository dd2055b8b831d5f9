"""A rank of `hvd-backup run --no-mpi`: no_mpi.py FOLDER [WAY]."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from facts import ARGUMENTS, tell

import hvd_backup as hb
from hvd_backup.world import launch

WAY = ARGUMENTS[0] if ARGUMENTS else "work"
sys.modules["mpi4py"] = None  # an import of it fails
how = launch.detect(os.environ)
print(f"pid {how.rank} {os.getpid()}", flush=True)

if WAY == "end_before_init" and how.rank == 1:
    sys.exit(7)
if WAY == "abort_before_init" and how.rank == 1:
    os.abort()
try:
    hb.init()
    mean, _ = hb.partial_allreduce(np.full(5, float(hb.rank())))
    maps = Path("/proc/self/maps").read_text()
    tell(rank=hb.rank(), size=hb.size(), mean=list(mean), libmpi="libmpi" in maps)
    if WAY == "deaf":  # to all that can be ignored
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        tell(deaf=True)
    while WAY in ("stay", "deaf"):
        if hb.rank() == 1 and (Path(sys.argv[1]) / "fail").exists():
            os._exit(5)
        time.sleep(0.02)
    if WAY == "usr1":
        signal.signal(signal.SIGUSR1, lambda *_: tell(usr1=True))
        print("ready", flush=True)
        signal.pause()
except BaseException as error:
    tell(error=type(error).__name__, text=str(error))
    raise
