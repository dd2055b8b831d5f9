"""What a rank that `hvd-backup run` started sees; then it ends, or waits to be ended.

started.py STATUS | wait
"""

import os
import sys
import time

import hvd_backup as hb

hb.init()
names = ("HVD_BACKUP_WORKERS", "OMP_NUM_THREADS", "MINE")
print(f"rank {hb.rank()} of {hb.size()}:", *(os.environ.get(name) for name in names), flush=True)
print("pid", hb.rank(), os.getpid(), flush=True)
if sys.argv[1] == "wait":
    time.sleep(600)
sys.exit(int(sys.argv[1]) if hb.rank() == 1 else 0)
