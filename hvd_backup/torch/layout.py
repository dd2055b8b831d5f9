"""Where the gradients of a list of parameters lie in flat buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hvd_backup.rounds.layout import FlatLayout, MarkLayout

Flats = list[npt.NDArray[np.uint8]]

_DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


@dataclass(frozen=True)
class Run:
    """Gradients that lie one after another in a flat buffer, with no others between them."""

    dtype: str
    flat: int
    offset: int
    """Bytes from the flat buffer's start."""
    indices: list[int]
    """Which parameters, in their order."""
    slices: list[tuple[int, int]]
    """First element, from `offset` on, and count of each."""


@dataclass(frozen=True)
class _Place:
    flat: int
    offset: int  # elements
    size: torch.Size
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Marks:
    """Views of the last buffer: of every parameter, which gradient there was."""

    dense: npt.NDArray[np.float32]
    """Per parameter: 1 for a dense gradient."""
    sparse: npt.NDArray[np.float32]
    """Per parameter: 1 for a sparse one."""
    rows: list[npt.NDArray[np.float32] | None]
    """Per parameter: for every row, 1 if a sparse gradient touched it; None without such places."""


class GradientLayout:
    """One flat buffer per dtype, and a last one, of float32, with marks.

    The marks are two floats per parameter, for a dense and for a sparse gradient, and one per row
    of every parameter of two and more axes. Their mean is positive exactly where some contributor
    had set them, so that all ranks agree on which parameters to leave alone, which gradients are
    sparse and which rows those have, in the same round as the gradients themselves.

    `sent` are tensors as they travel, one per parameter, if they are not as the parameters are
    (compression): those have no places for rows. Neither have any with `rows` False.
    """

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        names: Sequence[str],
        sent: Sequence[torch.Tensor] | None = None,
        *,
        rows: bool = True,
    ) -> None:
        sent = params if sent is None else sent
        for name, param, sent_as in zip(names, params, sent, strict=True):
            _check(name, param, sent_as)
        flat_layout = FlatLayout()
        self._places: list[_Place] = []
        for sent_as in sent:
            flat, offset = flat_layout.add(_DTYPES[sent_as.dtype], sent_as.numel())
            self._places.append(_Place(flat, offset, sent_as.size(), _dense_stride(sent_as)))
        self._dtypes = list(dict.fromkeys(sent_as.dtype for sent_as in sent))
        self._marks = MarkLayout(
            [
                param.size(0) if rows and param is sent_as and param.dim() > 1 else 0
                for param, sent_as in zip(params, sent, strict=True)
            ],
            kinds=2,
        )
        self.flats = [*flat_layout.flats, ("float32", self._marks.count)]
        self.signature = [
            (name, _DTYPES[sent_as.dtype], tuple(sent_as.shape), place.stride)
            for name, sent_as, place in zip(names, sent, self._places, strict=True)
        ]

    def typed(self, flats: Flats) -> list[torch.Tensor]:
        """The buffers that hold gradients, as tensors."""
        return [
            torch.frombuffer(flat, dtype=dtype) if flat.size else torch.empty(0, dtype=dtype)
            for flat, dtype in zip(flats, self._dtypes, strict=False)
        ]

    def gradients(self, flats: Flats) -> list[torch.Tensor]:
        """Views of the buffers, one per parameter, each with the shape and strides that travel."""
        typed = self.typed(flats)
        return [
            typed[place.flat].as_strided(place.size, place.stride, place.offset)
            for place in self._places
        ]

    def marks(self, flats: Flats) -> Marks:
        """Views of the last buffer."""
        last, marks = flats[-1], self._marks
        return Marks(marks.of_kind(last, 0), marks.of_kind(last, 1), marks.of_rows(last))

    def runs(self, indices: Sequence[int]) -> list[Run]:
        """The places of some parameters, in as few runs as can be."""
        wanted, runs = set(indices), []
        for flat, dtype in enumerate(self._dtypes):
            run: Run | None = None
            for i, place in enumerate(self._places):
                if place.flat != flat:
                    continue
                if i not in wanted:
                    run = None
                    continue
                if run is None:
                    run = Run(_DTYPES[dtype], flat, place.offset * dtype.itemsize, [], [])
                    runs.append(run)
                first = place.offset - run.offset // dtype.itemsize
                run.indices.append(i)
                run.slices.append((first, place.size.numel()))
        return runs


def _check(name: str, param: torch.Tensor, sent_as: torch.Tensor) -> None:
    if sent_as.dtype not in _DTYPES or param.dtype not in _DTYPES:
        known = ", ".join(_DTYPES.values())
        what = f"is {param.dtype}" if sent_as is param else f"travels as {sent_as.dtype}"
        raise TypeError(f"parameter {name!r} {what}; gradients can be one of {known}")
    if param.device.type not in ("cpu", "cuda"):
        raise TypeError(
            f"parameter {name!r} is on {param.device}; gradients are exchanged from the CPU and "
            "from CUDA devices"
        )


def _dense_stride(param: torch.Tensor) -> tuple[int, ...]:
    """The parameter's strides if they cover a dense block (channels_last, say), else row-major."""
    order = sorted(range(param.dim()), key=lambda d: (param.stride(d), param.size(d)))
    expected = 1
    for d in order:
        if param.size(d) != 1 and param.stride(d) != expected:
            return tuple(torch.empty(param.size(), device="meta").stride())
        expected *= param.size(d)
    return tuple(param.stride())
