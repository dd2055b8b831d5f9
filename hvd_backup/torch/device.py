"""What the core and CUDA ask of tensors on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hvd_backup import _core, errors
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.torch.layout import GradientLayout

Run = tuple[str, str, int, list[tuple[int, int]]]


def number_of(device: torch.device) -> int:
    """As the core counts: CUDA's number, or the host."""
    if device.type == "cpu":
        return _core.Staging.HOST
    return device.index if device.index is not None else torch.cuda.current_device()


def by_device(params: Sequence[torch.Tensor]) -> dict[torch.device, list[int]]:
    """Which of these parameters are on which device."""
    groups: dict[torch.device, list[int]] = {}
    for i, param in enumerate(params):
        groups.setdefault(param.device, []).append(i)
    return groups


def runs_of(
    layout: GradientLayout, indices: Sequence[int], exchange: Exchange
) -> tuple[list[Run], list[int]]:
    """The places of some parameters in a contribution, as the core takes them, and their order."""
    runs = layout.runs(indices)
    slots = exchange.slots
    base = [slot.ctypes.data - slots[0].ctypes.data for slot in slots]
    for_core = [(run.dtype, run.dtype, base[run.flat] + run.offset, run.slices) for run in runs]
    return for_core, [i for run in runs for i in run.indices]


def addresses(tensors: Sequence[torch.Tensor | None]) -> list[int]:
    """As the core takes tensors; None is 0."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def stream_of(device: torch.device) -> int:
    """Torch's current stream there, as the core takes it."""
    if device.type != "cuda":
        return 0
    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream


def use_on_current_stream(tensor: torch.Tensor) -> None:
    """Its memory is given to nobody before what is on torch's current stream by then is done."""
    if tensor.device.type == "cuda":  # nothing to do if it was made there
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def refuse_capture(device: torch.device, what: str, instead: str) -> None:
    """Raise RuntimeError if a CUDA graph is being captured."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{what} cannot be captured in a CUDA graph: the exchange waits on the host; {instead}"
        )


def check_devices(params: Sequence[torch.Tensor], name: Callable[[torch.Tensor], str]) -> None:
    """Raise DeviceError if a parameter is on a GPU and the core cannot use GPUs."""
    on_gpu = [param for param in params if param.device.type == "cuda"]
    if on_gpu and not (status := _core.cuda_status()).devices:
        raise errors.DeviceError(
            f"parameter {name(on_gpu[0])!r} is on {on_gpu[0].device}, but {status.why}; see "
            "`hvd-backup doctor`, or move the model to the CPU"
        )
