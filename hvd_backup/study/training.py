"""One rank of the demo's training: `python -m hvd_backup.study.training SETTINGS -b WORKERS`.

The loop is the one of any program that uses `hvd_backup.torch`; around it stand random stragglers
and the measuring. It trains once for each seed. Rank 0 prints its progress as JSON lines and writes
a `Run` for each seed beside SETTINGS.

Nothing is tested while the clock runs: a rank that evaluates is one more straggler. All replicas
have the same bits, so the ranks take snapshots in turn and test their own after the training.
"""

import argparse
import copy
import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import hvd_backup.torch as hvd
from hvd_backup.study.data import DataError, Images, load_images
from hvd_backup.study.experiment import Run, Settings, run_name
from hvd_backup.study.stragglers import DelayModel, Floats

PROGRESS_EVERY_S = 0.2
TEST_BATCH = 500


class Straggler(nn.Module):
    """A layer that lets its input through and sometimes takes its time: a slow forward pass.

    It sleeps in one go, as a machine does that swaps or is preempted: nothing wakes it early.
    """

    def __init__(self, delay: DelayModel, seed: int, rank: int) -> None:
        super().__init__()
        self._delay, self._seed, self._rank = delay, seed, rank
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self._delay.delay_s(self._seed, self._rank, self.step))
        return x


class Standardize(nn.Module):
    """Bytes to float32 with mean 0 and deviation 1 over the training set."""

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        deviation, mean = torch.std_mean(pixels[:5000].float())
        self._mean, self._scale = float(mean), 1 / max(float(deviation), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self._mean) * self._scale


@dataclass(frozen=True)
class Snapshot:
    """The parameters after `rounds` rounds."""

    rounds: int
    parameters: dict[str, Tensor]


