"""Ranks train for ever with gradients in memory that all map, by the twins; one is killed.

killed_mapped.py FOLDER B
"""

import torch
from facts import ARGUMENTS, start, tell

import hvd_backup.torch as hvd
from hvd_backup.torch import staging
from hvd_backup.torch.mapped import Mapped

staging.STAGE_ON_CPU = True
packings = []
pack = Mapped._pack
Mapped._pack = lambda self, *given: (packings.append(self), pack(self, *given))[1]
RANK, SIZE = start()
param = torch.nn.Parameter(torch.zeros(200_000))
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD([param], 1.0), backup_workers=int(ARGUMENTS[0]), window=20
)
try:
    for k in range(1_000_000):
        if k == 30:
            tell(running=True, mapped=len(packings))
        param.grad = torch.ones(200_000)
        optimizer.step()
except BaseException as error:
    tell(error=type(error).__name__, text=str(error))
    raise
