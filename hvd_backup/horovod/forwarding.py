"""Parts of Horovod that this package does not have: an installed Horovod's, or a clear refusal."""

from __future__ import annotations

import importlib
from types import ModuleType

# What there is to do instead, by the part of Horovod.
_INSTEAD = {
    "mxnet": "MXNet is retired; hvd_backup has torch, tensorflow and keras",
    "spark": "start the ranks with mpirun, srun or `hvd-backup run`",
    "ray": "start the ranks with mpirun, srun or `hvd-backup run`",
    "torch.elastic": "restart from the last checkpoint; a rank that is late or stopped delays "
    "nobody with backup_workers >= 1",
    "tensorflow.elastic": "restart from the last checkpoint",
    "keras.elastic": "restart from the last checkpoint",
}


class NotForwarded(ImportError):
    """Horovod is needed for this, and not there. No AttributeError, whose words an import drops."""


def forward(part: str) -> ModuleType:
    """``horovod.PART`` of an installed Horovod.

    It knows nothing of this package: ``horovod.torch.init()`` has to be called for it as well.
    Raises NotForwarded, an ImportError, that says what to do instead.
    """
    try:
        return importlib.import_module(f"horovod.{part}")
    except ImportError as error:
        raise NotForwarded(
            f"hvd_backup.{part} is Horovod's own, and horovod.{part} cannot be imported ({error}); "
            f"install horovod, or: {_INSTEAD[part]}"
        ) from error
