"""Where the gradients of a list of parameters lie in flat buffers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

_DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_ALIGN = 64  # bytes; vector loads of whatever reads a gradient


@dataclass(frozen=True)
class _Place:
    flat: int
    offset: int  # elements
    size: torch.Size
    stride: tuple[int, ...]


class GradientLayout:
    """One flat buffer per dtype, and a last one with a float32 per parameter: has it a gradient?

    The mean of the latter is positive exactly if some contributor's parameter had a gradient, so
    that all ranks agree on which parameters to leave alone.
    """

    def __init__(self, params: list[torch.Tensor], names: list[str]) -> None:
        counts: dict[torch.dtype, int] = {}
        for name, param in zip(names, params, strict=True):
            _check(name, param)
            counts.setdefault(param.dtype, 0)
        self._dtypes = list(counts)
        self._places: list[_Place] = []
        for param in params:
            offset = counts[param.dtype]
            flat = self._dtypes.index(param.dtype)
            self._places.append(_Place(flat, offset, param.size(), _dense_stride(param)))
            per_line = _ALIGN // param.element_size()
            counts[param.dtype] = -(-(offset + param.numel()) // per_line) * per_line
        self.flats = [(_DTYPES[dtype], counts[dtype]) for dtype in self._dtypes]
        self.flats.append(("float32", len(params)))
        self.signature = [
            (name, _DTYPES[param.dtype], tuple(param.shape), place.stride)
            for name, param, place in zip(names, params, self._places, strict=True)
        ]

    def gradients(self, flats: list[npt.NDArray[np.uint8]]) -> list[torch.Tensor]:
        """Views of the buffers, one per parameter, each with its parameter's shape and strides."""
        typed = [
            torch.frombuffer(flat, dtype=dtype) if flat.size else torch.empty(0, dtype=dtype)
            for flat, dtype in zip(flats, self._dtypes, strict=False)
        ]
        return [
            typed[place.flat].as_strided(place.size, place.stride, place.offset)
            for place in self._places
        ]

    @staticmethod
    def presence(flats: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """View of the last buffer."""
        return flats[-1].view(np.float32)


def _check(name: str, param: torch.Tensor) -> None:
    if param.dtype not in _DTYPES:
        known = ", ".join(_DTYPES.values())
        raise TypeError(f"parameter {name!r} is {param.dtype}; gradients can be one of {known}")
    if param.device.type != "cpu":
        raise TypeError(
            f"parameter {name!r} is on {param.device}; this version exchanges CPU gradients"
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
