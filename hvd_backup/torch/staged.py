"""Gradients on a GPU: packed there, copied to the slot on the host, and the result copied back.

Copies run on a stream of their own, of which tensors know nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from hvd_backup import _core
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.torch.device import Run, number_of, stream_of
from hvd_backup.torch.layout import GradientLayout
from hvd_backup.torch.means import Means
from hvd_backup.torch.packed import Packed
from hvd_backup.world import runtime

log = logging.getLogger("hvd_backup")


class Copies:
    """Tensors of one device to a rank's slot, and results to tensors, on torch's current stream.

    `runs` are their places. `pin` False: by way of a pinned buffer, as where CUDA cannot pin the
    shared memory.
    """

    def __init__(
        self, device: torch.device, runs: Sequence[Run], exchange: Exchange, *, pin: bool = True
    ) -> None:
        self._device, self._exchange = device, exchange
        slots = exchange.slots
        first, last = slots[0], slots[-1]
        self._staging = _core.Staging(
            number_of(device),
            list(runs),
            first.ctypes.data,
            last.ctypes.data + last.nbytes - first.ctypes.data,
            pin=pin,
            owner=slots,
        )
        self._said = False
        self._say_if_not_pinned()

    def stage(self, tensors: list[int]) -> None:
        """The slot has what is at these addresses; 0 stands for zeros. The thread sleeps."""
        self._staging.stage(tensors, stream_of(self._device))

    def load(self, tensors: list[int]) -> None:
        """The last round's result goes to these addresses; torch's current stream waits for it."""
        result = self._exchange.shared_results[0].ctypes.data
        self._staging.load(result, tensors, stream_of(self._device))
        self._say_if_not_pinned()

    def settle(self) -> None:
        """The last result is not read any more after it. ``stage()`` implies it."""
        self._staging.settle()

    @property
    def why_not_pinned(self) -> str:
        """Why the shared memory is not pinned where it lies, in CUDA's words; empty if it is."""
        return self._staging.why_not_pinned

    def _say_if_not_pinned(self) -> None:
        if not self._said and (why := self.why_not_pinned):
            self._said = True
            log.warning(
                "rank %d, %s: the shared memory cannot be pinned (%s); gradients are copied once "
                "more, by way of a pinned buffer",
                *(runtime.rank(), self._device, why),
            )


class Staged(Packed):
    """The way through the memory of the host, which is always there."""

    def __init__(
        self,
        means: Means,
        layout: GradientLayout,
        exchange: Exchange,
        indices: Sequence[int],
        *,
        pin: bool = True,
    ) -> None:
        super().__init__(means, layout, exchange, indices)
        self._copies = Copies(self._device, self._runs, exchange, pin=pin)

    def settle(self) -> None:
        self._copies.settle()

    def _pack(self, tensors: list[int]) -> None:
        self._copies.stage(tensors)

    def _unpack(self, tensors: list[int]) -> None:
        self._copies.load(tensors)
