"""Each rank prints who it is, where, and with whom it shares memory; and what a sum comes to."""

import json
import os
import socket
from pathlib import Path

from mpi4py import MPI

comm = MPI.COMM_WORLD
node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
facts = {
    "rank": comm.rank,
    "size": comm.size,
    "host": socket.gethostname(),
    "namespace": str(Path("/proc/self/ns/net").readlink()),
    "node": node.allgather(comm.rank),
    "sum": comm.allreduce(comm.rank),
    "word": os.environ.get("WORD"),
    "folder": str(Path.cwd()),
}
print(json.dumps(facts), flush=True)
