"""DistributedDataParallel with the communication hook: one round per backward pass."""

import gc
import os
import time
import weakref

import numpy as np
import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.test_gradients import gradients_of, mean_over
from mpi.training import Delay, backward, batch, small_model, tensor_bits
from torch import distributed, nn, optim
from torch.nn.parallel import DistributedDataParallel

import hvd_backup.torch as hvd
from hvd_backup.torch import ddp_hook, staging
from hvd_backup.torch.staged import Copies

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning"),
]


TORCHRUN = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]


@pytest.fixture(scope="module", autouse=True)
def gloo():
    """A process group of the same ranks, as a script that torchrun starts makes it."""
    with pytest.MonkeyPatch.context() as patched:
        for name in TORCHRUN:
            patched.setenv(name, "to be restored")
        ddp_hook.set_torchrun_env()
        distributed.init_process_group("gloo")
        yield
        hvd.barrier()
        distributed.destroy_process_group()


@pytest.fixture(params=["in place", "staged", "staged by a buffer"])
def way(request, monkeypatch):
    """How gradients reach the slot; staged is a GPU's way, here with the kernels' twins."""
    staged = []
    stage = Copies.stage
    monkeypatch.setattr(Copies, "stage", lambda *given: (staged.append(given), stage(*given)))
    monkeypatch.setattr(staging, "STAGE_ON_CPU", request.param != "in place")
    monkeypatch.setattr(staging, "PIN", request.param == "staged")
    yield
    assert bool(staged) == (request.param != "in place")


def test_torchruns_variables_are_this_worlds():
    assert os.environ["RANK"] == str(distributed.get_rank()) == str(RANK)
    assert os.environ["WORLD_SIZE"] == str(distributed.get_world_size()) == str(SIZE)
    assert os.environ["LOCAL_RANK"] == str(hvd.local_rank())
    assert os.environ["LOCAL_WORLD_SIZE"] == str(hvd.local_size())
    same_everywhere(os.environ["MASTER_PORT"])


def ddp(model=None, **options):
    # Buckets of some hundred bytes: several of them, and rebuilt after the first pass.
    return DistributedDataParallel(
        model or small_model(), bucket_cap_mb=0.0002, **{"broadcast_buffers": False, **options}
    )


@pytest.mark.usefixtures("way")
def test_gradients_are_the_mean_as_ddps_own_are():
    model = ddp()
    hook = ddp_hook.register(model)
    opt = optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        expected = mean_over([gradients_of(model.module, rank, step) for rank in range(SIZE)])
        opt.zero_grad()
        backward(model, batch(step))
        for p, grad in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-7)
        opt.step()
        assert hook.last_round.number == step
    same_everywhere([tensor_bits(p) for p in model.parameters()])
    hook.close()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("view", [False, True])
def test_with_stragglers_replicas_stay_identical_and_each_pass_is_one_decision(view):
    model = ddp(gradient_as_bucket_view=view)
    hook = ddp_hook.register(model, backup_workers=SIZE - 1)
    opt = optim.Adam(model.parameters(), lr=0.01)
    for step in range(20):
        backward(model, batch(step))
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        opt.step()
        opt.zero_grad()
    assert hook.stats().rounds == 20
    assert sum(hvd.allgather_object(hook.stats().contributed)) == 20
    same_everywhere([tensor_bits(p) for p in model.parameters()])
    hook.close()


@pytest.mark.mpi(min_size=2)
def test_nobody_waits_for_a_slow_rank():
    model = ddp()
    model.module[1] = Delay(seconds=0.15, chance=1 if RANK == SIZE - 1 else 0)
    hook = ddp_hook.register(model, backup_workers=1, window=64)
    backward(model, batch(0))  # sets up, and DDP's own second-iteration broadcast comes next
    backward(model, batch(1))
    hvd.barrier()
    start = time.monotonic()
    for step in range(2, 8):
        model.zero_grad()
        backward(model, batch(step))
    took = time.monotonic() - start
    late = hvd.allgather_object(hook.stats().late)
    times = hvd.allgather_object(took)
    assert late[SIZE - 1] >= 5
    assert min(times) < 0.5 * times[SIZE - 1]
    hook.close()


