"""How a rank of a scenario says what it sees: a line of JSON in a file of its own, at once.

mpirun kills what is left of a job as soon as one rank fails, and mixes the ranks' output.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hvd_backup as hb
from hvd_backup.world import launch

FOLDER = Path(sys.argv[1])
ARGUMENTS = sys.argv[2:]


def start():
    """Joins the world, and tells the test the process id."""
    hb.init()
    print(f"pid {hb.rank()} {os.getpid()}", flush=True)
    return hb.rank(), hb.size()


def tell(**facts):
    facts["at"] = time.monotonic()
    with (FOLDER / f"rank-{launch.detect(os.environ).rank}.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def stop_for(seconds):
    """SIGSTOP, as by an operator or a hypervisor, and SIGCONT after `seconds`."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def new_world():
    hb.shutdown()
    hb.init()