def small_cnn(pixels: Tensor) -> nn.Module:
    """Two convolutions and a linear layer, for uint8 images [n, channels, height, width]."""
    _, channels, height, _ = pixels.shape
    shrink = nn.MaxPool2d(2) if height >= 16 else nn.Identity()
    return nn.Sequential(
        Standardize(pixels),
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        shrink,
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def batches(images: Images, settings: Settings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of shuffled batches, epoch after epoch, `rounds` of them in all."""
    data = TensorDataset(torch.tensor(images.train_x), torch.tensor(images.train_y))
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, hvd.size(), hvd.rank(), seed=seed, drop_last=True
    )
    if len(sampler) < settings.batch_size:
        raise DataError(f"{len(data)} images are too few for {hvd.size()} ranks")
    loader = DataLoader(data, settings.batch_size, sampler=sampler, drop_last=True)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from loader

    return itertools.islice(endless(), settings.rounds)


def say(**message: Any) -> None:
    """Print a JSON line for the parent process, on rank 0 only."""
    if hvd.rank() == 0:
        # In one piece, or mpirun may put another rank's line before its end.
        print(json.dumps(message) + "\n", end="", flush=True)


class Progress:
    """Tells how far rank 0 is, a few times per second; `before` rounds are over already."""

    def __init__(self, before: int, rounds: int) -> None:
        self._before, self._rounds = before, rounds
        self._next = time.monotonic()

    def __call__(self, done: int, loss: float) -> None:
        now = time.monotonic()
        if now >= self._next or done == self._rounds:
            self._next = now + PROGRESS_EVERY_S
            say(round=self._before + done, loss=None if math.isnan(loss) else round(loss, 4))


def train_all(settings: Settings, backup_workers: int) -> Iterator[tuple[int, Run]]:
    """Train with each seed, on every rank of the world; all ranks get the same runs."""
    torch.set_num_threads(1)
    folder = Path(settings.data) if settings.data else None
    images: Images = hvd.broadcast_object(load_images(folder) if hvd.rank() == 0 else None)
    for seed in settings.seeds:
        yield seed, train(settings, backup_workers, seed, images)


def train(settings: Settings, backup_workers: int, seed: int, images: Images) -> Run:
    """Train on every rank of the world; the same `Run` is returned on all of them."""
    torch.manual_seed(seed)
    straggler = Straggler(settings.delay, seed, hvd.rank())
    network = small_cnn(torch.tensor(images.train_x))

    rate = settings.scaled_learning_rate(backup_workers)
    optimizer: Any = torch.optim.SGD(network.parameters(), lr=rate, momentum=settings.momentum)
    optimizer = hvd.DistributedOptimizer(
        optimizer, named_parameters=network.named_parameters(), backup_workers=backup_workers
    )
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)

    say(stage=f"training, seed {seed}")
    progress = Progress((seed - settings.seed) * settings.rounds, settings.rounds)
    share = batches(images, settings, seed)
    losses, snapshots = run_rounds(straggler, network, optimizer, share, settings, progress)
    say(stage="testing the snapshots")
    mine = {
        "history": list(optimizer.stats().history),
        "losses": losses,
        "digest": digest(network, optimizer),
        "tests": [test(network, snap, images, settings.test_images) for snap in snapshots],
    }
    optimizer.close()
    return assemble(hvd.allgather_object(mine), backup_workers)


def run_rounds(
    straggler: Straggler,
    network: nn.Module,
    optimizer: Any,
    share: Iterator[tuple[Tensor, Tensor]],
    settings: Settings,
    progress: Progress,
) -> tuple[Floats, list[Snapshot]]:
    """The training loop, plain but for the straggler, the list of losses, and the snapshots.

    Returns this rank's losses, float64 [rounds], NaN where it gave the round up, and its snapshots.
    """
    model = nn.Sequential(straggler, network)
    losses = np.full(settings.rounds, np.nan)
    snapshots = []
    for step, (x, y) in enumerate(share):
        straggler.step = step
        with optimizer.attempt():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            losses[step] = loss.item()
        optimizer.step()
        if my_snapshot(step + 1, settings):
            snapshots.append(Snapshot(step + 1, copy.deepcopy(network.state_dict())))
        progress(step + 1, losses[step])
    return losses, snapshots


def my_snapshot(rounds: int, settings: Settings) -> bool:
    """Whether this rank keeps the parameters after `rounds` rounds; the ranks take turns."""
    if rounds % settings.snapshot_every and rounds != settings.rounds:
        return False
    return rounds // settings.snapshot_every % hvd.size() == hvd.rank()


@torch.no_grad()
def test(
    network: nn.Module, snapshot: Snapshot, images: Images, limit: int
) -> tuple[int, float, float]:
    """Rounds, accuracy (0 to 1) and mean loss of a snapshot on `limit` images of the test set."""
    network.load_state_dict(snapshot.parameters)
    parts = torch.split(torch.tensor(images.test_x[:limit]), TEST_BATCH)
    output = torch.cat([network(part) for part in parts])
    labels = torch.tensor(images.test_y[:limit])
    accuracy = (output.argmax(1) == labels).double().mean().item()
    return snapshot.rounds, accuracy, nn.functional.cross_entropy(output, labels).item()


def digest(network: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """SHA-256 over the raw bytes of the parameters, buffers and optimizer state."""
    sha = hashlib.sha256()
    for name, value in flatten("network", network.state_dict()):
        sha.update(name.encode() + value)
    for name, value in flatten("optimizer", optimizer.state_dict()["state"]):
        sha.update(name.encode() + value)
    return sha.hexdigest()


def flatten(name: str, state: Any) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of everything in nested dictionaries of tensors and plain values."""
    if isinstance(state, dict):
        for key in state:
            yield from flatten(f"{name}.{key}", state[key])
    elif isinstance(state, Tensor):
        yield name, state.detach().cpu().numpy().tobytes()
    else:
        yield name, repr(state).encode()


def assemble(ranks: list[dict[str, Any]], backup_workers: int) -> Run:
    """Put the records of all ranks (in rank order) side by side."""
    histories = [rank["history"] for rank in ranks]

    def column(name: str) -> Floats:
        values = [[getattr(record, name) for record in history] for history in histories]
        table: Floats = np.array(values, np.float64).T  # None becomes NaN
        return table

    sealed = column("sealed_at_s").min(axis=1)
    contributed = column("contributed").astype(bool)
    # A rank reads the clock once it has arrived, and may lose its core before it comes to that.
    arrived = np.minimum(
        column("arrived_at_s"), np.where(contributed, sealed[:, np.newaxis], np.inf)
    )
    tests = sorted(itertools.chain.from_iterable(rank["tests"] for rank in ranks))
    rounds, accuracy, loss = zip(*tests, strict=True)
    return Run(
        backup_workers=backup_workers,
        sealed_s=sealed - sealed[0],
        arrived_s=arrived - sealed[0],
        contributed=contributed,
        skipped=column("skipped").astype(bool),
        loss=np.stack([rank["losses"] for rank in ranks], axis=1),
        snapshot_round=np.array(rounds, np.int64),
        test_accuracy=np.array(accuracy),
        test_loss=np.array(loss),
        digests=tuple(rank["digest"] for rank in ranks),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", type=Path, help="settings.json of the demo")
    parser.add_argument("-b", "--backup-workers", type=int, default=0)
    options = parser.parse_args()
    hvd.init()
    try:
        for seed, run in train_all(Settings.load(options.settings), options.backup_workers):
            if hvd.rank() == 0:
                name = run_name(run.backup_workers, seed)
                run.save(options.settings.parent / f"{name}.npz")
    except DataError as error:
        sys.exit(f"rank {hvd.rank()}: {error}")
    hvd.shutdown()


if __name__ == "__main__":
    main()
