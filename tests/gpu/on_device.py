"""What the properties have in common: which there are, gradients, and what they must become."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch

import hvd_backup.torch as hvd

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PROPERTIES: list[Callable[[torch.device], None]] = []
ON_GPU_ONLY: list[Callable[[torch.device], None]] = []
STAGED_ONLY: list[Callable[[torch.device], None]] = []


def prop(function):
    PROPERTIES.append(function)
    return function


def on_gpu(function):
    ON_GPU_ONLY.append(function)
    return prop(function)


def when_staged(function):
    STAGED_ONLY.append(function)
    return prop(function)


def digest(tensors):
    state = hashlib.sha1()
    for tensor in tensors:
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def same_everywhere(fact):
    everybody = hvd.allgather_object(fact)
    assert all(theirs == everybody[0] for theirs in everybody), everybody


def noise(rank, key, like):
    """Rank `rank`'s gradient for a tensor: every rank can compute every other's."""
    rng = np.random.default_rng((rank, key))
    flat = rng.random(like.numel(), dtype=np.float32) - np.float32(0.5)
    return torch.from_numpy(flat).reshape(like.shape).to(like.dtype)


def mean(ranks, key, like):
    """In ascending order of rank, in float32 or wider: the bits that the exchange must give."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    total = noise(ranks[0], key, like).to(wide)
    for rank in ranks[1:]:
        total = total + noise(rank, key, like).to(wide)
    return (total / len(ranks)).to(like.dtype)


def parameters(device):
    """Of all dtypes, empty, misaligned in the flat buffer, transposed, more than one tile."""
    shapes = [(3,), (17, 5), (), (0, 4), (70_001,), (4, 3, 5, 5)]
    params = [torch.zeros(s, dtype=d, device=device) for d in DTYPES for s in shapes]
    params += [torch.zeros(8, 6, device=device).t()]
    params += [torch.zeros(2, 3, 4, 4, device=device).to(memory_format=torch.channels_last)]
    return [torch.nn.Parameter(param) for param in params]


def assert_gradients(params, ranks, key):
    for i, param in enumerate(params):
        expected = mean(ranks, key + i, param)
        assert param.grad.device == param.device
        assert torch.equal(param.grad.cpu(), expected), (i, param.shape, param.dtype)
