"""What the rank programs of the benchmarks share."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch.distributed
from mpi4py import MPI

NAP_S = 200e-6


class Flags:
    """A number per rank in shared memory; waiting for it sleeps, so that nobody is disturbed."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        path = None
        if comm.rank == 0:
            handle, path = tempfile.mkstemp(prefix="hvd_backup_bench_")
            os.ftruncate(handle, 8 * comm.size)
            os.close(handle)
        path = comm.bcast(path)
        assert path is not None
        self._values = np.memmap(path, dtype=np.int64, mode="r+", shape=(comm.size,))
        comm.Barrier()
        if comm.rank == 0:
            Path(path).unlink()
        self._mine = comm.rank

    def set(self, value: int) -> None:
        self._values[self._mine] = value

    def reached(self, ranks: range, value: int) -> bool:
        return bool((self._values[ranks.start : ranks.stop] >= value).all())

    def wait(self, ranks: range, value: int) -> None:
        while not self.reached(ranks, value):
            time.sleep(NAP_S)


def one_call(spans: list[tuple[float, float]], calls: int, late: int = 0) -> float:
    """Seconds for one call, of every rank's (start, end) of a sample.

    From the first start, so that what a rank does before the others come counts as well. Beside a
    late rank that burns a core, from the last start: others may be kept from starting for long.
    """
    start = (max if late else min)(start for start, _ in spans)
    return max(max(end for _, end in spans) - start, 0.0) / calls


def start_gloo(comm: MPI.Intracomm) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    folder = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)
    store = torch.distributed.FileStore(f"{folder}/store", comm.size)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)
