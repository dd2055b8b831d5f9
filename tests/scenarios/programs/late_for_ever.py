"""Rank 2 falls behind and is late from then on. late_for_ever.py FOLDER WAY B."""

import logging
import os
import time

import numpy as np
import torch
from facts import ARGUMENTS, start, tell

import hvd_backup as hb
import hvd_backup.torch as hvd

WAY, B = ARGUMENTS[0], int(ARGUMENTS[1])
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("hvd_backup").addHandler(handler)
RANK, SIZE = start()
ROUNDS = 60
LATE = 2


def slow_ranks():
    """Who is slow in the round: always the same rank, or each in its turn."""
    for round_ in range(ROUNDS):
        yield round_ % SIZE if WAY == "in turn" else LATE


def sleep_if(slow):
    time.sleep(0.06 if slow == RANK else 0.01)


def with_numpy():
    for slow in slow_ranks():
        sleep_if(slow)
        hb.partial_allreduce(np.ones(1000, np.float32), backup_workers=B)


def with_torch():
    model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(8)])
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = hvd.DistributedOptimizer(
        sgd, named_parameters=model.named_parameters(), backup_workers=B
    )
    for slow in slow_ranks():
        optimizer.zero_grad()
        sleep_if(slow)
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()


def with_ddp():
    from hvd_backup.torch import ddp_hook

    ddp_hook.set_torchrun_env()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the host's name may not resolve, which takes long
    torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    hook = ddp_hook.register(model, backup_workers=B)
    for slow in slow_ranks():
        sleep_if(slow)
        model(torch.ones(2, 3)).sum().backward()
    hook.close()
    hvd.barrier()
    torch.distributed.destroy_process_group()


def with_keras():
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    import keras

    import hvd_backup.keras as hvd_keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    sgd = keras.optimizers.SGD(0.01)
    model.compile(hvd_keras.DistributedOptimizer(sgd, backup_workers=B), loss="mse")
    slow = slow_ranks()
    lateness = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: sleep_if(next(slow))
    )
    data = np.ones((2 * ROUNDS, 3), np.float32)
    model.fit(data, data, batch_size=2, verbose=0, callbacks=[lateness])


{"torch": with_torch, "ddp": with_ddp, "keras": with_keras}.get(WAY, with_numpy)()
tell(warnings=warnings)
