"""Train a small CNN on digits, on one process or on many that do not wait for the slowest.

    python examples/torch_mnist.py
    mpirun -np 5 python examples/torch_mnist.py --backup-workers 1 --data FOLDER

FOLDER holds the MNIST idx files (`train-images-idx3-ubyte.gz` and so on). Without it, the small
digits of scikit-learn are used.
"""

import argparse
import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import hvd_backup.torch as hvd  # was: import horovod.torch as hvd
from hvd_backup.study.data import load_images


def datasets(folder: Path | None) -> tuple[TensorDataset, TensorDataset]:
    """Images, float32 [n, channels, height, width] from 0 to 1, and labels; training and test."""
    images = load_images(folder)
    train = torch.tensor(images.train_x) / 255, torch.tensor(images.train_y)
    test = torch.tensor(images.test_x) / 255, torch.tensor(images.test_y)
    return TensorDataset(*train), TensorDataset(*test)


def cnn(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(3),
        nn.Flatten(),
        nn.Linear(32 * 3 * 3, 10),
    )


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Share of right answers, over all ranks: each tests its part of the images."""
    x, y = data[hvd.rank() :: hvd.size()]
    with torch.no_grad():
        right = (model(x).argmax(1) == y).sum()
    counts = hvd.allreduce(torch.tensor([float(right), float(len(y))]), op=hvd.Sum)
    return float(counts[0] / counts[1])


def gradients_of_a_round(backup_workers: int | None) -> int:
    """N of the N + b ranks; None: b is what `hvd-backup run -b` says."""
    if backup_workers is None:
        backup_workers = int(os.environ.get("HVD_BACKUP_WORKERS") or 0)
    return max(hvd.size() - backup_workers, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="train a small CNN on digits")
    parser.add_argument("--data", type=Path, help="folder with the MNIST idx files")
    parser.add_argument("--backup-workers", type=int, help="default: as the launcher says, or 0")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="images per rank and step")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate for one gradient")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    hvd.init()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the ranks share the cores
    train, test = datasets(args.data)
    sampler = DistributedSampler(train, hvd.size(), hvd.rank(), seed=args.seed, drop_last=True)
    loader = DataLoader(train, args.batch_size, sampler=sampler)

    model = cnn(channels=train[0][0].shape[0])
    # A round adds up this many gradients, and the learning rate follows them.
    gradients = gradients_of_a_round(args.backup_workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr * gradients, momentum=0.9)
    # Horovod: the same, without backup_workers.
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        backup_workers=args.backup_workers,
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            # Not in Horovod, and optional: a rank that has been left behind stops computing here.
            with optimizer.attempt():
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        reached = accuracy(model, test)
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1}: test accuracy {reached:.1%}", flush=True)

    late = hvd.allgather_object(optimizer.stats().late)
    if hvd.rank() == 0:
        print(f"gradients that came too late, per rank: {late}")
    hvd.shutdown()


if __name__ == "__main__":
    main()
