"""Models made to confuse: tied, shared, unused, reordered and late parameters, drawn at random.

Replicas are compared bit for bit, and without backups with one process that has all ranks' data.
"""

import copy
import random

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import tensor_bits
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi

WIDTH = 3
MAKERS = {
    "sgd": lambda groups: optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda groups: optim.Adam(groups, lr=0.05),
    "adamw": lambda groups: optim.AdamW(groups, lr=0.05, weight_decay=0.1),
}


class Hostile(nn.Module):
    """Layers of one shape: some are one module, some share a weight, some are never used."""

    def __init__(self, draw):
        super().__init__()
        layers = [
            nn.Linear(WIDTH, WIDTH, bias=draw.random() < 0.5) for _ in range(draw.randint(3, 6))
        ]
        if draw.random() < 0.7:
            layers.append(layers[0])  # the same module again
        if draw.random() < 0.7:
            layers[1].weight = layers[2].weight  # tied
        self.layers = nn.ModuleList(layers)
        self.scale = nn.Parameter(torch.ones(()))  # without axes
        self.nothing = nn.Parameter(torch.zeros(0, 2))

    def forward(self, x, used, scaled):
        for k in used:
            x = torch.tanh(self.layers[k](x))
        return x * self.scale if scaled else x


def choice_of(seed, step, rank, count):
    """What `rank` uses in a step: perhaps nothing at all."""
    draw = random.Random(f"{seed} {step} {rank}")
    used = [draw.randrange(count) for _ in range(draw.randint(0, 3))]
    return used, draw.random() < 0.6


def gradients(model, seed, step, rank):
    """By parameter, None where there is none."""
    params = list(model.parameters())
    for p in params:
        p.grad = None
    generator = torch.Generator().manual_seed(1000 * seed + 10 * step + rank)
    used, scaled = choice_of(seed, step, rank, len(model.layers))
    out = model(torch.randn(2, WIDTH, generator=generator), used, scaled)
    if out.requires_grad:
        out.square().sum().backward()
    return [p.grad for p in params]


def mean_of(per_rank):
    """A parameter that some rank used has the mean with the others' zeros."""
    there = [grad for grad in per_rank if grad is not None]
    return sum(there) / SIZE if there else None


def groups_of(model, draw):
    """The model's parameters in an order of their own, in two groups; the last comes later."""
    params = list(model.parameters())
    draw.shuffle(params)
    return [{"params": params[:2]}, {"params": params[2:-1]}], {"params": params[-1:]}


def thaw_and_freeze(model, draw, step):
    """Freezes and unfreezes, alike on all ranks."""
    for p in model.parameters():
        if step > 1 and draw.random() < 0.1:
            p.requires_grad_(not p.requires_grad)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("seed", range(6))
def test_without_backups_it_is_as_in_one_process(make, seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = Hostile(draw)
    alone = copy.deepcopy(model)
    order = random.Random(seed + 100)
    opt = make(groups_of(model, order)[0])
    local = make(groups_of(alone, random.Random(seed + 100))[0])
    later, later_alone = (groups_of(m, random.Random(seed + 100))[1] for m in (model, alone))
    named = model.named_parameters() if seed % 2 else None
    opt = hvd.DistributedOptimizer(opt, named, gradient_as_bucket_view=seed == 3)
    frozen, frozen_alone = random.Random(seed), random.Random(seed)
    for step in range(8):
        if step == 4:
            opt.add_param_group(later)
            local.add_param_group(later_alone)
        thaw_and_freeze(model, frozen, step)
        thaw_and_freeze(alone, frozen_alone, step)
        expected = [
            mean_of(grads)
            for grads in zip(*(gradients(alone, seed, step, r) for r in range(SIZE)), strict=True)
        ]
        gradients(model, seed, step, RANK)
        opt.step()
        for p, grad in zip(alone.parameters(), expected, strict=True):
            p.grad = grad
        local.step()
        for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    same_everywhere([tensor_bits(p) for p in model.parameters()])
    opt.close()


@pytest.mark.parametrize("late", ["drop", "carry"])
@pytest.mark.parametrize("seed", range(4))
def test_with_backups_replicas_are_equal(late, seed):
    torch.manual_seed(seed)
    model = Hostile(random.Random(seed))
    make = list(MAKERS.values())[seed % len(MAKERS)]
    groups, later = groups_of(model, random.Random(seed))
    opt = hvd.DistributedOptimizer(make(groups), backup_workers=SIZE - 1, late=late, window=2)
    frozen = random.Random(seed)
    for step in range(10):
        if step == 5:
            opt.add_param_group(later)
        thaw_and_freeze(model, frozen, step)
        gradients(model, seed, step, RANK)
        opt.step()
    same_everywhere([tensor_bits(p) for p in model.parameters()])
    opt.close()
