"""Gradients as DistributedDataParallel hands them over: tensor by tensor, and back to the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hvd_backup.rounds.exchange import Exchange
from hvd_backup.torch import staging
from hvd_backup.torch.device import addresses, by_device, refuse_capture, runs_of
from hvd_backup.torch.layout import Flats, GradientLayout
from hvd_backup.torch.staged import Copies


class Buckets:
    """The slot and the results of one exchange, for gradients that are in buckets.

    A bucket shows a gradient's memory in the order of its addresses, whatever its strides are. So
    it travels, and comes back; a mean does not mind.
    """

    def __init__(
        self, params: Sequence[torch.Tensor], layout: GradientLayout, exchange: Exchange
    ) -> None:
        self._encoding: list[_OnHost | _OnDevice] = []
        self._way_of: dict[int, tuple[_OnHost | _OnDevice, int]] = {}
        for device, indices in by_device(params).items():
            way: _OnHost | _OnDevice
            if device.type == "cpu" and not staging.STAGE_ON_CPU:
                way = _OnHost(layout, exchange)
            else:
                way = _OnDevice(device, layout, exchange, indices)
            self._encoding.append(way)
            self._way_of.update((id(params[i]), (way, i)) for i in indices)

    def put(self, param: torch.Tensor, grad: torch.Tensor) -> None:
        """This is the parameter's gradient; it is written to by ``load()``."""
        way, i = self._way_of[id(param)]
        way.put(i, grad)

    def stage(self) -> None:
        """The slot has all that was put since the last round."""
        for way in self._encoding:
            way.stage()

    def load(self) -> None:
        """All that was put is the last round's result; torch's current streams wait for it."""
        for way in self._encoding:
            way.load()

    def settle(self) -> None:
        """The last result is not read any more after it. ``stage()`` implies it."""
        for way in self._encoding:
            way.settle()


class _OnHost:
    """To the slot at once: a bucket that was just filled is in the cache."""

    def __init__(self, layout: GradientLayout, exchange: Exchange) -> None:
        self._layout, self._exchange = layout, exchange
        self._slots = self._blocks(exchange.slots)
        self._results: dict[int, list[torch.Tensor]] = {}
        self._grads: dict[int, torch.Tensor] = {}

    def put(self, i: int, grad: torch.Tensor) -> None:
        self._slots[i].copy_(grad.view(-1))
        self._grads[i] = grad

    def stage(self) -> None:
        pass  # it is there

    def load(self) -> None:
        buffer, flats = self._exchange.buffer, self._exchange.results
        if buffer not in self._results:
            self._results[buffer] = self._blocks(flats)
        for i, grad in self._grads.items():
            grad.view(-1).copy_(self._results[buffer][i])

    def settle(self) -> None:
        pass  # the result is read by this thread alone

    def _blocks(self, flats: Flats) -> list[torch.Tensor]:
        views = self._layout.gradients(flats)
        return [view.as_strided((view.numel(),), (1,)) for view in views]


class _OnDevice:
    """All at once, when the last is in: one launch, one copy."""

    def __init__(
        self,
        device: torch.device,
        layout: GradientLayout,
        exchange: Exchange,
        indices: Sequence[int],
    ) -> None:
        self._device = device
        runs, self._order = runs_of(layout, indices, exchange)
        self._copies = Copies(device, runs, exchange, pin=staging.PIN)
        self._dtypes = [slot.dtype for slot in layout.gradients(exchange.slots)]
        self._grads: dict[int, torch.Tensor] = {}
        self._streams: set[torch.cuda.Stream] = set()

    def put(self, i: int, grad: torch.Tensor) -> None:
        refuse_capture(self._device, "backward() with a DDP hook", "capture the forward pass alone")
        if grad.dtype != self._dtypes[i]:
            raise TypeError(
                f"DistributedDataParallel made a gradient of {grad.dtype} for a parameter of "
                f"{self._dtypes[i]}; on a GPU the hook needs them alike (no mixed_precision=)"
            )
        self._grads[i] = grad
        if self._device.type == "cuda":
            self._streams.add(torch.cuda.current_stream(self._device))

    def stage(self) -> None:
        for stream in self._streams:  # of earlier buckets, too
            torch.cuda.current_stream(self._device).wait_stream(stream)
        self._streams.clear()
        self._copies.stage(self._addresses())

    def load(self) -> None:
        self._copies.load(self._addresses())

    def settle(self) -> None:
        self._copies.settle()

    def _addresses(self) -> list[int]:
        return addresses([self._grads[i] for i in self._order])
