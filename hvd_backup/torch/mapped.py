"""Gradients on a GPU: packed into a slot there, which the GPUs of all ranks map.

Nothing goes through the memory of the host but the marks. No GPU has run this yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hvd_backup import _core
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.rounds.mapped_memory import Wish
from hvd_backup.torch.device import number_of, stream_of
from hvd_backup.torch.layout import GradientLayout
from hvd_backup.torch.means import Means
from hvd_backup.torch.packed import Packed


class Mapped(Packed):
    """The way of all parameters of an exchange that has memory of their device: `mapped`."""

    def __init__(
        self,
        means: Means,
        layout: GradientLayout,
        exchange: Exchange,
    ) -> None:
        super().__init__(means, layout, exchange, range(len(means.params)))
        assert exchange.mapped is not None
        self._staging = _core.MappedStaging(exchange.mapped, self._runs)

    def settle(self) -> None:
        self._staging.settle()

    def is_finite(self) -> bool:
        """Whether all that was staged last is."""
        return self._staging.is_finite

    def show_slot(self) -> None:
        """Copy the slot to its place in the host's memory, which is otherwise not used."""
        self._staging.fetch(self._exchange.slots[0].ctypes.data)

    def _pack(self, tensors: list[int]) -> None:
        self._staging.stage(tensors, stream_of(self._device))

    def _unpack(self, tensors: list[int]) -> None:
        self._staging.load(self._exchange.buffer, tensors, stream_of(self._device))


def wish(params: Sequence[torch.Tensor], *, on_cpu: bool) -> Wish:
    """Device memory for these parameters' gradients, or why there cannot be any.

    `on_cpu`: for tests, parameters on the CPU have the kernels' twins.
    """
    devices = list(dict.fromkeys(param.device for param in params))
    if len(devices) != 1:
        where = ", ".join(map(str, devices)) or "nowhere: there are none"
        return Wish(_core.Staging.HOST, f"its parameters are not all on one device, but on {where}")
    if devices[0].type == "cpu" and not on_cpu:
        return Wish(_core.Staging.HOST, "its parameters are on the CPU")
    return Wish(number_of(devices[0]))
