"""Two process sets of two ranks train, each by itself; the test kills a rank of one."""

import sys

import torch
from facts import start, tell

import hvd_backup.torch as hvd

RANK, SIZE = start()
sets = [hvd.add_process_set([0, 2]), hvd.add_process_set([1, 3])]
model = torch.nn.Linear(300, 300)
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.01), process_set=sets[RANK % 2]
)
try:
    for step in range(1_000_000):
        if step == 20:
            tell(running=True)
        optimizer.zero_grad()
        model(torch.ones(1, 300)).sum().backward()
        optimizer.step()
except hvd.Error as error:
    tell(error=type(error).__name__, text=str(error))
    sys.exit(1)
