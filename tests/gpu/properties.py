"""The properties of the core and of torch's adapter, on tensors of a device, on several ranks.

    hvd-backup run --no-mpi -np 3 -- python tests/gpu/properties.py --device cuda --path mapped

All ranks share one GPU, unless `--each`. Needs torch and numpy alone, no pytest. With
`--device cpu` gradients go the same way, by the kernels' twins. `--path` is HVD_BACKUP_DEVICE_PATH.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import gc
import hashlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import hvd_backup.torch as hvd
from hvd_backup.torch import ddp_hook, staging
from hvd_backup.torch.mapped import Mapped
from hvd_backup.torch.staged import Staged

LIMIT_S = 240  # then all ranks show where they are
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PROPERTIES: list[Callable[[torch.device], None]] = []
ON_GPU_ONLY: list[Callable[[torch.device], None]] = []
STAGED_ONLY: list[Callable[[torch.device], None]] = []


def prop(function):
    PROPERTIES.append(function)
    return function


def on_gpu(function):
    ON_GPU_ONLY.append(function)
    return prop(function)


def when_staged(function):
    STAGED_ONLY.append(function)
    return prop(function)


def digest(tensors):
    state = hashlib.sha1()
    for tensor in tensors:
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def same_everywhere(fact):
    everybody = hvd.allgather_object(fact)
    assert all(theirs == everybody[0] for theirs in everybody), everybody


def noise(rank, key, like):
    """Rank `rank`'s gradient for a tensor: every rank can compute every other's."""
    rng = np.random.default_rng((rank, key))
    flat = rng.random(like.numel(), dtype=np.float32) - np.float32(0.5)
    return torch.from_numpy(flat).reshape(like.shape).to(like.dtype)


def mean(ranks, key, like):
    """In ascending order of rank, in float32 or wider: the bits that the exchange must give."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    total = noise(ranks[0], key, like).to(wide)
    for rank in ranks[1:]:
        total = total + noise(rank, key, like).to(wide)
    return (total / len(ranks)).to(like.dtype)


def parameters(device):
    """Of all dtypes, empty, misaligned in the flat buffer, transposed, more than one tile."""
    shapes = [(3,), (17, 5), (), (0, 4), (70_001,), (4, 3, 5, 5)]
    params = [torch.zeros(s, dtype=d, device=device) for d in DTYPES for s in shapes]
    params += [torch.zeros(8, 6, device=device).t()]
    params += [torch.zeros(2, 3, 4, 4, device=device).to(memory_format=torch.channels_last)]
    return [torch.nn.Parameter(param) for param in params]


def assert_gradients(params, ranks, key):
    for i, param in enumerate(params):
        expected = mean(ranks, key + i, param)
        assert param.grad.device == param.device
        assert torch.equal(param.grad.cpu(), expected), (i, param.shape, param.dtype)


@prop
def collectives_take_tensors_of_the_device_and_give_them_back(device):
    for dtype in DTYPES:
        tensor = torch.full((5, 2), float(hvd.rank()), dtype=dtype, device=device)
        total = hvd.allreduce(tensor, op=hvd.Sum)
        assert total.device == tensor.device
        assert torch.equal(total, torch.full_like(tensor, sum(range(hvd.size()))))
        assert torch.equal(hvd.broadcast(tensor, 1), torch.ones_like(tensor))
        rows = hvd.allgather(tensor[: hvd.rank() + 1])
        assert rows.device == tensor.device
        assert rows[:, 0].tolist() == [r for r in range(hvd.size()) for _ in range(r + 1)]
    model = torch.nn.Linear(3, 2).to(device)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    same_everywhere(digest(model.parameters()))


@prop
def the_mean_of_all_has_the_bits_of_a_sum_in_ascending_order_of_rank(device):
    params = parameters(device)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(params, 0.0))
    for key in range(0, 300, 100):
        for i, param in enumerate(params):
            gradient = noise(hvd.rank(), key + i, param).to(device)
            # Also with other strides than the parameter's.
            param.grad = gradient if key else torch.empty_like(param).copy_(gradient)
        optimizer.step()
        assert_gradients(params, list(range(hvd.size())), key)
    optimizer.close()


