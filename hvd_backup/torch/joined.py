"""What becomes of a model and its optimizer when ranks have joined."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch.utils.weak import TensorWeakRef

from hvd_backup import errors
from hvd_backup.torch.functions import share_state, share_tensors
from hvd_backup.world.wire import Channel


class Replicas:
    """A DistributedOptimizer's parameters and state; see ``hvd_backup.rounds.absence``.

    A rank may have left the function that made its optimizer, and have only the model, or nothing.
    What is gone on the root, which runs the same program, no rank can use any more.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor], *, view: bool
    ) -> None:
        """`view`: gradients may lie in the memory that ranks share."""
        self._view = view
        self._optimizer = weakref.ref(optimizer)
        self._params = [TensorWeakRef(param) for param in params]
        self._shapes = [(param.shape, param.dtype) for param in params]

    def is_gone(self) -> bool:
        """Whether there is no optimizer any more that could step."""
        return self._optimizer() is None

    def keep_gradients(self) -> None:
        """They may be views of a result whose memory will be used again."""
        for reference in self._params if self._view else ():
            param = reference()
            if param is not None and param.grad is not None:
                param.grad = param.grad.detach().clone()

    def take_over(self, channel: Channel, root: int) -> None:
        """Have the root's parameters and state, as far as it has them.

        Raises Error, on every rank, if the root's state cannot be pickled.
        """
        optimizer = self._optimizer()
        params = [reference() for reference in self._params]
        there = channel.comm.bcast([param is not None for param in params], root=root)
        for param, (shape, dtype), is_there in zip(params, self._shapes, there, strict=True):
            if is_there:
                whole = param if param is not None else torch.empty(shape, dtype=dtype)
                share_tensors([whole], channel, root)
        mine = optimizer.state_dict() if optimizer is not None else None
        state, problem = share_state(mine, channel, root)
        if problem:
            raise errors.Error(f"rank {root}: {problem}")
        if state is not None and optimizer is not None and channel.comm.rank != root:
            optimizer.load_state_dict(state)
