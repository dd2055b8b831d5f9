"""What every rank of training_step.py runs; rank 0 prints a JSON object per result, a line each.

The ways to train take turns, one sample each, round after round. A sample is some steps after a
barrier; its time is that from the first rank's start to the last rank's end, over the steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
from mpi4py import MPI
from samples import Flags, one_call, start_gloo
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hvd_backup.torch as hvd


class Block(nn.Module):
    """Two convolutions and a way around them (He et al. 2015)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inside, outside, 3, stride)
        self.second = convolution(outside, outside, 3, 1)
        plain = inside == outside and stride == 1
        self.around = nn.Identity() if plain else convolution(inside, outside, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.around(x))


def convolution(inside: int, outside: int, kernel: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside))


def resnet18() -> nn.Module:
    """ResNet-18 for small images: 11.2 M parameters in 62 tensors."""
    layers: list[nn.Module] = [convolution(3, 64, 3, 1), nn.ReLU()]
    for inside, outside, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Block(inside, outside, stride), Block(outside, outside, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def mlp() -> nn.Module:
    """1.1 M parameters in 6 tensors."""
    layers = [nn.Linear(784, 800), nn.ReLU(), nn.Linear(800, 512), nn.ReLU(), nn.Linear(512, 100)]
    return nn.Sequential(nn.Flatten(), *layers)


MODELS = {"mlp": (mlp, (16, 784), 100), "resnet18": (resnet18, (2, 3, 16, 16), 10)}


class Way(Protocol):
    """A way to make a training step."""

    name: str

    def running(self) -> AbstractContextManager[None]: ...
    def step(self) -> None: ...


class Local:
    """No exchange at all."""

    name = "no_exchange"

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.model, self._x, self._y = model, x, y
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def running(self) -> AbstractContextManager[None]:
        """Around a sample."""
        return nullcontext()

    def backward(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self._x), self._y).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        self.backward()
        self.optimizer.step()


class Alone(Local):
    """As Local, while all other ranks sleep: one process on the machine."""

    name = "single_process"


class HvdBackup(Local):
    """DistributedOptimizer without backup workers."""

    name = "hvd_backup"
    view = False

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(model, x, y)
        hvd.DistributedOptimizer(
            self.optimizer,
            model.named_parameters(),
            backup_workers=0,
            gradient_as_bucket_view=self.view,
        )


class HvdBackupView(HvdBackup):
    """The same with gradients in the memory that ranks share."""

    name = "hvd_backup_view"
    view = True


class Ddp(Local):
    """DistributedDataParallel over gloo, told not to copy and not to broadcast buffers."""

    name = "ddp_gloo"

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        wrapped = DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        super().__init__(wrapped, x, y)


