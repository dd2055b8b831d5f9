"""torch.amp.GradScaler: every rank sees the same overflow, and all skip the step or none."""

import warnings

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import assert_replicas, batch, distribute, small_model, tensor_bits
from torch import nn, optim

pytestmark = pytest.mark.mpi


def scaled_backward(model, scaler, step, *, overflow):
    x, y = batch(step)
    loss = nn.functional.cross_entropy(model(x), y)
    scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()


def horovods(opt, scaler):
    opt.synchronize()
    scaler.unscale_(opt)
    with opt.skip_synchronize():
        scaler.step(opt)


def horovods_with_clipping(opt, scaler):
    opt.synchronize()
    scaler.unscale_(opt)
    params = [p for group in opt.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(params, 0.1)
    with opt.skip_synchronize():
        scaler.step(opt)


def torchs(opt, scaler):
    scaler.step(opt)


def torchs_with_clipping(opt, scaler):
    scaler.unscale_(opt)
    params = [p for group in opt.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(params, 0.1)
    scaler.step(opt)


@pytest.mark.parametrize(
    "pattern", [horovods, horovods_with_clipping, torchs, torchs_with_clipping]
)
@pytest.mark.parametrize("backups", ["none", "all but one"])
def test_an_overflow_on_one_rank_makes_all_ranks_skip_alike(pattern, backups):
    model = small_model()
    opt = distribute(model, optim.Adam, backup_workers=0 if backups == "none" else SIZE - 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    skipped = 0
    for step in range(8):
        overflows = {1: 0, 4: SIZE - 1}.get(step)
        with opt.attempt():
            opt.zero_grad()
            scaled_backward(model, scaler, step, overflow=overflows == RANK)
        before = [tensor_bits(p) for p in model.parameters()]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "GradScaler is going to stop", FutureWarning)
            pattern(opt, scaler)
        scale = scaler.get_scale()
        scaler.update()
        stood_still = before == [tensor_bits(p) for p in model.parameters()]
        hit = overflows in opt.last_round.contributors
        assert stood_still == hit
        assert (scaler.get_scale() < scale) == hit
        skipped += hit
        same_everywhere(scaler.get_scale(), stood_still)
    assert opt.stats().rounds == 8
    assert skipped == 2 or backups != "none"
    assert_replicas(model, opt)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    opt.close()


def test_a_scaler_that_is_switched_off_leaves_everything_as_it_is():
    model = small_model()
    opt = distribute(model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(2):
        opt.zero_grad()
        scaled_backward(model, scaler, step, overflow=False)
        scaler.step(opt)
        scaler.update()
    assert opt.stats().rounds == 2
    assert_replicas(model, opt)
    opt.close()


def test_where_all_abstain_the_scale_comes_down():
    model = small_model()
    opt = distribute(model, on_nonfinite="abstain")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_backward(model, scaler, 0, overflow=True)
    before = [tensor_bits(p) for p in model.parameters()]
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert before == [tensor_bits(p) for p in model.parameters()]
    assert opt.last_round.weight == 0
    opt.zero_grad()
    scaled_backward(model, scaler, 1, overflow=False)
    scaler.step(opt)
    assert opt.last_round.weight == SIZE
    assert_replicas(model, opt)
    opt.close()


def test_closed_the_optimizer_is_the_scalers_as_before():
    model = small_model()
    opt = distribute(model)
    opt.close()
    assert "step" not in vars(opt)
    assert "_step_supports_amp_scaling" not in vars(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaled_backward(model, scaler, 0, overflow=True)
    before = [tensor_bits(p) for p in model.parameters()]
    scaler.step(opt)
    assert before == [tensor_bits(p) for p in model.parameters()]


def test_a_wrapper_that_hides_the_scaler_is_refused_on_every_rank():
    model = small_model()
    opt = distribute(model)
    ours = opt.step

    def hiding(*args, **kwargs):
        return ours(*args, **kwargs)

    opt.step = hiding
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaled_backward(model, scaler, 0, overflow=False)
    with pytest.raises(RuntimeError, match=r"call optimizer.synchronize\(\), scaler.unscale_"):
        scaler.step(opt)
    opt.close()
