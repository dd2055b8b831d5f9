"""Tensors that become ``p.grad``. What the user got from ``p.grad`` before stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.weak import TensorWeakRef

from hvd_backup.torch.encoding import Codec

Given = Callable[[torch.Tensor], torch.Tensor | None]


class Means:
    """The tensors that the mean is written to, one per parameter.

    A new one each time, as after ``zero_grad()`` in torch. There is one exception: a tensor that
    was ``p.grad`` before the backward pass, and still is. Torch adds to it in place, too, and who
    keeps it (an optimizer's state, a flat buffer that all gradients are views of) must go on seeing
    this parameter's gradient. It is one that was left here and not set to None, or one that was
    `given`: see ``Passes.given``.
    """

    def __init__(
        self, params: Sequence[torch.Tensor], codecs: Sequence[Codec], given: Given = lambda _: None
    ) -> None:
        self.params, self.codecs = params, codecs
        self._given = given
        self._left: dict[int, TensorWeakRef] = {}

    def tensor(self, i: int) -> torch.Tensor:
        """Parameter i's, with whatever numbers; the parameter's grad may be None after it."""
        param, codec = self.params[i], self.codecs[i]
        grad = param.grad
        if grad is not None and self._lasts(i, param, grad) and _alike(grad, param, codec):
            self._left[i] = TensorWeakRef(grad)
            return grad
        # First give up the old one: if nobody keeps it, the allocator gives its memory again.
        param.grad = grad = None
        made = empty(param, codec)
        self._left[i] = TensorWeakRef(made)
        return made

    def write(self, i: int, mean: torch.Tensor) -> torch.Tensor:
        """The gradient that has the numbers of `mean`, a tensor of nobody else's."""
        grad = self.params[i].grad
        return mean if grad is None or grad is mean else grad.copy_(mean)

    def put(self, i: int, mean: torch.Tensor) -> torch.Tensor:
        """The same, of a mean that was decompressed: the tensor that lasts, else `mean` itself."""
        param = self.params[i]
        grad = param.grad
        if (
            grad is not None
            and self._lasts(i, param, grad)
            and grad.layout == mean.layout == torch.strided
            and (grad.dtype, grad.device, grad.size()) == (mean.dtype, mean.device, mean.size())
            and not grad.requires_grad
        ):
            mean = grad.copy_(mean)
        self._left[i] = TensorWeakRef(mean)
        return mean

    def _lasts(self, i: int, param: torch.Tensor, grad: torch.Tensor) -> bool:
        left = self._left.get(i)
        return (left is not None and left() is grad) or self._given(param) is grad


def _alike(grad: torch.Tensor, param: torch.Tensor, codec: Codec) -> bool:
    """Whether a mean can be written to it."""
    return (
        grad.layout == torch.strided
        and grad.dtype == codec.slot.dtype
        and grad.device == param.device
        and grad.size() == codec.slot.size()
        and not grad.requires_grad
    )


def fits(tensor: torch.Tensor, param: torch.Tensor, codec: Codec) -> bool:
    """Whether it lies in memory as the parameter's place in the slot."""
    return (
        tensor.layout == torch.strided
        and tensor.dtype == codec.slot.dtype
        and tensor.device == param.device
        and tensor.size() == codec.slot.size()
        and tensor.stride() == codec.slot.stride()
    )


def empty(param: torch.Tensor, codec: Codec) -> torch.Tensor:
    """A tensor that does."""
    slot = codec.slot
    return torch.empty_strided(slot.size(), slot.stride(), dtype=slot.dtype, device=param.device)
