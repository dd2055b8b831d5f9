"""Properties of whole trainings, of ranks that end, and of DDP; see properties.py."""

from __future__ import annotations

import datetime
import gc
import os
import signal
import subprocess
import time

import torch
from on_device import (
    assert_gradients,
    digest,
    noise,
    on_gpu,
    parameters,
    prop,
    same_everywhere,
    when_staged,
)
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import hvd_backup.torch as hvd
from hvd_backup.torch import ddp_hook


@prop
def statistics_of_a_sync_batch_norm_are_those_of_all_ranks_batches(device):
    batches = [noise(rank, 0, torch.empty(4, 3, 5)).to(device) for rank in range(hvd.size())]
    layer, alone = hvd.SyncBatchNorm(3).to(device), torch.nn.BatchNorm1d(3).to(device)
    mine = batches[hvd.rank()].clone().requires_grad_()
    everything = torch.cat(batches).requires_grad_()
    layer(mine).square().sum().backward()
    alone(everything).square().sum().backward()
    assert torch.allclose(layer.running_var, alone.running_var, rtol=1e-5)
    part = everything.grad[4 * hvd.rank() : 4 * hvd.rank() + 4]
    assert torch.allclose(mine.grad, part, atol=1e-4)


@prop
def replicas_stay_equal_bit_for_bit_in_training_with_autocast(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    ).to(device)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), backup_workers=hvd.size() - 1
    )
    for step in range(10):
        optimizer.zero_grad()
        x = noise(hvd.rank(), step, torch.empty(4, 3, 8, 8)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
    same_everywhere(digest(model.parameters()))
    optimizer.close()


@prop
def a_rank_that_is_stopped_delays_nobody_while_there_is_room_in_the_window(device):
    params = parameters(device)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(params, 0.0), backup_workers=min(1, hvd.size() - 1), window=40
    )
    for step in range(3):
        for i, param in enumerate(params):
            param.grad = noise(hvd.rank(), 100 * step + i, param).to(device)
        optimizer.step()
        hvd.barrier()
    stopped = hvd.size() - 1
    if hvd.rank() == stopped and hvd.size() > 1:
        wake = f"sleep 3; kill -CONT {os.getpid()}"
        with subprocess.Popen(["sh", "-c", wake]):
            os.kill(os.getpid(), signal.SIGSTOP)
    began = time.monotonic()
    for step in range(20):
        for i, param in enumerate(params):
            param.grad = noise(hvd.rank(), 100 * step + i, param).to(device)
        optimizer.step()
        assert_gradients(params, list(optimizer.last_round.contributors), 100 * step)
    if hvd.rank() != stopped and hvd.size() > 2:
        assert time.monotonic() - began < 2.9, "the others waited for it"
    hvd.barrier()
    optimizer.close()


@prop
def a_late_rank_loads_what_it_missed_when_the_others_have_closed(device):
    param = torch.nn.Parameter(torch.zeros(70_001, device=device))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([param], 0.0), backup_workers=min(1, hvd.size() - 1), window=8
    )
    for step in range(8):
        if step == 2 and hvd.rank() == 0:
            time.sleep(1.0)
        param.grad = noise(hvd.rank(), step, param).to(device)
        optimizer.step()
        assert_gradients([param], list(optimizer.last_round.contributors), step)
    optimizer.close()
    assert_gradients([param], list(optimizer.last_round.contributors), 7)
    hvd.barrier()


@when_staged
def a_ddp_model_with_the_hook_has_the_mean_of_the_contributors(device):
    ddp_hook.set_torchrun_env()
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 4)]
    net = torch.nn.Sequential(*layers).to(device, memory_format=torch.channels_last)
    params = list(net.parameters())
    model = DistributedDataParallel(net, bucket_cap_mb=0.0002)
    hook = ddp_hook.register(model, backup_workers=min(1, hvd.size() - 1))
    for step in range(6):
        if step >= 2 and hvd.rank() == 0:
            time.sleep(0.1)
        batches = [noise(r, step, torch.empty(2, 3, 8, 8)).to(device) for r in range(hvd.size())]
        model.zero_grad()
        model(batches[hvd.rank()]).square().mean().backward()
        ranks = hook.last_round.contributors
        loss = sum(net(batches[r]).square().mean() for r in ranks) / len(ranks)
        for param, expected in zip(params, torch.autograd.grad(loss, params), strict=True):
            torch.testing.assert_close(param.grad, expected, rtol=1e-4, atol=1e-5)
    same_everywhere(digest(param.grad for param in params))
    assert hook.stats().rounds == 6
    hook.close()
    hvd.barrier()
    distributed.destroy_process_group()


@on_gpu
def gradients_and_steps_on_other_streams_wait_for_one_another(device):
    param = torch.nn.Parameter(torch.zeros(1 << 20, device=device))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 1.0))
    streams = [torch.cuda.Stream(device) for _ in range(3)]
    for step in range(9):
        stream = streams[step % 3]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            torch.cuda._sleep(2_000_000)  # what follows is not done when step() is called
            param.grad = torch.full_like(param, float(hvd.rank() + step))
            optimizer.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        torch.cuda.current_stream(device).wait_stream(stream)
    expected = -sum((hvd.size() - 1) / 2 + step for step in range(9))
    assert torch.equal(param.detach().cpu(), torch.full((1 << 20,), expected))
    optimizer.close()


@on_gpu
def the_capture_of_a_step_in_a_graph_is_refused_in_words(device):
    param = torch.nn.Parameter(torch.zeros(5, device=device))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 1.0))
    param.grad = torch.ones_like(param)
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    said = "nothing"
    gc.collect()  # what is freed amid a capture ends it
    gc.disable()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        try:
            optimizer.step()
        except RuntimeError as error:
            said = str(error)
        param.detach().add_(0.0)  # an empty graph is warned of
    gc.enable()
    assert "cannot be captured in a CUDA graph" in said, said
    torch.cuda.synchronize()
    optimizer.step()
    optimizer.close()
