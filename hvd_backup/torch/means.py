"""Tensors that become ``p.grad``. What the user got from ``p.grad`` before stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.weak import TensorWeakRef

from hvd_backup.torch.forms import Form


class Means:
    """The tensors that the mean is written to, one per parameter.

    A new one each time, as after ``zero_grad()`` in torch. But a tensor that was left as ``p.grad``
    and still is, since nobody set it to None, is written to again: torch adds to that one in place,
    too, and optimizers that keep it must go on seeing this parameter's gradient.
    """

    def __init__(self, params: Sequence[torch.Tensor], forms: Sequence[Form]) -> None:
        self._params, self._forms = params, forms
        self._left: dict[int, TensorWeakRef] = {}

    def tensor(self, i: int) -> torch.Tensor:
        """Parameter i's, with whatever numbers; the parameter's grad may be None after it."""
        param, form = self._params[i], self._forms[i]
        grad = param.grad
        left = self._left.get(i)
        if (
            grad is not None
            and left is not None
            and left() is grad
            and not grad.requires_grad
            and fits(grad, param, form)
        ):
            return grad
        # First give up the old one: if nobody keeps it, the allocator gives its memory again.
        param.grad = grad = None
        made = empty(param, form)
        self._left[i] = TensorWeakRef(made)
        return made


def fits(tensor: torch.Tensor, param: torch.Tensor, form: Form) -> bool:
    """Whether it lies in memory as the parameter's place in the slot."""
    return (
        tensor.layout == torch.strided
        and tensor.dtype == form.slot.dtype
        and tensor.device == param.device
        and tensor.size() == form.slot.size()
        and tensor.stride() == form.slot.stride()
    )


def empty(param: torch.Tensor, form: Form) -> torch.Tensor:
    """A tensor that does."""
    slot = form.slot
    return torch.empty_strided(slot.size(), slot.stride(), dtype=slot.dtype, device=param.device)
