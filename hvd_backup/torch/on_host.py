"""Gradients in the CPU's memory: copied to the slot, and the result copied back.

With `view` they lie in the slot, and the result is read in the window, as
DistributedDataParallel's ``gradient_as_bucket_view`` does: no copies, but a tensor that was got
from ``p.grad`` changes with the next round.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from hvd_backup.rounds.exchange import Exchange
from hvd_backup.torch.encoding import Codec
from hvd_backup.torch.layout import GradientLayout, Marks
from hvd_backup.torch.means import Means

_EVERYTHING = slice(None)  # rows


class OnHost:
    """The way of those of `params` at `indices`, which are in the CPU's memory."""

    def __init__(
        self,
        means: Means,
        layout: GradientLayout,
        exchange: Exchange,
        indices: Sequence[int],
        *,
        view: bool = False,
    ) -> None:
        rows = layout.marks(exchange.slots).rows
        # What a late gradient is added to has more rows than this rank knows of.
        folds = exchange.options.late == "carry"
        self._params, codecs = means.params, means.codecs
        self._codecs = codecs
        self._layout = layout
        self._exchange = exchange
        self._carriers = {i: Carrier(codecs[i], rows[i], folds, view) for i in indices}
        self._view = view
        self._means = means
        self._views: dict[int, tuple[list[torch.Tensor], Marks]] = {}

    def early(self, i: int) -> None:
        """With `view`: move the gradient to its place in the slot, while it is in the cache."""
        if self._view:
            self._carriers[i].early(self._params[i])

    def stage(self, dense: list[bool], sparse: list[bool]) -> None:
        """The slot has all gradients, as they are now, after it; sets which kinds there are."""
        for i, carrier in self._carriers.items():
            param = self._params[i]
            grad = param.grad
            if grad is not None:
                sparse[i] = grad.layout != torch.strided
                dense[i] = not sparse[i]
            carrier.stage(param, grad)

    def load(self) -> None:
        """Let every parameter's grad be the result; None where no contributor had one."""
        results, marks = self._results()
        dense, sparse = (marks.dense > 0).tolist(), (marks.sparse > 0).tolist()
        for i in self._carriers:
            param, codec = self._params[i], self._codecs[i]
            if dense[i] and self._view:
                param.grad = codec.dense(results[i], param)
            elif dense[i] and codec.as_it_is:
                param.grad = self._means.tensor(i).copy_(results[i])
            elif dense[i]:  # a compressor may keep what it is given, or return it
                param.grad = self._means.put(i, codec.dense(results[i].clone(), param))
            elif sparse[i]:
                param.grad = codec.sparse(results[i], marks.rows[i], param)
            else:
                param.grad = None

    def _results(self) -> tuple[list[torch.Tensor], Marks]:
        """Views of the round's result. Those that the user is given are of private memory."""
        buffer = self._exchange.buffer
        flats = self._exchange.results if self._view else None  # asked anew in every round
        if buffer not in self._views:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given buffer is not writable")
                flats = self._exchange.shared_results if flats is None else flats
                self._views[buffer] = self._layout.gradients(flats), self._layout.marks(flats)
        return self._views[buffer]

    def settle(self) -> None:
        """A result is read by the caller's own thread alone."""

    def own_gradients(self) -> None:
        """Gradients outlive the shared memory they lie in."""
        if not self._view:
            return
        for i in self._carriers:
            if (grad := self._params[i].grad) is not None:
                self._params[i].grad = grad.clone()


class Carrier:
    """One parameter's place in the slot, and what is in it."""

    def __init__(
        self, codec: Codec, marks: npt.NDArray[np.float32] | None, folds: bool, view: bool
    ) -> None:
        self._codec = codec
        self._slot = codec.slot
        self._rows = None if marks is None else torch.from_numpy(marks)
        self._folds = folds
        self._view = view
        # StatusBoard of the slot that are not zero; None: none are.
        self._used: torch.Tensor | slice | None = None
        self._marked = False  # whether some of the rows' places are not zero

    def early(self, param: torch.Tensor) -> None:
        """Move the gradient, unless it is encoded on its way."""
        grad = param.grad
        assert grad is not None
        if self._codec.as_it_is and grad.layout == torch.strided and not self._holds(grad):
            self._move(param, grad)

    def stage(self, param: torch.Tensor, grad: torch.Tensor | None) -> None:
        """The slot has the parameter's gradient after it, or zeros."""
        if grad is None:
            self._clear()
        elif grad.layout != torch.strided:
            self._put_sparse(grad)
        elif not self._view or not self._codec.as_it_is:
            self._put(self._codec.compressed(grad.detach()))
        elif not self._holds(grad):
            self._move(param, grad)

    def _holds(self, grad: torch.Tensor) -> bool:
        # By address: `p.grad.data = …` gives the tensor we made other memory.
        return grad.data_ptr() == self._slot.data_ptr() and grad.stride() == self._slot.stride()

    def _move(self, param: torch.Tensor, grad: torch.Tensor) -> None:
        self._put(grad.detach())
        param.grad = self._slot.detach()  # an alias, for the user to do with as he likes

    def _put(self, sent: torch.Tensor) -> None:
        if self._rows is not None and self._marked:
            self._rows.zero_()
            self._marked = self._folds
        self._slot.copy_(sent)
        self._used = _EVERYTHING

    def _put_sparse(self, grad: torch.Tensor) -> None:
        if self._rows is None or grad.sparse_dim() != 1:
            self._put(self._codec.compressed(grad.to_dense()))
            if self._rows is not None:  # of a gradient that is sparse in more than its rows
                self._rows[grad.coalesce().indices()[0]] = 1.0
                self._marked = True
            return
        self._clear()
        grad = grad.detach().coalesce()
        touched = grad.indices()[0]
        self._slot[touched] = grad.values()
        self._rows[touched] = 1.0
        self._marked = True
        self._used = _EVERYTHING if self._folds else touched

    def _clear(self) -> None:
        if self._used is not None:
            self._slot[self._used if self._slot.dim() else ...] = 0
            if self._rows is not None and self._marked:
                self._rows[self._used] = 0
        self._marked = self._marked and self._folds
        self._used = _EVERYTHING if self._folds else None
