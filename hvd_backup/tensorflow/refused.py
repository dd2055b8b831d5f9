"""Names of Horovod's that are not here, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ONE_WORLD = "the ranks of a world stay the same; start again from the last checkpoint"

REASONS = {
    "Adasum": "gradients are averaged or summed here; use op=hvd.Average",
    "BroadcastGlobalVariablesHook": "TensorFlow 2 has no sessions; use broadcast_variables",
    "SyncBatchNormalization": "it would make every rank wait for the late one in each layer; use "
    "keras.layers.BatchNormalization, whose statistics are each rank's own",
    "elastic": _ONE_WORLD,
}


def refuser(module: str) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that tells why a name is missing: AttributeError."""

    def missing(name: str) -> Any:
        reason = f": {REASONS[name]}" if name in REASONS else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{reason}")

    return missing
