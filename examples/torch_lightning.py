"""A LightningModule whose DistributedDataParallel steps in rounds.

    mpirun -np 5 python examples/torch_lightning.py --backup-workers 1

Needs `pip install lightning`, which finds mpirun's ranks by itself. What differs from a script
without hvd_backup is marked (*). The data are the digits of scikit-learn.
"""

import argparse
import tempfile

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hvd_backup.torch as hvd
from hvd_backup.study.data import load_images
from hvd_backup.torch import ddp_hook


class Rounds(DDPStrategy):
    """(*) DDP's strategy, with a round in each backward pass."""

    def __init__(self, backup_workers: int | None) -> None:
        # Buffers of a model with batch norm would be sent to all ranks before each forward pass.
        super().__init__(process_group_backend="gloo", broadcast_buffers=False)
        self.backup_workers = backup_workers

    def configure_ddp(self) -> None:
        super().configure_ddp()
        self.hook = ddp_hook.register(self.model, backup_workers=self.backup_workers)


class Digits(LightningModule):
    """Two layers."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        x, y = batch
        right = (self.layers(x).argmax(1) == y).float().mean()
        self.log("accuracy", right, sync_dist=True)  # of all ranks: once an epoch they meet

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.003)


def main() -> None:
    parser = argparse.ArgumentParser(description="train on digits with Lightning")
    parser.add_argument("--backup-workers", type=int, help="default: as the launcher says, or 0")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    hvd.init()  # (*)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the ranks share the cores
    images = load_images(None)
    train, test = (
        TensorDataset(torch.tensor(x).flatten(1) / 255, torch.tensor(y))
        for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y))
    )
    strategy = Rounds(args.backup_workers)  # (*)
    trainer = Trainer(
        accelerator="cpu",
        devices=hvd.local_size(),
        num_nodes=hvd.cross_size(),
        strategy=strategy,
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
    )
    trainer.fit(
        Digits(train.tensors[0].shape[1]),
        DataLoader(train, batch_size=32, shuffle=True, drop_last=True),
        DataLoader(test, batch_size=256),
    )
    stats = strategy.hook.stats()
    rounds = hvd.allgather_object((stats.rounds, stats.late))
    if hvd.rank() == 0:
        print(f"test accuracy {float(trainer.callback_metrics['accuracy']):.1%}")
        print(f"rounds, and gradients that came too late, per rank: {rounds}")
    torch.distributed.destroy_process_group()
    hvd.shutdown()


if __name__ == "__main__":
    main()
