"""Train a ResNet with every idiom of Horovod's pytorch_imagenet_resnet50.py.

    python examples/torch_resnet.py
    mpirun -np 5 python examples/torch_resnet.py --backup-workers 1 --arch resnet50 --data FOLDER

Warm-up of the learning rate, accumulation over several batches, compression, mixed precision,
checkpoints on rank 0 and resuming from them, averaged metrics. FOLDER holds CIFAR-10's binaries or
MNIST's idx files; without it, the digits of scikit-learn. `tiny` has three blocks; `resnet50` has
the blocks of He et al. (2015) and a stem for small images.
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

BLOCKS = {"tiny": ((1, 1, 1), 8), "resnet50": ((3, 4, 6, 3), 64)}  # per stage, and the first width


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, outputs, 1, bias=False)),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(arch: str, channels: int) -> nn.Module:
    stages, width = BLOCKS[arch]
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, stride=2 if stage and not block else 1))
            inputs = 4 * width
        width *= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def datasets(folder: Path | None) -> tuple[TensorDataset, TensorDataset]:
    """Images, float32 [n, channels, height, width] from 0 to 1, and labels; training and test."""
    images = load_images(folder)
    train = torch.tensor(images.train_x) / 255, torch.tensor(images.train_y)
    test = torch.tensor(images.test_x) / 255, torch.tensor(images.test_y)
    return TensorDataset(*train), TensorDataset(*test)


class Metric:
    """A mean over all ranks' values.

    Horovod's example asks all ranks at every step, which waits for the slowest: here they are asked
    once, at the end.
    """

    def __init__(self) -> None:
        self.total = torch.zeros(2, dtype=torch.float64)

    def update(self, value: float, count: int) -> None:
        self.total += torch.tensor([value * count, count], dtype=torch.float64)

    def average(self) -> float:
        total, count = hvd.allreduce(self.total, op=hvd.Sum)
        return float(total / count)


def adjust_learning_rate(optimizer, epoch: float, gradients: int, args) -> None:
    """Goyal et al. (2017): from the rate of one gradient up to that of all, then down in steps."""
    if epoch < args.warmup_epochs:
        factor = (epoch * (gradients - 1) / args.warmup_epochs + 1) / gradients
    else:
        factor = 0.1 ** sum(epoch >= args.epochs * part for part in (0.5, 0.75))
    for group in optimizer.param_groups:
        group["lr"] = args.base_lr * gradients * factor


def train_epoch(epoch: int, model, optimizer, scaler, loader, gradients: int, args) -> float:
    model.train()
    loss_metric = Metric()
    per_step = args.batches_per_allreduce
    for step, (x, y) in enumerate(loader):
        adjust_learning_rate(optimizer, epoch + step / len(loader), gradients, args)
        # Not in Horovod, and optional: a rank that has been left behind stops computing here.
        with optimizer.attempt():
            optimizer.zero_grad()
            for part_x, part_y in zip(x.chunk(per_step), y.chunk(per_step), strict=True):
                with torch.autocast("cpu", torch.float16, enabled=args.amp):
                    loss = nn.functional.cross_entropy(model(part_x), part_y)
                loss_metric.update(float(loss.detach()), len(part_x))
                scaler.scale(loss / per_step).backward()
        optimizer.synchronize()  # from here on, p.grad is the agreed mean, on every rank
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
    return loss_metric.average()


def evaluate(model, data: TensorDataset) -> float:
    """Share of right answers, over all ranks: each tests its part of the images."""
    model.eval()
    x, y = data[hvd.rank() :: hvd.size()]
    metric = Metric()
    with torch.no_grad():
        metric.update(float((model(x).argmax(1) == y).double().mean()), len(y))
    return metric.average()


def last_checkpoint(folder: Path, epochs: int) -> int:
    """Epochs that are done, as rank 0 sees it: it alone writes, and others may not see its disk."""
    done = [n for n in range(epochs + 1) if (folder / f"checkpoint-{n}.pt").exists()]
    return int(hvd.broadcast(torch.tensor(max(done, default=0)), root_rank=0))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train a ResNet on small images")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 binaries or MNIST files")
    parser.add_argument("--arch", choices=sorted(BLOCKS), default="tiny")
    parser.add_argument("--backup-workers", type=int, help="default: as the launcher says, or 0")
    parser.add_argument("--fp16-allreduce", action="store_true", help="gradients travel as float16")
    parser.add_argument("--amp", action="store_true", help="forward pass in float16")
    parser.add_argument("--batches-per-allreduce", type=int, default=1, help="to accumulate")
    parser.add_argument("--gradient-predivide-factor", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=32, help="images per backward pass")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--base-lr", type=float, default=0.0125, help="rate for one gradient")
    parser.add_argument("--warmup-epochs", type=float, default=2)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--wd", type=float, default=5e-5, help="weight decay")
    parser.add_argument("--clip", type=float, default=5.0, help="most norm of the mean gradient")
    parser.add_argument("--checkpoints", type=Path, help="folder to write to and to resume from")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def gradients_of_a_round(backup_workers: int | None) -> int:
    """N of the N + b ranks; None: b is what `hvd-backup run -b` says."""
    if backup_workers is None:
        backup_workers = int(os.environ.get("HVD_BACKUP_WORKERS") or 0)
    return max(hvd.size() - backup_workers, 1)


def main() -> None:
    args = arguments()
    hvd.init()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the ranks share the cores
    train, test = datasets(args.data)
    sampler = DistributedSampler(train, hvd.size(), hvd.rank(), seed=args.seed, drop_last=True)
    per_step = args.batch_size * args.batches_per_allreduce
    loader = DataLoader(train, per_step, sampler=sampler, drop_last=True)
    first = last_checkpoint(args.checkpoints, args.epochs) if args.checkpoints else 0

    model = resnet(args.arch, channels=train[0][0].shape[0])
    # A round adds up this many gradients, and the learning rate follows them.
    gradients = gradients_of_a_round(args.backup_workers) * args.batches_per_allreduce
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.base_lr, momentum=args.momentum, weight_decay=args.wd
    )
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none,
        backward_passes_per_step=args.batches_per_allreduce,
        op=hvd.Average,
        gradient_predivide_factor=args.gradient_predivide_factor,
        backup_workers=args.backup_workers,  # Horovod: the same, without this line
    )
    scaler = torch.amp.GradScaler("cpu", enabled=args.amp)
    if first and hvd.rank() == 0:  # the others get it from rank 0
        saved = torch.load(args.checkpoints / f"checkpoint-{first}.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    for epoch in range(first, args.epochs):
        sampler.set_epoch(epoch)
        loss = train_epoch(epoch, model, optimizer, scaler, loader, gradients, args)
        reached = evaluate(model, test)
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1}: loss {loss:.3f}, test accuracy {reached:.1%}", flush=True)
            if args.checkpoints:
                args.checkpoints.mkdir(parents=True, exist_ok=True)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, args.checkpoints / f"checkpoint-{epoch + 1}.pt")
    late = hvd.allgather_object(optimizer.stats().late)
    if hvd.rank() == 0:
        print(f"gradients that came too late, per rank: {late}")
    hvd.shutdown()


if __name__ == "__main__":
    main()