@pytest.mark.usefixtures("way")
def test_any_strides_and_dtypes_are_averaged():
    rng = np.random.default_rng(RANK)
    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    turned = nn.Linear(4, 5)
    turned.weight = nn.Parameter(torch.zeros(4, 5).t())
    sparse = nn.Linear(3, 2, dtype=torch.float64)
    sparse.weight = nn.Parameter(torch.zeros(2, 6, dtype=torch.float64)[:, ::2])
    layers = nn.ModuleList([conv, turned, sparse])
    factors = [torch.from_numpy(rng.random(p.shape)).to(p.dtype) for p in layers.parameters()]

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, factors):
            pairs = zip(self.layers.parameters(), factors, strict=True)
            return sum((p * f).sum().double() for p, f in pairs)

    model = ddp(Product())
    hook = ddp_hook.register(model)
    everybody = hvd.allgather_object(factors)
    for _ in range(3):
        model.zero_grad()
        model(factors).backward()
        for i, p in enumerate(layers.parameters()):
            mean = sum(theirs[i].double() for theirs in everybody) / SIZE
            torch.testing.assert_close(p.grad.double(), mean, rtol=1e-6, atol=1e-7)
    same_everywhere([tensor_bits(p.grad) for p in layers.parameters()])
    hook.close()