class Horovod(Local):
    """The real Horovod's DistributedOptimizer."""

    name = "horovod"

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        import horovod.torch

        super().__init__(model, x, y)
        self._horovod = horovod.torch
        with self.running():
            self.optimizer = horovod.torch.DistributedOptimizer(
                self.optimizer, model.named_parameters()
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        # Its thread, which looks for work each millisecond, takes no time from the other ways. The
        # first rank's shutdown is everybody's.
        self._horovod.init()
        yield
        MPI.COMM_WORLD.Barrier()
        self._horovod.shutdown()
        MPI.COMM_WORLD.Barrier()


class NaiveMpi(Local):
    """All gradients copied into one array, one MPI_Allreduce, and back."""

    name = "mpi_allreduce"

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(model, x, y)
        count = sum(p.numel() for p in model.parameters())
        self._flat, self._sum = np.zeros(count, np.float32), np.zeros(count, np.float32)
        self._mine, self._all = torch.from_numpy(self._flat), torch.from_numpy(self._sum)

    def step(self) -> None:
        self.backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        sizes = [g.numel() for g in grads]
        torch.cat([g.view(-1) for g in grads], out=self._mine)
        MPI.COMM_WORLD.Allreduce(self._flat, self._sum)
        self._all /= MPI.COMM_WORLD.size
        for grad, mean in zip(grads, torch.split(self._all, sizes), strict=True):
            grad.copy_(mean.view_as(grad))
        self.optimizer.step()


WAYS: list[type[Local]] = [Alone, Local, HvdBackup, HvdBackupView, Ddp, NaiveMpi]
if importlib.util.find_spec("horovod"):
    WAYS.insert(4, Horovod)


def measure(name: str, comm: MPI.Intracomm, flags: Flags, rounds: int, target_s: float) -> None:
    make, shape, classes = MODELS[name]
    torch.manual_seed(comm.rank)
    x, y = torch.randn(shape), torch.randint(classes, (shape[0],))
    ways: list[Local] = []
    for kind in WAYS:
        torch.manual_seed(0)
        ways.append(kind(make(), x, y))
    numbers = sequence()
    steps = {way.name: warm_up(way, comm, flags, numbers, target_s) for way in ways}
    spans: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for turn in range(rounds):
        for i in range(len(ways)):
            way = ways[(turn + i) % len(ways)]
            spans[way.name].append(sample(way, comm, flags, numbers, steps[way.name]))
    check_replicas(ways, comm)
    params = sum(p.numel() for p in ways[0].model.parameters())
    tensors = len(list(ways[0].model.parameters()))
    for way in ways:
        everybody = comm.gather(spans[way.name])
        if everybody is None:
            continue
        timed = everybody[:1] if isinstance(way, Alone) else everybody
        times = [1e3 * one_call(list(s), steps[way.name]) for s in zip(*timed, strict=True)]
        row: dict[str, Any] = {
            "ranks": comm.size,
            "model": name,
            "parameters": params,
            "tensors": tensors,
            "way": way.name,
            "step_ms": round(statistics.median(times), 3),
            "p10_ms": round(sorted(times)[len(times) // 10], 3),
            "p90_ms": round(sorted(times)[len(times) * 9 // 10], 3),
            "samples": len(times),
            "steps": steps[way.name],
        }
        print(json.dumps(row), flush=True)


def sequence() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


def warm_up(
    way: Local, comm: MPI.Intracomm, flags: Flags, numbers: Iterator[int], target_s: float
) -> int:
    """How many steps make a sample."""
    sample(way, comm, flags, numbers, 2)
    spans = [sample(way, comm, flags, numbers, 1) for _ in range(3)]
    once = min(end - start for start, end in spans)
    return int(comm.bcast(max(1, min(200, int(target_s / max(once, 1e-6))))))


def sample(
    way: Local, comm: MPI.Intracomm, flags: Flags, numbers: Iterator[int], steps: int
) -> tuple[float, float]:
    """This rank's start and end, on the host's clock."""
    number = next(numbers)
    with way.running():
        comm.Barrier()
        if isinstance(way, Alone) and comm.rank != 0:
            flags.wait(range(1), number)
            return 0.0, 0.0
        start = time.monotonic()
        for _ in range(steps):
            way.step()
        end = time.monotonic()
    flags.set(number)
    return start, end


def check_replicas(ways: list[Local], comm: MPI.Intracomm) -> None:
    for way in ways:
        if isinstance(way, HvdBackup | Horovod | Ddp | NaiveMpi):
            mine = torch.cat([p.detach().view(-1) for p in way.model.parameters()]).numpy()
            theirs = comm.bcast(mine)
            if mine.tobytes() != theirs.tobytes():
                raise AssertionError(f"{way.name}: rank {comm.rank} has other parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hvd.init()
    start_gloo(comm)
    torch.set_num_threads(1)
    flags = Flags(comm)
    for name in args.models.split(","):
        measure(name, comm, flags, 5 if args.quick else 25, 0.1 if args.quick else 0.2)
    torch.distributed.destroy_process_group()
    hvd.shutdown()


if __name__ == "__main__":
    main()
