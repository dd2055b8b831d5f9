"""Horovod's functions that make replicas: of parameters, optimizer state, objects."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from hvd_backup import errors
from hvd_backup.collectives import allgather_object, broadcast_object, operations
from hvd_backup.torch import bits
from hvd_backup.world import runtime, wire
from hvd_backup.world.wire import Channel, Message

__all__ = [
    "allgather_object",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
]

Params = Mapping[str, Any] | Iterable[tuple[str, torch.Tensor]] | Iterable[torch.Tensor]


def broadcast_parameters(params: Params, root_rank: int = 0) -> None:
    """Give every rank the values of `root_rank`, in place. Horovod's ``broadcast_parameters``.

    Args:
        params: A ``model.state_dict()``, ``model.named_parameters()`` or an iterable of tensors.
            They have any shape and dtype, and are dense, sparse or quantized. Ranks match the
            entries of a mapping by name, others by position. A module's extra state is not sent;
            all ranks must have the same.
        root_rank: A rank of the world.

    Raises:
        TypeError: `params` is a module; or, on every rank, an entry cannot be sent: it is no
            tensor, or has no values yet. The text names it. All other entries have been sent.
        ValueError: `params` is not iterable, or there is no such rank.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' names, shapes or dtypes differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    root = operations.root_in(root_rank, operations.HERE.process_set, "broadcast_parameters")
    entries = _entries(params)
    call = operations.any_call(
        "broadcast_parameters",
        ", ".join(f"{name}: {_form(name, value)}" for name, value in entries)
        + f", root_rank={root_rank}",
        lambda channel: _broadcast_entries(entries, channel, root),
    )
    operations.complete(call)


def _entries(params: Params) -> list[tuple[str, Any]]:
    if isinstance(params, torch.nn.Module):
        raise TypeError("broadcast_parameters takes model.state_dict(), not the model")
    if isinstance(params, Mapping):
        return sorted(params.items())
    if isinstance(params, Iterable) and not isinstance(params, torch.Tensor | str):
        return [
            one if isinstance(one, tuple) and len(one) == 2 else (f"tensor {i}", one)
            for i, one in enumerate(params)
        ]
    raise ValueError(f"invalid params of type: {type(params)}")


def _form(name: str, value: Any) -> str:
    if _is_extra_state(name, value):
        return "extra state"
    return bits.why_not(value) or bits.form(value)


def _is_extra_state(name: str, value: Any) -> bool:
    """Whether it is what a module's ``get_extra_state()`` gave, and no tensor."""
    return str(name).endswith(_EXTRA_STATE) and not isinstance(value, torch.Tensor)


def _broadcast_entries(entries: list[tuple[str, Any]], channel: Channel, root: int) -> None:
    """Raises TypeError, which names what could not be sent; the rest has been, then."""
    problems = []
    for name, value in entries:
        if _is_extra_state(name, value):
            data, why = operations.pickled(value)
            if why:
                problems.append(f"{name!r}: {why}")
            elif not wire.same_everywhere(channel, data):
                problems.append(f"{name!r} differs between ranks: {_EXTRA_STATE_WAY_OUT}")
        elif why := bits.why_not(value):
            problems.append(f"{name!r} {why}")
        else:
            share_tensors([value], channel, root)
    if problems:
        raise TypeError(f"broadcast_parameters has sent all but these: {'; '.join(problems)}")


_EXTRA_STATE = "_extra_state"
_EXTRA_STATE_WAY_OUT = (
    "a module's extra state can only be set by the module; use "
    "model.load_state_dict(hvd.broadcast_object(model.state_dict()))"
)


def share_tensors(tensors: Iterable[torch.Tensor], channel: Channel, root: int) -> None:
    """Let every rank's tensors have the root's values, in place."""
    for tensor in tensors:
        for piece in bits.pieces(tensor):
            if channel.comm.rank == root:
                wire.broadcast(channel, bits.read(piece), root)
            else:
                received = np.empty(bits.size(piece), np.uint8)
                wire.broadcast(channel, received, root)
                bits.write(piece, received)


