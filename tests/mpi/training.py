"""What the torch tests share: a model with a straggler in it, and a way to compare replicas."""

import contextlib
import random
import time

import torch
from mpi.helpers import RANK, SIZE, digest, same_everywhere
from torch import nn

import hvd_backup.torch as hvd

torch.set_num_threads(1)
LATE_WORDS = ("drop", "carry")


class Delay(nn.Module):
    """Passes its input on, now and then a little late."""

    def __init__(self, seconds=0.01, chance=0.03):
        super().__init__()
        self.seconds, self.chance = seconds, chance
        self.rng = random.Random(f"rank {RANK}")

    def forward(self, x):
        if self.rng.random() < self.chance:
            time.sleep(self.seconds)
        return x


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), Delay(), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def batch(step, rank=RANK, size=8, dtype=torch.float32):
    """Rank `rank`'s data of a step; every rank can make every other's."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(size, 6, generator=generator)
    return x.to(dtype), torch.randint(0, 3, (size,), generator=generator)


def backward(model, data):
    x, y = data
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


def train(model, optimizer, steps, *, attempt=False, scheduler=None, after_step=None, first=0):
    """The usual loop, each rank on data of its own."""
    for step in range(first, first + steps):
        with optimizer.attempt() if attempt else contextlib.nullcontext():
            optimizer.zero_grad()
            backward(model, batch(step))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if after_step is not None:
            after_step(step)


def tensor_bits(tensor):
    return digest(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def replica(model, optimizer=None):
    """Facts that are equal on two ranks if and only if parameters, gradients and state are."""
    facts = [(name, tensor_bits(p)) for name, p in model.named_parameters()]
    facts += [(n, p.grad is not None and tensor_bits(p.grad)) for n, p in model.named_parameters()]
    for group in optimizer.state_dict()["param_groups"] if optimizer else ():
        facts.append(sorted((key, repr(value)) for key, value in group.items()))
    for index, state in optimizer.state_dict()["state"].items() if optimizer else ():
        for key, value in sorted(state.items()):
            bits = tensor_bits(value) if isinstance(value, torch.Tensor) else repr(value)
            facts.append((index, key, bits))
    return facts


def assert_replicas(model, optimizer=None):
    """All ranks hold the same bits: parameters, gradients, optimizer state, hyperparameters."""
    same_everywhere(replica(model, optimizer))


def numbers_of_backups():
    """None, one, and all but one."""
    return sorted({0, min(1, SIZE - 1), SIZE - 1})


def distribute(model, make=torch.optim.SGD, *, lr=0.05, options=None, **ours):
    """A DistributedOptimizer for all of `model`, whose replicas it makes equal."""
    hvd.broadcast_parameters(model.state_dict())
    plain = make(model.parameters(), lr=lr, **(options or {}))
    return hvd.DistributedOptimizer(plain, model.named_parameters(), **ours)