@pytest.mark.usefixtures("way")
def test_a_static_graph_of_two_dtypes_goes_through_a_round_per_pass():
    """In whose first pass DDP calls no bucket the last."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = nn.Linear(4, 4), nn.Linear(4, 2).double()

        def forward(self, x):
            return self.wide(self.narrow(x).double())

    torch.manual_seed(0)
    net = Mixed()
    model = ddp(net, static_graph=True)
    hook = ddp_hook.register(model)
    for step in range(3):
        x = torch.from_numpy(np.random.default_rng((RANK, step)).random((2, 4), np.float32))
        model.zero_grad()
        model(x).square().sum().backward()
        alone = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
        for p, theirs in zip(
            net.parameters(), zip(*hvd.allgather_object(alone), strict=True), strict=True
        ):
            torch.testing.assert_close(p.grad, sum(theirs) / SIZE, rtol=1e-5, atol=1e-6)
        assert hook.last_round.number == step
    hook.close()


@pytest.mark.parametrize("closed", [True, False])
def test_a_model_with_a_hook_is_freed_when_nobody_has_it_any_more(closed):
    model = ddp()
    hook = ddp_hook.register(model)
    backward(model, batch(0))
    if closed:
        hook.close()
    gone = [weakref.ref(model), weakref.ref(model.module), weakref.ref(hook)]
    del model, hook
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    hvd.barrier()


@pytest.mark.parametrize(
    ("weight", "error"),
    [("2", TypeError), (None, TypeError), (True, TypeError)]
    + [(bad, ValueError) for bad in (float("nan"), float("inf"), -1, 1e-31, 2**2000)],
)
def test_a_weight_that_cannot_be_is_refused_when_it_is_set(weight, error):
    model = ddp()
    hook = ddp_hook.register(model)
    with pytest.raises(error, match=r"hook\.weight must be"):
        hook.weight = weight
    assert hook.weight == 1.0
    hook.close()


def test_some_ranks_may_have_their_gradients_on_a_device(monkeypatch):
    monkeypatch.setattr(staging, "STAGE_ON_CPU", RANK % 2 == 0)
    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    model = ddp(conv)
    hook = ddp_hook.register(model)
    x = torch.from_numpy(np.random.default_rng(RANK).random((2, 2, 5, 5), np.float32))
    model(x).square().sum().backward()
    alone = [torch.autograd.grad(conv(x).square().sum(), p)[0] for p in conv.parameters()]
    for i, p in enumerate(conv.parameters()):
        mean = sum(theirs[i] for theirs in hvd.allgather_object(alone)) / SIZE
        torch.testing.assert_close(p.grad, mean, rtol=1e-5, atol=1e-6)
    hook.close()


def test_passes_without_sync_are_no_rounds_and_add_up():
    model = ddp()
    hook = ddp_hook.register(model)
    expected = mean_over(
        [
            [sum(g) for g in zip(*[gradients_of(model.module, r, s) for s in (0, 1)], strict=True)]
            for r in range(SIZE)
        ]
    )
    with model.no_sync():
        backward(model, batch(0))
    backward(model, batch(1))
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-7)
    assert hook.stats().rounds == 1
    hook.close()


def test_ranks_count_by_their_weights_and_may_abstain():
    model = ddp(nn.Linear(2, 1, bias=False))
    hook = ddp_hook.register(model)
    hook.weight = float(RANK)
    (model(torch.ones(1, 2)) * RANK).sum().backward()
    if SIZE == 1:
        assert not model.module.weight.grad.any()
    else:
        mean = sum(rank * rank for rank in range(SIZE)) / sum(range(SIZE))
        torch.testing.assert_close(model.module.weight.grad, torch.full((1, 2), mean))
    assert hook.stats().abstained == (RANK == 0)
    hook.close()


@pytest.mark.mpi(min_size=2)
def test_settings_with_hidden_barriers_are_refused_with_backups_only():
    with_buffers = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    for words, options in (
        (
            r"broadcast_buffers=True\), the default, .* pass broadcast_buffers=False",
            {"broadcast_buffers": True},
        ),
        (r"find_unused_parameters=True\) asks all ranks", {"find_unused_parameters": True}),
    ):
        model = ddp(with_buffers, **options)
        with pytest.raises(ValueError, match=words):
            ddp_hook.register(model, backup_workers=1)
        ddp_hook.register(model, backup_workers=0).close()
    model = ddp()
    hook = ddp_hook.register(model, backup_workers=1)
    with (
        pytest.raises(RuntimeError, match=r"model.join\(\) lets every iteration wait"),
        model.join(),
    ):
        backward(model, batch(0))
    hook.close()


@pytest.mark.usefixtures("way")
def test_parameters_that_ddp_is_to_ignore_are_left_alone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net.scale = nn.Parameter(torch.ones(1))
    ignored = [".scale", "0.bias"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, ignored)
    model = ddp(net)
    hook = ddp_hook.register(model)
    for step in range(3):
        model.zero_grad()
        (model(torch.full((1, 3), RANK + 1.0)).sum() * net.scale).backward()
        assert hook.last_round.number == step
    same_everywhere([tensor_bits(net[1].weight.grad), tensor_bits(net[0].weight.grad)])
    scales = hvd.allgather_object(float(net.scale.grad))
    assert SIZE == 1 or len(set(scales)) > 1, "an ignored parameter was averaged"
    hook.close()


def test_a_parameter_without_a_bucket_is_told_and_not_waited_for():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net[1].bias.requires_grad_(False)
    model = ddp(net)
    net[1].bias.requires_grad_(True)  # DDP has no bucket for it
    hook = ddp_hook.register(model)
    with pytest.raises(RuntimeError, match=r"has no bucket for '1.bias': wrap the model anew"):
        model(torch.ones(1, 3)).sum().backward()
    hook.close()
    hvd.barrier()


def test_on_a_device_a_gradient_of_another_dtype_than_the_parameters_is_refused(monkeypatch):
    """As mixed_precision= makes them; there bytes are read, and here numbers."""
    monkeypatch.setattr(staging, "STAGE_ON_CPU", True)
    model = ddp(nn.Linear(3, 2))
    hook = ddp_hook.register(model)
    model(torch.ones(1, 3)).sum().backward()
    param = model.module.weight
    with pytest.raises(TypeError, match=r"a gradient of .*float16 for a parameter of .*float32"):
        hook._buckets.put(param, param.grad.half())
    hook.close()


def test_what_is_no_ddp_model_is_refused():
    with pytest.raises(TypeError, match="takes a DistributedDataParallel, not Sequential"):
        ddp_hook.register(small_model())


def test_the_optimizer_or_hook_that_was_made_last_takes_over_and_the_former_is_refused():
    model = ddp()
    opt = hvd.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1))
    hook = ddp_hook.register(model)
    with pytest.raises(RuntimeError, match="has taken over parameters of this one"):
        opt.step()
    backward(model, batch(0))
    assert hook.stats().rounds == 1
    again = ddp(model.module)
    second = ddp_hook.register(again)
    expected = mean_over([gradients_of(model.module, rank, 1) for rank in range(SIZE)])
    again.zero_grad()
    backward(again, batch(1))
    assert (hook.stats().rounds, second.stats().rounds) == (1, 1)
    for p, grad in zip(again.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)
    hvd.DistributedOptimizer(optim.SGD(model.module.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="each gradient would be averaged twice"):
        backward(again, batch(2))