@prop
def a_kept_gradient_stays_and_one_that_is_only_zeroed_is_used_again(device):
    param = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 0.1))
    mean = (hvd.size() - 1) / 2
    kept = []
    for step in range(3):
        optimizer.zero_grad()
        (param * float(step + hvd.rank())).sum().backward()
        kept.append(param.grad)
        optimizer.step()
        kept.append(param.grad)
        assert param.grad.device == param.device
    assert [float(grad[0]) for grad in kept[::2]] == [step + hvd.rank() for step in range(3)]
    assert [float(grad[0]) for grad in kept[1::2]] == [step + mean for step in range(3)]
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert param.grad is kept[-1]
    optimizer.close()


@prop
def a_late_rank_is_not_in_the_mean_and_gets_the_same_bits(device):
    params = parameters(device)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(params, 0.0), backup_workers=1)
    late, missed = hvd.size() - 1, 0
    for step in range(4):
        hvd.barrier()
        if hvd.rank() == late:
            time.sleep(0.3)
        for i, param in enumerate(params):
            param.grad = noise(hvd.rank(), 100 * step + i, param).to(device)
        optimizer.step()
        same_everywhere((optimizer.last_round.contributors, digest(p.grad for p in params)))
        assert_gradients(params, list(optimizer.last_round.contributors), 100 * step)
        missed += hvd.rank() not in optimizer.last_round.contributors
    assert optimizer.stats().late == missed
    assert hvd.size() == 1 or hvd.rank() != late or missed > 0  # others may be late, too, by chance
    optimizer.close()


@prop
def a_rank_that_fell_behind_leaves_its_attempt_and_loads_the_results(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(4))).to(device)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1), backup_workers=1)
    late = hvd.size() - 1
    for step in range(8):
        if step == 1 and hvd.rank() == late:
            time.sleep(1.0)
        with optimizer.attempt():
            optimizer.zero_grad()
            model(torch.full((2, 6), hvd.rank() + 1.0, device=device)).square().mean().backward()
        optimizer.step()
    hvd.barrier()
    same_everywhere(digest(model.parameters()))
    if hvd.rank() == late and hvd.size() > 1:
        assert optimizer.stats().skipped > 0
    optimizer.close()


@prop
def a_parameter_without_gradients_has_none_anywhere_and_one_with_some_has_the_mean(device):
    used, unused, mine = (torch.nn.Parameter(torch.ones(9, device=device)) for _ in range(3))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([used, unused, mine], 0.1))
    for _ in range(2):
        optimizer.zero_grad()
        used.grad = torch.full_like(used, 2.0)
        if hvd.rank() == 0:
            mine.grad = torch.full_like(mine, float(hvd.size()))
        optimizer.step()
        assert unused.grad is None
        assert torch.equal(used.grad, torch.full_like(used, 2.0))
        assert torch.equal(mine.grad, torch.ones_like(mine))
    optimizer.close()


@prop
def parameters_on_the_device_and_on_the_cpu_can_be_mixed(device):
    params = [
        torch.nn.Parameter(torch.zeros(50 + i, device=device if i % 3 else "cpu")) for i in range(7)
    ]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(params, 0.0))
    for key in (0, 100):
        for i, param in enumerate(params):
            param.grad = noise(hvd.rank(), key + i, param).to(param.device)
        optimizer.step()
        assert_gradients(params, list(range(hvd.size())), key)
    optimizer.close()


@prop
def compressed_gradients_have_the_mean_of_what_travels(device):
    for compression, dtype in (
        (hvd.Compression.fp16, torch.float16),
        (hvd.Compression.bf16, torch.bfloat16),
    ):
        param = torch.nn.Parameter(torch.zeros(700, 3, device=device))
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 0.0), compression=compression)
        for key in (0, 100):
            param.grad = noise(hvd.rank(), key, param).to(device, dtype).float()
            optimizer.step()
            travels = torch.empty(700, 3, dtype=dtype)
            expected = mean(list(range(hvd.size())), key, travels).float()
            assert param.grad.device == param.device
            assert torch.equal(param.grad.cpu(), expected), compression
        optimizer.close()


