"""Every case in a world of its own, one after another: what each rank gets when calls are wrong."""

import os
import time
from unittest import mock

import numpy as np
import torch
from facts import new_world, start, tell

import hvd_backup as hb
import hvd_backup.torch as hvd
from hvd_backup.torch import staged, staging
from hvd_backup.world.board import Board

RANK, SIZE = start()
ODD = RANK == 1
ONES = np.ones(4, np.float32)


def fail_slowly(self, error, fail=Board.fail):
    time.sleep(0.2)
    fail(self, error)


def linear(outputs=2):
    model = torch.nn.Linear(3, outputs)
    opt = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    return model, opt


def step(model, opt):
    opt.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    opt.step()


def shape_changes_on_one_rank():
    hb.partial_allreduce(ONES)
    hb.partial_allreduce(np.ones(5) if ODD else ONES)


def name_changes_on_one_rank():
    hb.partial_allreduce(ONES, name="gradients")
    hb.partial_allreduce(ONES, name="statistics" if ODD else "gradients")


def known_names_in_another_order():
    for name in ("first", "second"):
        hb.partial_allreduce(ONES, name=name)
    for name in ("second", "first") if ODD else ("first", "second"):
        hb.partial_allreduce(ONES, name=name)


def other_collective_on_one_rank():
    hb.partial_allreduce(ONES)
    if ODD:
        hb.barrier()
    else:
        hb.partial_allreduce(ONES)


def other_collective_on_one_rank_while_others_read_private_memory():
    large = np.ones(200_000, np.float32)
    hb.partial_allreduce(large)
    with mock.patch.object(Board, "fail", fail_slowly):
        if ODD:
            hb.barrier()
        else:
            hb.partial_allreduce(large)


def other_collective_on_one_rank_with_backups():
    hb.partial_allreduce(ONES, backup_workers=1, window=2)
    for _ in range(10):
        if ODD:
            hb.allgather_object(1)
        else:
            hb.partial_allreduce(ONES, backup_workers=1, window=2)


def known_names_in_another_order_with_backups_then_a_barrier():
    for name in ("first", "second"):
        hb.partial_allreduce(ONES, name=name, backup_workers=1)
    if ODD:
        time.sleep(1)  # the others have closed their round, and are in the barrier
    hb.partial_allreduce(ONES, name="second" if ODD else "first", backup_workers=1)
    hb.barrier()


def other_options_on_one_rank():
    hb.partial_allreduce(ONES)
    hb.partial_allreduce(ONES, **({"backup_workers": 1} if ODD else {}))


def other_options_on_one_rank_at_first():
    hb.partial_allreduce(ONES, backup_workers=1 if ODD else 0)


def too_many_backups_on_one_rank():
    hb.partial_allreduce(ONES, backup_workers=SIZE if ODD else 0)


def integers_on_one_rank():
    hb.partial_allreduce(ONES.astype(int) if ODD else ONES)


def other_treatment_of_nan_on_one_rank():
    param = torch.nn.Parameter(torch.ones(2))
    way = "abstain" if ODD else "contribute"
    opt = hvd.DistributedOptimizer(torch.optim.SGD([param], lr=0.1), on_nonfinite=way)
    param.grad = torch.ones(2)
    opt.step()


def gradients_cannot_be_staged_on_one_rank():
    model, opt = linear()
    refusing = mock.Mock(side_effect=hb.DeviceError("no room on the device"))
    with (
        mock.patch.object(staging, "STAGE_ON_CPU", True),
        mock.patch.object(staged, "Copies", refusing if ODD else staged.Copies),
    ):
        try:
            step(model, opt)
        finally:
            opt.close()


def parameters_added_on_one_rank():
    model, opt = linear()
    step(model, opt)
    if ODD:
        opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(5))]})
    step(model, opt)


def optimizers_in_another_order():
    pairs = [linear(), linear()]
    for pair in pairs:
        step(*pair)
    for pair in reversed(pairs) if ODD else pairs:
        step(*pair)


def second_optimizer_on_one_rank():
    model, opt = linear()
    step(model, opt)
    if ODD:
        hvd.DistributedOptimizer(opt)
    step(model, opt)


def one_step_less_then_shutdown():
    model, opt = linear()
    for _ in range(4 if ODD else 5):
        step(model, opt)


def one_step_less_then_a_barrier():
    model, opt = linear()
    for _ in range(4 if ODD else 5):
        step(model, opt)
    hb.barrier()


def one_step_less_with_backups_then_a_barrier():
    model = torch.nn.Linear(3, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    opt = hvd.DistributedOptimizer(opt, backup_workers=1)
    for _ in range(4 if ODD else 5):
        step(model, opt)
    hb.barrier()


def late_to_a_barrier():
    hb.barrier()
    time.sleep(1.2 if ODD else 0)
    hb.barrier()


CASES = [
    shape_changes_on_one_rank,
    name_changes_on_one_rank,
    known_names_in_another_order,
    other_collective_on_one_rank,
    other_collective_on_one_rank_while_others_read_private_memory,
    other_collective_on_one_rank_with_backups,
    known_names_in_another_order_with_backups_then_a_barrier,
    other_options_on_one_rank,
    other_options_on_one_rank_at_first,
    too_many_backups_on_one_rank,
    integers_on_one_rank,
    other_treatment_of_nan_on_one_rank,
    gradients_cannot_be_staged_on_one_rank,
    parameters_added_on_one_rank,
    optimizers_in_another_order,
    second_optimizer_on_one_rank,
    one_step_less_then_shutdown,
    one_step_less_then_a_barrier,
    one_step_less_with_backups_then_a_barrier,
    late_to_a_barrier,
]

# torch imports a lot in the first step of any optimizer.
torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()

for case in CASES:
    # Read by init(). Long enough for a busy machine, and never reached but where it is the point.
    os.environ["HVD_BACKUP_TIMEOUT"] = "0.5" if case is late_to_a_barrier else "30"
    new_world()
    began = time.monotonic()
    error = None
    try:
        case()
    except (hb.Error, ValueError, TypeError) as raised:
        error = raised
    tell(
        case=case.__name__,
        error=type(error).__name__,
        text=str(error),
        seconds=time.monotonic() - began,
    )
