"""The properties of the core and of torch's adapter, on tensors of a device, on several ranks.

    hvd-backup run --no-mpi -np 3 -- python tests/gpu/properties.py --device cuda --path mapped

All ranks share one GPU, unless `--each`. Needs torch and numpy alone, no pytest. With
`--device cpu` gradients go the same way, by the kernels' twins. `--path` is HVD_BACKUP_DEVICE_PATH.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
import traceback

import torch
from on_device import (
    DTYPES,
    ON_GPU_ONLY,
    PROPERTIES,
    STAGED_ONLY,
    assert_gradients,
    digest,
    mean,
    noise,
    parameters,
    prop,
    same_everywhere,
    when_staged,
)

import hvd_backup.torch as hvd
from hvd_backup.torch import staging
from hvd_backup.torch.mapped import Mapped
from hvd_backup.torch.staged import Staged

LIMIT_S = 240  # then all ranks show where they are


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


@when_staged
def the_way_by_a_pinned_buffer_gives_the_same_bits(device):
    staging.PIN = False
    try:
        the_mean_of_all_has_the_bits_of_a_sum_in_ascending_order_of_rank(device)
    finally:
        staging.PIN = True


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
    import properties_of_training  # noqa: F401  (registers its own, after those above)

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
