"""A script on Hugging Face Accelerate, whose DistributedDataParallel steps in rounds.

    mpirun -np 5 python examples/torch_accelerate.py --backup-workers 1

Needs `pip install accelerate`. What differs from a script without hvd_backup is marked (*). The
data are the digits of scikit-learn.
"""

import argparse

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hvd_backup.torch as hvd
from hvd_backup.study.data import load_images
from hvd_backup.torch import ddp_hook


def main() -> None:
    parser = argparse.ArgumentParser(description="train on digits with Accelerate")
    parser.add_argument("--backup-workers", type=int, help="default: as the launcher says, or 0")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    hvd.init()  # (*)
    ddp_hook.set_torchrun_env()  # (*) where Accelerate looks for the ranks
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the ranks share the cores
    # (*) Buffers of a model with batch norm would be sent to all ranks before each forward pass.
    settings = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[settings])
    images = load_images(None)
    x, y = torch.tensor(images.train_x).flatten(1) / 255, torch.tensor(images.train_y)
    model = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    hook = ddp_hook.register(model, backup_workers=args.backup_workers)  # (*)

    for epoch in range(args.epochs):
        for batch_x, batch_y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch_x), batch_y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        test_x = torch.tensor(images.test_x).flatten(1) / 255
        right = accelerator.unwrap_model(model)(test_x).argmax(1) == torch.tensor(images.test_y)
        accelerator.print(f"epoch {epoch + 1}: test accuracy {float(right.float().mean()):.1%}")
    rounds = hvd.allgather_object((hook.stats().rounds, hook.stats().late))
    accelerator.print(f"rounds, and gradients that came too late, per rank: {rounds}")
    accelerator.end_training()  # ends its process group
    hvd.shutdown()


if __name__ == "__main__":
    main()
