"""``horovod.spark`` of an installed Horovod; an ImportError that says what to do without one."""

import sys

from hvd_backup.horovod.forwarding import forward

sys.modules[__name__] = forward("spark")
