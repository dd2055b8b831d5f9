"""Trains a small model: train.py BACKUP_WORKERS [STEPS [SLOW_HOST [SECONDS]]].

The ranks on the host of that name sleep for so long in each step. Rank 0 says when ten steps are
done. In the end each rank prints a line of JSON:
a digest of its parameters and of the optimizer's state, the losses, and what it saw of the rounds.
"""

import hashlib
import json
import socket
import sys
import time

import torch

import hvd_backup.torch as hvd

BACKUP_WORKERS = int(sys.argv[1])
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 30
SLOW_HOST = sys.argv[3] if len(sys.argv) > 3 else None
SECONDS = float(sys.argv[4]) if len(sys.argv) > 4 else 0.05

torch.set_num_threads(1)
hvd.init()
RANK = hvd.rank()
SLOW = socket.gethostname() == SLOW_HOST


class Work(torch.nn.Module):
    """What takes time on a slow host."""

    def forward(self, x):
        if SLOW:
            time.sleep(SECONDS)
        return x


torch.manual_seed(RANK)  # rank 0's parameters are to win
model = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Tanh(), Work(), torch.nn.Linear(32, 1))
opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
opt = hvd.DistributedOptimizer(opt, backup_workers=BACKUP_WORKERS)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
began = time.monotonic()
losses = []
for step in range(STEPS):
    if step == 10 and RANK == 0:
        print("ten steps done", flush=True)
    x = torch.randn(16, 6)  # of this rank's seed: each has data of its own
    with opt.attempt():
        opt.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        losses.append(loss.item())
    opt.step()
took = time.monotonic() - began
state = hashlib.sha1()
for p in model.parameters():
    state.update(p.detach().numpy().tobytes() + opt.state[p]["momentum_buffer"].numpy().tobytes())
stats = opt.stats()
facts = {
    "rank": RANK,
    "host": socket.gethostname(),
    "hosts": hvd.cross_size(),
    "rounds": stats.rounds,
    "contributed": stats.contributed,
    "skipped": stats.skipped,
    "losses": losses,
    "took": took,
    "digest": state.hexdigest(),
}
print(json.dumps(facts), flush=True)
hvd.shutdown()