@prop
def a_sparse_gradient_has_the_rows_that_some_rank_touched(device):
    table = torch.nn.Embedding(20, 4, sparse=True).to(device)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(table.parameters(), 0.5))
    for step in range(3):
        optimizer.zero_grad()
        table(torch.tensor([hvd.rank() + step, 10 + step], device=device)).sum().backward()
        optimizer.step()
        grad = table.weight.grad
        assert grad.is_sparse
        assert grad.device == table.weight.device
        rows = [*range(step, step + hvd.size()), 10 + step]
        assert grad.coalesce().indices()[0].tolist() == rows
        assert torch.equal(grad.to_dense()[10 + step], torch.ones(4, device=device))
    same_everywhere(digest(table.parameters()))
    optimizer.close()


@prop
def a_rank_whose_gradient_is_not_finite_abstains(device):
    param = torch.nn.Parameter(torch.zeros(9, device=device))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 1.0), on_nonfinite="abstain")
    param.grad = torch.full_like(param, float("nan") if hvd.rank() == 0 else 2.0)
    optimizer.step()
    assert torch.equal(param.detach().cpu(), torch.full((9,), -2.0 if hvd.size() > 1 else 0.0))
    optimizer.close()


@prop
def a_scaler_skips_the_same_step_on_all_ranks(device):
    param = torch.nn.Parameter(torch.ones(4, device=device))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([param], 1.0))
    scaler = torch.amp.GradScaler(device.type, init_scale=4.0)
    for step in range(2):
        optimizer.zero_grad()
        factor = float("inf") if step == 0 and hvd.rank() == 0 else 1.0
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert param.tolist() == [0.0] * 4
    assert scaler.get_scale() == 2.0
    optimizer.close()


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


@when_staged
def the_way_by_a_pinned_buffer_gives_the_same_bits(device):
    staging.PIN = False
    try:
        the_mean_of_all_has_the_bits_of_a_sum_in_ascending_order_of_rank(device)
    finally:
        staging.PIN = True


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


def watch(device, path):
    """Packings from now on. With --device cpu these must not be the way in place."""
    if device == "cpu":
        staging.STAGE_ON_CPU = True
    os.environ["HVD_BACKUP_DEVICE_PATH"] = path  # read by init()
    calls = []
    way = Mapped if path == "mapped" else Staged
    pack = way._pack
    way._pack = lambda self, *given: (calls.append(self), pack(self, *given))[1]
    return calls


def why_not(function, device, path):
    """Why a property is left out; empty if it is not."""
    if function in ON_GPU_ONLY and device.type == "cpu":
        return "needs a GPU"
    if function in STAGED_ONLY and path != "staged":
        return "of the staged path only"
    return ""


def main() -> int:
    """Runs all; the first failure on a rank is that rank's exit status, and ends the others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--path", choices=("staged", "mapped"), default="staged")
    parser.add_argument("--each", action="store_true", help="every rank has a GPU of its own")
    parser.add_argument("--only", default="", help="part of the names of the properties")
    given = parser.parse_args()
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    calls = watch(given.device, given.path)
    hvd.init()
    device = torch.device("cpu")
    if given.device == "cuda":
        device = torch.device("cuda", hvd.local_rank() if given.each else 0)
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for function in PROPERTIES:
        name = function.__name__.replace("_", " ")
        if given.only not in name:
            continue
        if why := why_not(function, device, given.path):
            if hvd.rank() == 0:
                print(f"skip  {name} ({why})")
            continue
        try:
            function(device)
        except Exception:  # noqa: BLE001 (the others learn of it from this rank's end)
            print(f"FAIL  {name}, rank {hvd.rank()} of {hvd.size()}", file=sys.stderr)
            traceback.print_exc()
            return 1
        hvd.barrier()
        if hvd.rank() == 0:
            print(f"pass  {name}", flush=True)
    assert calls, f"nothing was {given.path}"
    hvd.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
