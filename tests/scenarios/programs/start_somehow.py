"""What init() says, and a round if it says nothing. The argument is mpi4py's thread level."""

import mpi4py
import numpy as np
from facts import ARGUMENTS, tell

import hvd_backup as hb

mpi4py.rc.thread_level = ARGUMENTS[0]
try:
    hb.init()
except (hb.Error, ValueError) as error:
    tell(error=type(error).__name__, text=str(error))
else:
    value, _ = hb.partial_allreduce(np.full(3, float(hb.rank())))
    tell(error="none", value=value.tolist(), nodes=hb.cross_size())
