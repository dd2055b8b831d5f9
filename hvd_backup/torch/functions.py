"""Horovod's functions that make replicas: of parameters, optimizer state, objects."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from hvd_backup import errors, operations, runtime, wire
from hvd_backup.collectives import allgather_object, broadcast_object
from hvd_backup.torch.tensors import tensor_of, typed
from hvd_backup.wire import Channel

__all__ = [
    "allgather_object",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
]

Params = Mapping[str, Any] | Iterable[tuple[str, torch.Tensor]] | Iterable[torch.Tensor]


def broadcast_parameters(params: Params, root_rank: int = 0) -> None:
    """Give every rank `root_rank`'s values, in place.

    `params` is a ``model.state_dict()``, ``model.named_parameters()`` or a list of tensors. Those
    of a mapping are matched by name, others by position. Raises Mismatch, on every rank, when
    names, shapes or dtypes differ; TypeError for an entry that is not a tensor.
    """
    root = operations.root_in(root_rank, operations.HERE.process_set, "broadcast_parameters")
    entries = _entries(params)
    call = operations.any_call(
        "broadcast_parameters",
        ", ".join(f"{name}: {_kind(tensor)}" for name, tensor in entries)
        + f", root_rank={root_rank}",
        lambda channel: _broadcast([tensor for _, tensor in entries], channel, root),
    )
    operations.complete(call)


def _entries(params: Params) -> list[tuple[str, torch.Tensor]]:
    if isinstance(params, torch.nn.Module):
        raise TypeError("broadcast_parameters takes model.state_dict(), not the model")
    if isinstance(params, Mapping):
        entries: list[tuple[str, Any]] = sorted(params.items())
    elif isinstance(params, Iterable) and not isinstance(params, torch.Tensor | str):
        entries = [
            one if isinstance(one, tuple) and len(one) == 2 else (f"tensor {i}", one)
            for i, one in enumerate(params)
        ]
    else:
        raise ValueError(f"invalid params of type: {type(params)}")  # noqa: TRY004 (as in Horovod)
    for name, tensor in entries:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"broadcast_parameters: {name!r} is {type(tensor).__name__}, no tensor")
    return entries


def _broadcast(tensors: Iterable[torch.Tensor], channel: Channel, root: int) -> None:
    with torch.no_grad():
        for tensor in tensors:
            array = typed(tensor).array.copy()
            wire.broadcast(channel, array, root)
            if channel.comm.rank != root:
                tensor.copy_(tensor_of(array, tensor))


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


class _Tensor(NamedTuple):
    """In the place of a tensor, which travels by itself."""

    number: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int = 0, model: torch.nn.Module | None = None
) -> None:
    """Give every rank `root_rank`'s optimizer state and hyperparameters.

    The others' optimizers may be fresh, or have another state: it is replaced. All optimizers do,
    LBFGS too. `model` is accepted and not needed. Raises Mismatch, on every rank, when the ranks'
    parameter groups differ; Error, on every rank, when the root's state does not pickle.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"broadcast_optimizer_state takes a torch optimizer, not {optimizer!r}")
    root = operations.root_in(root_rank, operations.HERE.process_set, "broadcast_optimizer_state")
    groups = [len(group["params"]) for group in optimizer.param_groups]
    state: list[Any] = []

    def run(channel: Channel) -> str:
        tensors: list[torch.Tensor] = []
        sent: tuple[bytes, str] = (b"", "")
        if channel.comm.rank == root:
            sent = _pickled(_without_tensors(optimizer.state_dict(), tensors), tensors)
        data, problem = channel.comm.bcast(sent, root=root)
        if problem:
            return str(problem)
        skeleton, kinds = pickle.loads(data)
        if channel.comm.rank != root:
            tensors = [torch.empty(kind.shape, dtype=kind.dtype) for kind in kinds]
        _broadcast(tensors, channel, root)
        state.append(_with_tensors(skeleton, tensors))
        return ""

    call = operations.any_call(
        "broadcast_optimizer_state",
        f"{type(optimizer).__name__} of {groups} parameters, root_rank={root_rank}",
        run,
    )
    if problem := operations.complete(call):
        raise errors.Error(f"rank {root_rank}: {problem}")
    if runtime.rank() != root_rank:
        optimizer.load_state_dict(state[0])


def _pickled(skeleton: Any, tensors: list[torch.Tensor]) -> tuple[bytes, str]:
    kinds = [_Tensor(i, t.dtype, tuple(t.shape)) for i, t in enumerate(tensors)]
    try:
        return pickle.dumps((skeleton, kinds), pickle.HIGHEST_PROTOCOL), ""
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        return b"", f"the optimizer's state cannot be pickled: {error}"


def _without_tensors(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The same nest of dicts, lists and tuples; its dense tensors are appended to `tensors`."""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        tensors.append(value)
        return _Tensor(len(tensors) - 1, value.dtype, tuple(value.shape))
    return _mapped(value, lambda inner: _without_tensors(inner, tensors))


def _with_tensors(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, _Tensor):
        return tensors[value.number]
    return _mapped(value, lambda inner: _with_tensors(inner, tensors))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: change(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(change(inner) for inner in value)
    return value
