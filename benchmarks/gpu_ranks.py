"""A rank of gpu.py: what a step pays for its exchange, beside the copies it cannot do without.

And beside an all-reduce of as much by NCCL, which needs a GPU per rank, or on the CPU by gloo.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

import hvd_backup.torch as hvd
from hvd_backup.torch import ddp_hook, staging
from hvd_backup.torch.mapped import Mapped
from hvd_backup.torch.staged import Copies

TENSORS = 161  # as a ResNet-50 has


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(device: torch.device, times: int, call: Callable[[], object]) -> float:
    """Of a call that all ranks make at the same time, until the device is done."""
    samples = []
    for i in range(times + 2):
        hvd.barrier()
        start = time.perf_counter()
        call()
        finish(device)
        if i >= 2:
            samples.append((time.perf_counter() - start) * 1e3)
    return max(hvd.allgather_object(statistics.median(samples)))


def copies(device: torch.device, mib: int) -> Callable[[], None]:
    """A contribution to the host's pinned memory, and a result back."""
    there = torch.zeros(mib << 18, device=device)
    here = torch.zeros(mib << 18, pin_memory=device.type == "cuda")

    def call() -> None:
        here.copy_(there, non_blocking=True)
        there.copy_(here, non_blocking=True)

    return call


def all_reduce(device: torch.device, mib: int) -> Callable[[], None]:
    """What torch's own data parallelism would pay, without overlap."""
    gradient = torch.ones(mib << 18, device=device)
    return lambda: distributed.all_reduce(gradient)


def model(device: torch.device, mib: int) -> list[torch.nn.Parameter]:
    count = (mib << 18) // TENSORS
    params = [torch.nn.Parameter(torch.zeros(count, device=device)) for _ in range(TENSORS)]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def watch() -> list[Any]:
    """The ways that gradients go, from now on: Copies or Mapped."""
    made: list[Any] = []

    def watched(kind: Any) -> None:
        make = kind.__init__
        kind.__init__ = lambda self, *a, **k: (made.append(self), make(self, *a, **k))[1]

    watched(Copies)
    watched(Mapped)
    return made


def measure(
    device: torch.device, mib: int, times: int, path: str, library: str | None, made: list[Any]
) -> dict[str, Any]:
    """A row of the table; SystemExit if gradients went another way than `path`."""
    made.clear()
    alone = torch.optim.SGD(model(device, mib), 0.0)
    alone_ms = median_ms(device, times, alone.step)
    together = hvd.DistributedOptimizer(torch.optim.SGD(model(device, mib), 0.0))
    step_ms = median_ms(device, times, together.step)
    if {type(way) for way in made} != {Mapped if path == "mapped" else Copies}:
        raise SystemExit(f"the gradients went another way than {path}: see the log")
    pinned = path == "staged" and not any(way.why_not_pinned for way in made)
    together.close()
    copies_ms = median_ms(device, times, copies(device, mib))
    library_ms = median_ms(device, times, all_reduce(device, mib)) if library else None
    overhead_ms = step_ms - alone_ms
    gpus = len(set(hvd.allgather_object(str(device)))) if device.type == "cuda" else 0
    return {
        "path": path,
        "pinned": pinned,
        "ranks": hvd.size(),
        "gpus": gpus,
        "mib": mib,
        "step_ms": round(step_ms, 4),
        "alone_ms": round(alone_ms, 4),
        "overhead_ms": round(overhead_ms, 4),
        "copies_ms": round(copies_ms, 4),
        "ratio": round(overhead_ms / copies_ms, 3),
        "library": library,
        "library_ms": library_ms and round(library_ms, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--path", choices=("staged", "mapped"), required=True)
    parser.add_argument("--each", action="store_true", help="every rank has a GPU of its own")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    staging.STAGE_ON_CPU = given.device == "cpu"
    os.environ["HVD_BACKUP_DEVICE_PATH"] = given.path
    made = watch()
    hvd.init()
    device = torch.device("cpu")
    library: str | None = "gloo"
    if given.device == "cuda":
        device = torch.device("cuda", hvd.local_rank() if given.each else 0)
        torch.cuda.set_device(device)
        library = "nccl" if given.each else None
    if library:
        ddp_hook.set_torchrun_env()
        distributed.init_process_group(library, timeout=datetime.timedelta(seconds=60))
    for mib in (1, 4) if given.quick else (1, 16, 64, 256):
        row = measure(device, mib, 5 if given.quick else 30, given.path, library, made)
        if hvd.rank() == 0:
            print(json.dumps(row), flush=True)
    if library:
        hvd.barrier()
        distributed.destroy_process_group()
    hvd.shutdown()


if __name__ == "__main__":
    main()
