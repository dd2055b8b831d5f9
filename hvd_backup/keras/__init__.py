"""hvd_backup for Keras 3: ``import hvd_backup.keras as hvd`` where it was ``horovod.keras``.

The same as ``hvd_backup.tensorflow.keras``, ``callbacks`` included.
"""

from hvd_backup.tensorflow.keras import *  # noqa: F403
from hvd_backup.tensorflow.keras import __all__ as _all
from hvd_backup.tensorflow.refused import refuser as _refuser

__getattr__ = _refuser(__name__)

__all__ = [*_all]  # noqa: PLE0604
