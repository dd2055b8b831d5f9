"""Gradients on a GPU: packed there, and the result unpacked; what lies between is left open.

Packing and unpacking are launched on torch's current stream, where an optimizer's kernels go, too.
So the caching allocator has to be told only of gradients that backward() made on another stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from hvd_backup.rounds.exchange import Exchange
from hvd_backup.torch.device import addresses, refuse_capture, runs_of, use_on_current_stream
from hvd_backup.torch.layout import GradientLayout, Marks
from hvd_backup.torch.means import Means, empty, fits

STEP = (
    "optimizer.step() of a DistributedOptimizer",
    "capture forward and backward, and step outside",
)


class Packed(ABC):
    """What OnHost is for the CPU, for the parameters of one device.

    What travels, after compression, is packed; a sparse gradient as its whole table. On the CPU,
    for tests, the same path runs with the kernels' twins.
    """

    def __init__(
        self,
        means: Means,
        layout: GradientLayout,
        exchange: Exchange,
        indices: Sequence[int],
    ) -> None:
        self._params, self._codecs = means.params, means.codecs
        self._layout = layout
        self._exchange = exchange
        self._device = self._params[indices[0]].device
        self._rows = layout.marks(exchange.slots).rows
        self._folds = exchange.options.late == "carry"
        self._means = means
        self._marked: set[int] = set()  # whose rows' marks are not all zero
        self._runs, self._order = runs_of(layout, indices, exchange)

    @abstractmethod
    def _pack(self, tensors: list[int]) -> None:
        """The slot has what is at these addresses; 0 stands for zeros. The thread sleeps."""

    @abstractmethod
    def _unpack(self, tensors: list[int]) -> None:
        """The result goes to these addresses; torch's current stream waits for it."""

    @abstractmethod
    def settle(self) -> None:
        """The last result is not read any more after it."""

    def early(self, i: int) -> None:  # noqa: B027 (nothing is the right thing to do)
        """Nothing to do before the gradients are complete."""

    def stage(self, dense: list[bool], sparse: list[bool]) -> None:
        """The slot has all gradients after it; the thread sleeps until then. See OnHost."""
        refuse_capture(self._device, *STEP)
        packed = []  # they stay until the copies are done
        for i in self._order:
            grad = self._params[i].grad
            if grad is not None:
                sparse[i] = grad.layout != torch.strided
                dense[i] = not sparse[i]
            packed.append(self._to_pack(i, grad))
        for tensor in packed:
            if tensor is not None:
                use_on_current_stream(tensor)
        self._pack(addresses(packed))

    def load(self) -> None:
        """Let every parameter's grad be the result; torch's current stream waits for it."""
        refuse_capture(self._device, *STEP)
        marks = self._layout.marks(self._exchange.shared_results)
        dense, sparse = (marks.dense > 0).tolist(), (marks.sparse > 0).tolist()
        targets = [self._target(i, dense[i], sparse[i]) for i in self._order]
        self._unpack(addresses(targets))
        for i, target in zip(self._order, targets, strict=True):
            if target is not None:
                self._params[i].grad = self._gradient(i, target, dense[i], marks)

    def own_gradients(self) -> None:
        """The parameters have gradients of their own already; nothing of ours is read later."""
        self.settle()

    # Gradient -> what is packed

    def _to_pack(self, i: int, grad: torch.Tensor | None) -> torch.Tensor | None:
        """What travels, as it will lie in the slot; None if there is no gradient."""
        param, codec = self._params[i], self._codecs[i]
        self._mark_rows(i, grad)
        if grad is None:
            return None
        grad = grad.detach()
        sent = codec.compressed(grad.to_dense() if grad.layout != torch.strided else grad)
        if fits(sent, param, codec):
            return sent
        return empty(param, codec).copy_(sent)

    def _mark_rows(self, i: int, grad: torch.Tensor | None) -> None:
        """Say of which rows a sparse gradient is."""
        if (rows := self._rows[i]) is None:
            return
        if i in self._marked or self._folds:  # folding in a late gradient marks rows, too
            rows[:] = 0.0
            self._marked.discard(i)
        if grad is not None and grad.layout != torch.strided:
            rows[grad.coalesce().indices()[0].cpu().numpy()] = 1.0
            self._marked.add(i)

    # What is unpacked -> gradient

    def _target(self, i: int, dense: bool, sparse: bool) -> torch.Tensor | None:
        """What the result is unpacked to: a tensor that the user has never seen, or p.grad."""
        param, codec = self._params[i], self._codecs[i]
        if not (dense or sparse):
            param.grad = None
            return None
        if not (codec.as_it_is and dense):
            return empty(param, codec)
        target = self._means.tensor(i)
        if not fits(target, param, codec):  # somebody's own, with strides of its own
            return empty(param, codec)
        use_on_current_stream(target)
        return target

    def _gradient(self, i: int, target: torch.Tensor, dense: bool, marks: Marks) -> torch.Tensor:
        param, codec = self._params[i], self._codecs[i]
        if dense:
            if codec.as_it_is:
                return self._means.write(i, target)
            return self._means.put(i, codec.dense(target, param))
        return codec.sparse(target, marks.rows[i], param)