class _Tensor(NamedTuple):
    """In the place of a tensor, which travels by itself."""

    number: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int = 0, model: torch.nn.Module | None = None
) -> None:
    """Give every rank the optimizer state and hyperparameters of `root_rank`.

    State of the other ranks' optimizers is replaced. As in Horovod's ``broadcast_optimizer_state``,
    the parameters of an optimizer without state have gradients of zeros afterwards.

    Args:
        optimizer: Any torch optimizer, distributed or not.
        root_rank: A rank of the world.
        model: The model. With SGD the zeros of its sparse embeddings are then sparse.

    Raises:
        TypeError: `optimizer` is not a torch optimizer.
        ValueError: There is no such rank.
        Error: The root's state cannot be pickled; on every rank.
        NotInitialized: ``init()`` was not called.
        Mismatch: The ranks' optimizers or parameter groups differ; on every rank.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"broadcast_optimizer_state takes a torch optimizer, not {optimizer!r}")
    root = operations.root_in(root_rank, operations.HERE.process_set, "broadcast_optimizer_state")
    groups = [len(group["params"]) for group in optimizer.param_groups]
    is_fresh = not optimizer.state_dict()["state"]
    state: list[Any] = []

    def run(channel: Channel) -> str:
        mine = optimizer.state_dict() if channel.comm.rank == root else None
        theirs, problem = share_state(mine, channel, root)
        state.append(theirs)
        return problem

    call = operations.any_call(
        "broadcast_optimizer_state",
        f"{type(optimizer).__name__} of {groups} parameters, root_rank={root_rank}",
        run,
    )
    if problem := operations.complete(call):
        raise errors.Error(f"rank {root_rank}: {problem}")
    if runtime.rank() != root_rank:
        optimizer.load_state_dict(state[0])
    if is_fresh:
        _zero_gradients(optimizer, model)


def _zero_gradients(optimizer: torch.optim.Optimizer, model: torch.nn.Module | None) -> None:
    """Give every trainable parameter a gradient of zeros."""
    modules = () if model is None else model.modules()
    tables = {id(m.weight) for m in modules if isinstance(m, torch.nn.Embedding) and m.sparse}
    for group in optimizer.param_groups:
        for param in group["params"]:
            if not param.requires_grad:
                continue
            zeros = torch.zeros_like(param, memory_format=torch.contiguous_format)
            sparse = isinstance(optimizer, torch.optim.SparseAdam) or (
                isinstance(optimizer, torch.optim.SGD) and id(param) in tables
            )
            param.grad = zeros.to_sparse() if sparse else zeros


def share_state(mine: Any, channel: Channel, root: int) -> tuple[Any, str]:
    """The root's state, on every rank, or why it cannot be pickled; others' is not looked at."""
    tensors: list[torch.Tensor] = []
    message: Message | None = None
    if channel.comm.rank == root:
        message = _pickled(_without_tensors(mine, tensors), tensors)
    sent = wire.broadcast_message(channel, message, root)
    if sent.problem:
        return None, sent.problem
    skeleton, kinds = pickle.loads(sent.data)
    if channel.comm.rank != root:
        tensors = [torch.empty(kind.shape, dtype=kind.dtype) for kind in kinds]
    share_tensors(tensors, channel, root)
    return _with_tensors(skeleton, tensors), ""


def _pickled(skeleton: Any, tensors: list[torch.Tensor]) -> Message:
    kinds = [_Tensor(i, t.dtype, tuple(t.shape)) for i, t in enumerate(tensors)]
    try:
        return Message(pickle.dumps((skeleton, kinds), pickle.HIGHEST_PROTOCOL))
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        return Message(b"", f"the optimizer's state cannot be pickled: {error}")


def _without_tensors(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The same nest of dicts, lists and tuples; its dense tensors are appended to `tensors`."""
    if isinstance(value, torch.Tensor) and _is_plain(value):
        tensors.append(value)
        return _Tensor(len(tensors) - 1, value.dtype, tuple(value.shape))
    return _mapped(value, lambda inner: _without_tensors(inner, tensors))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor of its dtype and shape can take its values; others are pickled."""
    strided = tensor.layout == torch.strided and not tensor.is_quantized
    return strided and not bits.why_not(tensor)


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
