"""Which optimizer exchanges a parameter's gradient, and what a parameter asks of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, MutableMapping
from typing import Protocol

import torch
from torch.utils.weak import WeakTensorKeyDictionary


class Owner(Protocol):
    """What runs rounds for parameters: a DistributedOptimizer, or a DDP hook."""

    @property
    def backup_workers(self) -> int: ...

    def hand_over(self, optimizer: torch.optim.Optimizer | None) -> None:
        """A new owner takes over, the DistributedOptimizer of `optimizer`, or a DDP hook."""


# Not attributes of the parameters: torch.save(model) would pickle them. Weak on both sides: an
# owner knows its parameters.
_owners: MutableMapping[torch.Tensor, weakref.ref[Owner]] = WeakTensorKeyDictionary()
_need_every_rank: MutableMapping[torch.Tensor, str] = WeakTensorKeyDictionary()
_all: weakref.WeakSet[Owner] = weakref.WeakSet()


def owner(param: torch.Tensor) -> Owner | None:
    """Who exchanges this parameter's gradient."""
    reference = _owners.get(param)
    return None if reference is None else reference()


def owners_of(params: Iterable[torch.Tensor]) -> list[Owner]:
    """All that own any of these parameters."""
    found = {id(one): one for param in params if (one := owner(param)) is not None}
    return list(found.values())


def take(param: torch.Tensor, by: Owner) -> None:
    """From now on `by` exchanges this parameter's gradient."""
    _owners[param] = weakref.ref(by)
    _all.add(by)


def give_back(param: torch.Tensor, by: Owner) -> None:
    """If it was `by` who had it."""
    if owner(param) is by:
        del _owners[param]


def forget(one: Owner) -> None:
    """It has closed."""
    _all.discard(one)


def most_backup_workers() -> int:
    """Of all owners in this process."""
    return max((one.backup_workers for one in _all), default=0)


def mark_needs_every_rank(param: torch.Tensor, why: str) -> None:
    """The forward pass of this parameter's module waits for every rank."""
    _need_every_rank[param] = why


def needs_every_rank(param: torch.Tensor) -> str:
    """Why it does; empty if it does not."""
    return _need_every_rank.get(param, "")
