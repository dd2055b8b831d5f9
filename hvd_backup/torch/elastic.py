"""``horovod.torch.elastic`` of an installed Horovod; else an ImportError says what to do."""

import sys

from hvd_backup.horovod.forwarding import forward

sys.modules[__name__] = forward("torch.elastic")
