"""A rank starts processes that call init(). starts_a_child.py FOLDER.

A child by multiprocessing's spawn, and a job of two ranks.
"""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
from facts import start, tell

import hvd_backup as hb
from hvd_backup.world import launch

JOB = (
    "import hvd_backup as hb; hb.init(); "
    "print('in a world of', hb.size(), hb.allreduce(__import__('numpy').ones(1))[0])"
)


def join_the_world(results):
    try:
        hb.init()
    except hb.Error as error:
        results.put((type(error).__name__, str(error)))
    else:
        results.put(("none", str(hb.rank())))


if __name__ == "__main__":
    RANK, SIZE = start()
    if RANK == 1:
        spawn = multiprocessing.get_context("spawn")
        results = spawn.Queue()
        child = spawn.Process(target=join_the_world, args=(results,))
        child.start()
        tell(child=results.get(timeout=60), pid=os.getpid())
        child.join()
        own = [sys.executable, "-m", "hvd_backup.cli", "run", "--no-mpi"]
        launcher = own if launch.detect(os.environ).launcher == launch.LOCAL else ["mpirun"]
        job = subprocess.run(
            [*launcher, "-np", "2", sys.executable, "-c", JOB],
            capture_output=True,
            text=True,
            check=False,
        )
        tell(status=job.returncode, printed=job.stdout + job.stderr)
    mean = hb.allreduce(np.full(3, RANK, np.float64))
    tell(mean=mean.tolist())
