"""Five ranks that compute by sleeping; rank 4 is slow, now and then or always.

The step is long beside what a busy machine adds to it: 50 ms in 25 modules. The arguments are the
cases to run.
"""

import hashlib
import time

import torch
from facts import ARGUMENTS, start, tell
from mpi4py import MPI

import hvd_backup as hb
import hvd_backup.torch as hvd

RANK, SIZE = start()
STRAGGLER = 4
MODULES, STEP_S = 25, 0.050
torch.set_num_threads(1)


class Work(torch.nn.Module):
    """A part of a step's forward pass."""

    slowness = 1.0
    pause_s = 0.0  # of the first part

    def forward(self, x):
        time.sleep(STEP_S / MODULES * Work.slowness + Work.pause_s)
        Work.pause_s = 0.0
        return x


def train(case, steps, *, backup_workers, pause_at=(), slowness=1.0):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 8), *[Work() for _ in range(MODULES)], torch.nn.Linear(8, 1)
    )
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    opt = hvd.DistributedOptimizer(opt, backup_workers=backup_workers)
    opt.step()  # sets up
    Work.slowness = slowness if RANK == STRAGGLER else 1.0
    useful_s = computing_s = window_s = 0.0
    hb.barrier()
    for step in range(steps):
        Work.pause_s = 20 * STEP_S if RANK == STRAGGLER and step in pause_at else 0.0
        began = time.monotonic()
        with opt.attempt():
            opt.zero_grad()
            model(torch.randn(4, 8)).pow(2).mean().backward()
        ended = time.monotonic()
        opt.step()
        sealed = opt.stats().history[-1].sealed_at_s
        computing_s += ended - began
        useful_s += max(0.0, min(ended, sealed) - began)
        window_s = max(window_s, opt.last_round.waited_for_window_s)
    state = hashlib.sha1()
    for p in model.parameters():
        state.update(
            p.detach().numpy().tobytes() + opt.state[p]["momentum_buffer"].numpy().tobytes()
        )
    stats = opt.stats()
    tell(
        case=case,
        stepped_at=[record.stepped_at_s for record in stats.history][1:],
        sealed_at=[record.sealed_at_s for record in stats.history][1:],
        contributed=stats.contributed,
        skipped=stats.skipped,
        useful_share=useful_s / computing_s,
        waited_for_window=window_s,
        digest=state.hexdigest(),
    )
    hb.barrier()
    opt.close()


def only_the_first_four(run):
    """In a world of four, while rank 4 sleeps."""
    hb.shutdown()
    four = MPI.COMM_WORLD.Split(RANK == STRAGGLER, RANK)
    if RANK != STRAGGLER:
        hb.init(four)
        run()
        hb.shutdown()
    done = MPI.COMM_WORLD.Ibarrier()
    while not done.Test():
        time.sleep(0.02)
    hb.init()


CASES = {
    "four alone": lambda name: only_the_first_four(lambda: train(name, 60, backup_workers=0)),
    "always slow": lambda name: train(name, 60, backup_workers=1, slowness=10.0),
    "b=1": lambda name: train(name, 150, backup_workers=1, pause_at=(15, 60, 105)),
    "b=0": lambda name: train(name, 40, backup_workers=0, pause_at=(10, 30)),
}

for case in ARGUMENTS:
    CASES[case](case)
