"""A program that moves to hvd_backup step by step: Horovod for all but the optimizer.

An argument says who is initialized first.
"""

import time

import horovod.torch as horovod
import torch
from facts import ARGUMENTS, digest, tell

import hvd_backup.torch as hvd

STEPS = 12


def model_of(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))


def train(model, optimizer, straggler):
    """Trains on this rank's data; returns the loss of each step, averaged by Horovod."""
    data = torch.Generator().manual_seed(hvd.rank())
    losses = []
    for _ in range(STEPS):
        x, y = torch.randn(16, 8, generator=data), torch.randn(16, 3, generator=data)
        if straggler:
            time.sleep(0.03)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(horovod.allreduce(loss.detach(), name="loss").item())
    return losses


def trained(wrap, straggler=False):
    model = model_of(seed=hvd.rank())  # ranks that differ, until Horovod makes them one
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    horovod.broadcast_parameters(model.state_dict(), root_rank=0)
    horovod.broadcast_optimizer_state(sgd, root_rank=0)
    optimizer = wrap(sgd, model.named_parameters())
    losses = train(model, optimizer, straggler)
    return [p.detach().numpy() for p in model.parameters()], losses, optimizer


def compared(backups, theirs):
    """Training with hvd_backup's optimizer, beside the parameters that Horovod's led to."""
    parameters, losses, optimizer = trained(
        lambda sgd, named: hvd.DistributedOptimizer(sgd, named, backup_workers=backups),
        straggler=backups and hvd.rank() == hvd.size() - 1,
    )
    ours = digest(*parameters)
    stats = optimizer.stats()
    optimizer.close()
    return {
        "digests": MPI.COMM_WORLD.allgather(ours) + horovod.allgather_object(ours),
        "losses": losses,
        "late": stats.late,
        "rounds": stats.rounds,
        "away_from_horovod": max(
            float(abs(a - b).max()) for a, b in zip(parameters, theirs, strict=True)
        ),
    }


for package in (horovod, hvd) if ARGUMENTS == ["horovod"] else (hvd, horovod):
    package.init()
from mpi4py import MPI  # noqa: E402  (not before: it would be the one that initializes MPI)

theirs, their_losses, _ = trained(horovod.DistributedOptimizer)
tell(
    rank=hvd.rank(),
    horovod=[horovod.rank(), horovod.size(), horovod.local_rank(), horovod.local_size()],
    ours=[hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()],
    trained={backups: compared(backups, theirs) for backups in (0, 1)},
    their_losses=their_losses,
)
# If Horovod has initialized MPI, it finalizes it on all ranks as soon as one of them ends.
horovod.barrier()
