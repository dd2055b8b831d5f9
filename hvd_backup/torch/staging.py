"""From gradients to the slot, and from results to ``p.grad``, by where the parameters are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hvd_backup.config import Config
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.rounds.mapped_memory import Wish
from hvd_backup.torch.device import by_device
from hvd_backup.torch.encoding import Codec, Encoding
from hvd_backup.torch.layout import GradientLayout
from hvd_backup.torch.mapped import Mapped, wish
from hvd_backup.torch.means import Given, Means
from hvd_backup.torch.on_host import OnHost
from hvd_backup.torch.packed import Packed
from hvd_backup.torch.staged import Staged

# For tests: CPU gradients go the way of a GPU's, with the kernels' twins.
STAGE_ON_CPU = False
PIN = True


class Staging:
    """The slot and the results of one exchange, parameter by parameter. Raises DeviceError."""

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        names: Sequence[str],
        layout: GradientLayout,
        contexts: Sequence[Any],
        exchange: Exchange,
        encoding: Encoding,
        given: Given,
        *,
        view: bool = False,
    ) -> None:
        self.params = list(params)
        self._names = list(names)
        self._kinds = [(param.dtype, param.device) for param in params]
        self._index = {id(param): i for i, param in enumerate(params)}
        self._flats = layout.typed(exchange.slots)
        self._marks = layout.marks(exchange.slots)
        slots = layout.gradients(exchange.slots)
        self._codecs = [
            Codec(name, slot, ctx, encoding)
            for name, slot, ctx in zip(names, slots, contexts, strict=True)
        ]
        means = Means(self.params, self._codecs, given)
        self._encoding: list[OnHost | Packed] = []
        self._way_of: dict[int, OnHost | Packed] = {}
        self._mapped: Mapped | None = None
        for device, indices in by_device(self.params).items():
            way: OnHost | Packed
            if exchange.mapped is not None:  # then there is but one device
                way = self._mapped = Mapped(means, layout, exchange)
            elif device.type == "cpu" and not STAGE_ON_CPU:
                way = OnHost(means, layout, exchange, indices, view=view)
            else:
                way = Staged(means, layout, exchange, indices, pin=PIN)
            self._encoding.append(way)
            self._way_of.update(dict.fromkeys(indices, way))

    def fits(self, params: Sequence[torch.Tensor]) -> bool:
        """Whether these are still the parameters that this was made for."""
        return len(params) == len(self.params) and all(
            a is b and (a.dtype, a.device) == kind
            for a, b, kind in zip(params, self.params, self._kinds, strict=True)
        )

    def early(self, param: torch.Tensor) -> None:
        """backward() has just added to this gradient, perhaps not for the last time."""
        i = self._index.get(id(param))
        # A parameter may be new to this step, or converted since the last; the step sets up anew.
        # What has a graph, by backward(create_graph=True), is the user's until step().
        if i is None or param.grad is None or (param.grad.dtype, param.device) != self._kinds[i]:
            return
        if not param.grad.requires_grad:
            self._way_of[i].early(i)

    def stage(self) -> None:
        """The slot has all gradients, as they are now, after it."""
        dense, sparse = [False] * len(self.params), [False] * len(self.params)
        for way in self._encoding:
            way.stage(dense, sparse)
        self._marks.dense[:] = dense
        self._marks.sparse[:] = sparse

    def load(self) -> None:
        """Let every parameter's grad be the result; None where no contributor had one."""
        for way in self._encoding:
            way.load()

    def settle(self) -> None:
        """The last result is not read any more after it. ``stage()`` implies it."""
        for way in self._encoding:
            way.settle()

    def is_finite(self) -> bool:
        """Whether all that has been staged is: as it travels, so after compression."""
        if self._mapped is not None:
            return self._mapped.is_finite()
        for flat in self._flats:
            if flat.numel() and not all(map(_is_finite, torch.aminmax(flat))):
                return False
        return True

    def first_not_finite(self) -> str:
        """The first parameter whose staged gradient is not, in words with numbers."""
        if self._mapped is not None:
            self._mapped.show_slot()
        for name, codec in zip(self._names, self._codecs, strict=True):
            slot = codec.slot
            if count := slot.numel() - int(torch.isfinite(slot).sum()):
                nans = int(torch.isnan(slot).sum())
                return (
                    f"of the gradient of parameter {name!r} {count} of {slot.numel()} elements are "
                    f"not finite ({nans} NaN, {count - nans} infinite)"
                )
        return "all gradients are finite"

    def own_gradients(self) -> None:
        """Gradients outlive the shared memory that they may lie in."""
        for way in self._encoding:
            way.own_gradients()


def wished(params: Sequence[torch.Tensor], config: Config) -> Wish | None:
    """What to ask an exchange of these parameters' gradients for; None for what is usual."""
    return wish(params, on_cpu=STAGE_ON_CPU) if config.device_path == "mapped" else None


def _is_finite(number: torch.Tensor) -> bool:
    return bool(torch.isfinite(number))
