"""Processes forked by ranks end, in several ways, while the ranks go on."""

import hashlib
import multiprocessing
import os
import signal
import time

import numpy as np
import torch
from facts import start, tell

import hvd_backup as hb
import hvd_backup.torch as hvd

RANK, SIZE = start()


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        return torch.tensor([float(i)]), torch.tensor([float(i * i)])


def end_a_process(end):
    """The exit status of a forked process."""
    child = os.fork()
    if child == 0:
        end()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def process_of_multiprocessing():
    process = multiprocessing.get_context("fork").Process(target=list)
    process.start()
    process.join()
    return process.exitcode


torch.manual_seed(RANK)
model = torch.nn.Linear(1, 1)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
opt = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1e-5), backup_workers=1)
statuses = []
for _ in range(3):
    loader = torch.utils.data.DataLoader(
        Squares(), batch_size=8, num_workers=2, multiprocessing_context="fork"
    )
    for x, y in loader:
        opt.zero_grad()
        (model(x) - y).pow(2).mean().backward()
        opt.step()
    statuses.append(process_of_multiprocessing())
    statuses.append(end_a_process(lambda: os._exit(0)))
large = np.full(600_000, RANK, np.float32)
means = [hb.partial_allreduce(large)[0][0].item()]
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
# Beside a process that has all of this one's memory.
means += [hb.partial_allreduce(factor * large)[0][-1].item() for factor in (1, 2, 3)]
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
state = hashlib.sha1(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
tell(statuses=statuses, digest=state.hexdigest(), rounds=opt.last_round.number + 1, means=means)
value, _ = hb.partial_allreduce(np.ones(3))
assert value.tolist() == [1.0] * 3
