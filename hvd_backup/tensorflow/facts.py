"""This world's ranks and sizes as tensors, under Horovod's names."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hvd_backup.world import runtime


def rank_op(name: str | None = None) -> Any:
    """``rank()`` as a tensor. Horovod's ``rank_op``.

    Args:
        name: The tensor's name.

    Returns:
        An int32 scalar.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return tf.constant(runtime.rank(), tf.int32, name=name or "rank")


def size_op(process_set_id: int = 0, name: str | None = None) -> Any:
    """``size()`` of the world, or of a process set, as a tensor. Horovod's ``size_op``.

    Args:
        process_set_id: The number of the set; 0: all ranks.
        name: The tensor's name.

    Returns:
        An int32 scalar.

    Raises:
        ValueError: There is no such set.
        NotInitialized: ``init()`` was not called.
    """
    table = runtime.current().sets.get(process_set_id)
    if table is None:
        raise ValueError(f"process_set_id={process_set_id}: there is no such process set")
    return tf.constant(len(table.ranks), tf.int32, name=name or "size")


def local_rank_op(name: str | None = None) -> Any:
    """``local_rank()`` as a tensor. Horovod's ``local_rank_op``.

    Args:
        name: The tensor's name.

    Returns:
        An int32 scalar.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return tf.constant(runtime.local_rank(), tf.int32, name=name or "local_rank")


def local_size_op(name: str | None = None) -> Any:
    """``local_size()`` as a tensor. Horovod's ``local_size_op``.

    Args:
        name: The tensor's name.

    Returns:
        An int32 scalar.

    Raises:
        NotInitialized: ``init()`` was not called.
    """
    return tf.constant(runtime.local_size(), tf.int32, name=name or "local_size")
