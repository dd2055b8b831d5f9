"""``op=Adasum``: forwarded to an installed Horovod, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hvd_backup.collectives import operations
from hvd_backup.collectives.operations import Where
from hvd_backup.world import runtime
from hvd_backup.world.table import Operation
from hvd_backup.world.wire import Channel, ReduceOp


def adasum_async(
    tensors: Sequence[torch.Tensor], how: ReduceOp, where: Where, *, in_place: bool, one: bool
) -> Operation:
    """Horovod's Adasum, in a call that is matched as all others are.

    Raises NotImplementedError without Horovod, for a process set, and unless the number of ranks is
    a power of 2, as Horovod does.
    """
    if where.process_set.process_set_id != 0:
        raise NotImplementedError("Adasum does not support non-global process sets yet.")
    size = runtime.size()
    if size & (size - 1):
        raise NotImplementedError(
            f"Running Adasum with non-power of 2 ranks is not supported yet. ({size} ranks)"
        )
    horovod = _horovod()

    def run(channel: Channel) -> Any:
        if not horovod.is_initialized():
            horovod.init(channel.comm)
        factors = {"prescale_factor": how.before, "postscale_factor": how.after}
        reduce = horovod.grouped_allreduce_ if in_place else horovod.grouped_allreduce
        results = reduce(list(tensors), op=horovod.Adasum, **factors)
        return results[0] if one else tuple(results)

    shapes = [(str(tensor.dtype), tuple(tensor.shape)) for tensor in tensors]
    return operations.any_call("adasum", f"{shapes}, {how}", run, where)


def _horovod() -> Any:
    try:
        import horovod.torch as horovod
    except ImportError as error:
        raise NotImplementedError(
            f"op=Adasum is Horovod's own: install horovod built with MPI ({error}), or use "
            "op=Average"
        ) from error
    return horovod
