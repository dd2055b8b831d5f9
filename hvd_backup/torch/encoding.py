"""What a gradient becomes to travel, and what becomes of the result: on whatever device it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hvd_backup.torch.compression import Compresses, NoneCompressor, probe, title
from hvd_backup.torch.layout import GradientLayout


@dataclass(frozen=True)
class Encoding:
    """How gradients travel. All ranks have the same."""

    compression: Compresses
    sparse_as_dense: bool
    sparse_mean: str

    def plan(
        self, params: Sequence[torch.Tensor], names: Sequence[str]
    ) -> tuple[GradientLayout, list[Any]]:
        """The layout, and what each parameter's decompress() needs before any was compressed."""
        if self.compression is NoneCompressor:
            return GradientLayout(params, names), [None] * len(params)
        probes = [probe(self.compression, n, p) for n, p in zip(names, params, strict=True)]
        sent = [tensor for tensor, _ in probes]
        return GradientLayout(params, names, sent), [ctx for _, ctx in probes]

    def words(self) -> str:
        """What differs from the usual, for the name that ranks compare."""
        words = f", {title(self.compression)}" if self.compression is not NoneCompressor else ""
        words += ", sparse_as_dense" if self.sparse_as_dense else ""
        return words + (
            f", sparse_mean={self.sparse_mean}" if self.sparse_mean != "contributors" else ""
        )


class Codec:
    """Encodes one parameter's gradient, which travels in `slot`, and decodes its result."""

    def __init__(self, name: str, slot: torch.Tensor, ctx: Any, encoding: Encoding) -> None:
        self.slot = slot
        self.as_it_is = encoding.compression is NoneCompressor
        """Whether what travels is the gradient itself."""
        self._name = name
        self._ctx = ctx
        self._encoding = encoding

    def compressed(self, grad: torch.Tensor) -> torch.Tensor:
        """Of a dense gradient. Raises TypeError for what would not fit the slot."""
        if self.as_it_is:
            return grad
        sent, self._ctx = self._encoding.compression.compress(grad)
        if sent.dtype != self.slot.dtype or sent.shape != self.slot.shape:
            raise TypeError(
                f"{title(self._encoding.compression)} makes {sent.dtype}{list(sent.shape)} of the "
                f"gradient of parameter {self._name!r}, but of zeros it made "
                f"{self.slot.dtype}{list(self.slot.shape)}; one parameter's must always be alike"
            )
        return sent

    def dense(self, result: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
        """The result itself, or what it decompresses to."""
        if self.as_it_is:
            return result.detach()
        grad = self._encoding.compression.decompress(result.detach(), self._ctx)
        if grad.shape != param.shape:
            raise TypeError(
                f"{title(self._encoding.compression)} decompresses to {list(grad.shape)}, but "
                f"parameter {self._name!r} is {list(param.shape)}"
            )
        return grad.to(param.dtype)

    def sparse(
        self, result: torch.Tensor, marks: npt.NDArray[np.float32] | None, param: torch.Tensor
    ) -> torch.Tensor:
        """The rows that some contributor touched, of a result that is zero elsewhere."""
        whole = self.dense(result, param)
        rows = None
        if marks is not None:  # read-only marks would be warned of
            rows = torch.from_numpy(marks if marks.flags.writeable else marks.copy())
            rows = rows.to(whole.device)
        if rows is None or self._encoding.sparse_as_dense:
            where = (whole != 0).reshape(max(whole.size(0), 1), -1).any(1) if whole.dim() else None
            if where is None or not whole.numel():
                return whole.to_sparse()
        else:
            where = rows > 0
        touched = where.nonzero().reshape(-1)
        values = whole[touched]
        if self._encoding.sparse_mean == "rows" and rows is not None:
            shares = rows[touched].reshape(-1, *[1] * (values.dim() - 1))
            values = (values / shares).to(param.dtype)
        return torch.sparse_coo_tensor(
            touched[None], values, whole.shape, check_invariants=False, is_coalesced=True
        )
