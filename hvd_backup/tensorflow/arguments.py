"""Arguments of Horovod's for TensorFlow that are checked or mapped in one place."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hvd_backup.collectives.operations import Where
from hvd_backup.collectives.process_sets import ProcessSet
from hvd_backup.rounds import arguments


def check(num_groups: int, groups: Any, compression: Any, passes: int = 1) -> None:
    """Of an optimizer or a tape. Raises ValueError, in Horovod's words, or TypeError."""
    import keras  # not above: who wants another backend is told so before Keras looks for it

    arguments.check_groups(num_groups, groups, (tf.Variable, keras.Variable), "tf.Variable")
    arguments.check_passes(passes)
    if compression is not None:
        arguments.check_compression(compression)


def where_of(process_set: Any) -> Where:
    """Among whom a collective is; None: all ranks. Raises TypeError for what is no ProcessSet."""
    if process_set is None:
        return Where()
    if not isinstance(process_set, ProcessSet):
        raise TypeError(f"process_set={process_set!r} is no ProcessSet")
    return Where(process_set)
