"""The Trainer of Hugging Face Transformers, whose DistributedDataParallel steps in rounds.

    mpirun -np 5 python examples/torch_trainer.py --backup-workers 1

Needs `pip install accelerate transformers`. What differs from a script without hvd_backup is marked
(*). The model is a small one of our own, which gives the Trainer what it wants: a loss, and logits.
The data are the digits of scikit-learn.
"""

import argparse
import tempfile
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

import hvd_backup.torch as hvd
from hvd_backup.study.data import load_images
from hvd_backup.torch import ddp_hook


class RoundsTrainer(Trainer):
    """(*) With a round in each backward pass."""

    hook: ddp_hook.DdpHook | None = None
    backup_workers: int | None = None

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.hook is None:  # the model has just been wrapped
            self.hook = ddp_hook.register(model, backup_workers=self.backup_workers)
        return super().training_step(model, *args, **kwargs)


class Digits(nn.Module):
    """Two layers."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Examples(Dataset[dict[str, torch.Tensor]]):
    """Images with their labels, as the Trainer reads them."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.pixels, self.labels = torch.tensor(x).flatten(1) / 255, torch.tensor(y)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixels": self.pixels[i], "labels": self.labels[i]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description="train on digits with the Trainer")
    parser.add_argument("--backup-workers", type=int, help="default: as the launcher says, or 0")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    hvd.init()  # (*)
    ddp_hook.set_torchrun_env()  # (*) where the Trainer looks for the ranks
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the ranks share the cores
    images = load_images(None)
    settings = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        use_cpu=True,
        ddp_backend="gloo",
        num_train_epochs=args.epochs,
        per_device_train_batch_size=32,
        dataloader_drop_last=True,
        learning_rate=0.003,
        max_grad_norm=1.0,
        # (*) What would let every step wait for every rank: buffers sent before the forward pass,
        # tokens counted over all ranks, losses gathered for the log.
        ddp_broadcast_buffers=False,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=False,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = RoundsTrainer(
        model=Digits(images.train_x[0].size),
        args=settings,
        train_dataset=Examples(images.train_x, images.train_y),
        eval_dataset=Examples(images.test_x, images.test_y),
        compute_metrics=accuracy,
    )
    trainer.backup_workers = args.backup_workers
    trainer.train()
    result = trainer.evaluate()
    stats = trainer.hook.stats()
    rounds = hvd.allgather_object((stats.rounds, stats.late))
    if hvd.rank() == 0:
        print(f"test accuracy {result['eval_accuracy']:.1%}")
        print(f"rounds, and gradients that came too late, per rank: {rounds}")
    torch.distributed.destroy_process_group()
    hvd.shutdown()


if __name__ == "__main__":
    main()
