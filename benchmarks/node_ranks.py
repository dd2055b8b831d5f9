"""What every rank of benchmarks/nodes.py runs, besides ranks.py; rank 0 prints JSON, a line each.

`seal`: how long after the arrival that completes the quorum every node knows of the seal, and how
long until every rank has the result, of contributions of 16 elements. All ranks arrive at about the
same time, so that as many threads as there are ranks are busy. Times are of CLOCK_MONOTONIC, so the
nodes must be parts of one host.

`service`: what the service thread of a node costs a rank that is busy. The last rank, alone on its
node, computes steps of some 20 ms and is timed: without a service thread, with one that idles, and
while the other ranks go through a round per step, which it is late for and loads afterwards. The
three take turns; what is reported are medians of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
from mpi4py import MPI

import hvd_backup as hb
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.world import node_service, runtime

STEP_S = 0.02


def seal(args: argparse.Namespace) -> None:
    comm = MPI.COMM_WORLD
    hb.init()
    exchange = Exchange([("float32", 16)], backup_workers=0, name="seal")
    seals, results, alike = [], [], []
    for _ in range(50 if args.quick else 400):
        comm.Barrier()
        round_ = exchange.arrive_and_wait()
        back = time.monotonic()
        seen = comm.gather((round_.arrived_at_s, round_.sealed_at_s, back))
        start = time.perf_counter()
        comm.allreduce(0)
        alike.append(time.perf_counter() - start)
        if seen is not None:
            arrived, sealed, backs = (max(times) for times in zip(*seen, strict=True))
            seals.append(sealed - arrived)
            results.append(backs - arrived)
    exchange.close()
    if comm.rank == 0:
        row = {"kind": "seal", "ranks": comm.size, "nodes": hb.cross_size()}
        for name, seconds in (("sealed", seals), ("result", results), ("mpi_allreduce", alike)):
            micros = sorted(1e6 * s for s in seconds)
            row[f"{name}_us"] = round(statistics.median(micros), 1)
            row[f"{name}_p90_us"] = round(micros[len(micros) * 9 // 10], 1)
        print(json.dumps(row), flush=True)


class Work:
    """A step of a rank that computes."""

    def __init__(self) -> None:
        self._a = np.random.default_rng(1).random((192, 192), dtype=np.float32)
        self._b = np.empty_like(self._a)
        self._calls = 1
        once = min(self.step() for _ in range(20))
        self._calls = max(1, round(STEP_S / once))

    def step(self) -> float:
        """Seconds that it took."""
        start = time.perf_counter()
        for _ in range(self._calls):
            np.matmul(self._a, self._a, out=self._b)
        return time.perf_counter() - start


def service(args: argparse.Namespace) -> None:
    comm = MPI.COMM_WORLD
    busy = comm.rank == comm.size - 1
    work = Work() if busy else None
    steps = 20 if args.quick else 50
    times: dict[str, list[float]] = {"without": [], "idle": [], "rounds": []}
    for _ in range(3 if args.quick else 15):
        times["without"].append(timed(comm, work, steps))
        hb.init()
        count = args.bytes // 4
        exchange = Exchange([("float32", count)], backup_workers=1, window=2 * steps, name="load")
        times["idle"].append(timed(comm, work, steps))
        times["rounds"].append(timed(comm, work, steps, exchange))
        while exchange.number < steps:  # the busy rank loads what it was late for
            exchange.skip()
            exchange.wait()
        hb.shutdown()
        for running, _board in runtime._services:  # noqa: SLF001
            node_service.close(running, failed=False)
        runtime._services.clear()  # noqa: SLF001
        comm.Barrier()
    everybody = comm.gather(times)
    if everybody is None:
        return
    measured = everybody[-1]
    row: dict[str, Any] = {"kind": "service", "ranks": comm.size, "nodes": comm.size}
    row |= {"bytes": args.bytes, "step_ms": round(1e3 * statistics.median(measured["without"]), 2)}
    for name in ("idle", "rounds"):
        ratios = [a / b for a, b in zip(measured[name], measured["without"], strict=True)]
        row[f"{name}_ratio"] = round(statistics.median(ratios), 4)
    print(json.dumps(row), flush=True)


def timed(
    comm: MPI.Intracomm, work: Work | None, steps: int, exchange: Exchange | None = None
) -> float:
    """Seconds of the median step of the busy rank; the others sleep, or go through rounds."""
    comm.Barrier()
    spent = []
    for _ in range(steps):
        if work is not None:
            spent.append(work.step())
            continue
        time.sleep(STEP_S)
        if exchange is not None:
            exchange.arrive_and_wait()
    request = comm.Ibarrier()
    while not request.Test():  # asleep: MPI's own barrier would burn the other core
        time.sleep(1e-3)
    return statistics.median(spent) if spent else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["seal", "service"])
    parser.add_argument("--bytes", type=int, default=1 << 20)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    {"seal": seal, "service": service}[args.what](args)


if __name__ == "__main__":
    main()
