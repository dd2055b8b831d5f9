"""How a process says what it sees: one JSON object in a file of its own.

Launchers mix and mark what their processes print, and a refused rank has no number of its own.
"""

import dataclasses
import hashlib
import json
import os
import socket
import sys
from pathlib import Path

from hvd_backup.world import launch

FOLDER = Path(sys.argv[1])
ARGUMENTS = sys.argv[2:]
LEVELS = ("single", "funneled", "serialized", "multiple")


def tell(**facts):
    """Also what the launcher promised, and what MPI says if it is in use."""
    facts["launcher"] = dataclasses.asdict(launch.detect(os.environ))
    facts["host"] = socket.gethostname()
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        facts["mpi_rank"], facts["mpi_size"] = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
        facts["thread_level"] = next(
            name for name in LEVELS if getattr(MPI, f"THREAD_{name.upper()}") == MPI.Query_thread()
        )
    # Ranks may have the same process id, each on its own node.
    name = f"{facts['host']}-{os.getpid()}.json"
    (FOLDER / name).write_text(json.dumps(facts))


def digest(*arrays):
    """A short text that differs when a bit differs."""
    return hashlib.sha1(b"".join(array.tobytes() for array in arrays)).hexdigest()
