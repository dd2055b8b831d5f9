"""What DistributedOptimizer adds to the optimizer of a rank that is not in its process set."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from hvd_backup.rounds import arguments
from hvd_backup.rounds.reports import Stats
from hvd_backup.torch.attempt import Attempt


class Outside:
    """The same calls as for the ranks inside. There are no rounds: the optimizer is a local one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.zero_grad = optimizer.zero_grad

    def attempt(self) -> Attempt:
        """A context that is never left early."""
        return Attempt(lambda: False, lambda _: None)

    def synchronize(self) -> None:
        """Nothing to do: ``p.grad`` is this rank's own."""

    def skip_synchronize(self) -> AbstractContextManager[None]:
        """A context in which ``step()`` is what it always is."""
        return nullcontext()

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Raises ValueError for what is no such number."""
        arguments.check_passes(passes)

    def stats(self) -> Stats:
        """No rounds."""
        return Stats()

    def close(self) -> None:
        """Nothing to take away."""
