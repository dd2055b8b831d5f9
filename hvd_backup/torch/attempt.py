"""Leaving work early that can no longer count."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook


class Overtaken(BaseException):
    """The round was sealed without this rank. Not an Exception: no handler should catch it."""


class Attempt:
    """``with optimizer.attempt():`` around the forward and backward pass of one step.

    As soon as the round is sealed without this rank, the next module that the program enters,
    forward or backward, leaves the block. ``step()`` then only loads the result. What the block
    would have assigned (a loss, say) may be missing after it.

    Attributes:
        completed: Whether the block ran to its end.

    Example:
        >>> import torch
        >>> import hvd_backup.torch as hvd
        >>> hvd.init()
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> with optimizer.attempt() as attempt:
        ...     optimizer.zero_grad()
        ...     model(torch.ones(3, 2)).sum().backward()
        >>> optimizer.step()
        >>> attempt.completed
        True
    """

    def __init__(self, overtaken: Callable[[], bool], finished: Callable[[bool], None]) -> None:
        self._overtaken = overtaken
        self._finished = finished
        self.completed = False
        """Whether the block ran to its end."""

    def check(self) -> None:
        """Leave the block if its work can no longer count. For long code outside of any module.

        Raises:
            Overtaken: The round was sealed without this rank. The block catches it.
        """
        if self._overtaken():
            raise Overtaken

    def __enter__(self) -> Attempt:
        self._hook = register_module_forward_pre_hook(self._enter_module)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._hook.remove()
        self.completed = kind is None
        overtaken = isinstance(error, Overtaken)
        self._finished(overtaken)
        return overtaken

    def _enter_module(self, module: Any, args: Any) -> None:
        self.check()
