"""The optimizer stays what it was, and gains what the reference says."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import (
    assert_replicas,
    backward,
    batch,
    distribute,
    replica,
    small_model,
    tensor_bits,
    train,
)
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi


def test_it_is_the_same_object_of_the_same_class():
    model = small_model()
    plain = optim.AdamW(model.parameters())
    opt = hvd.DistributedOptimizer(plain)
    assert opt is plain
    assert isinstance(opt, optim.AdamW)
    assert type(opt) is optim.AdamW
    assert opt.last_round is None
    assert opt.weight == 1.0
    assert opt.stats().rounds == 0
    opt.close()


def test_a_step_with_a_closure_is_refused_and_disturbs_nothing():
    model = small_model()
    opt = distribute(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"backward\(\) first, then step\(\)"):
            opt.step(lambda: backward(model, batch(0)))
        with pytest.raises(ValueError, match=r"step\(closure\)"):
            opt.step(closure=lambda: backward(model, batch(0)))
    train(model, opt, 2)
    opt.step(None)
    opt.step(closure=None)
    assert opt.stats().rounds == 4
    opt.close()


def test_a_parameter_that_was_frozen_is_given_back_by_close():
    model = small_model()
    opt = distribute(model)
    train(model, opt, 1)
    model[0].weight.requires_grad_(False)
    train(model, opt, 1, first=1)
    opt.close()
    model[0].weight.requires_grad_(True)
    opt = distribute(model)
    train(model, opt, 1)
    assert_replicas(model, opt)
    opt.close()


def test_closed_it_is_a_local_optimizer():
    model = small_model()
    opt = distribute(model)
    train(model, opt, 2)
    opt.close()
    opt.zero_grad()
    backward(model, batch(0))
    own = [tensor_bits(p.grad) for p in model.parameters()]
    opt.step()
    assert [tensor_bits(p.grad) for p in model.parameters()] == own
    assert opt.stats().rounds == 2
    everybody = hvd.allgather_object(own)
    assert all(theirs != own for rank, theirs in enumerate(everybody) if rank != RANK)


def test_the_hooks_of_the_user_stay():
    model = small_model()
    opt = distribute(model)
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))
    model[0].weight.register_post_accumulate_grad_hook(lambda _: calls.append("gradient"))
    train(model, opt, 1)
    opt.close()
    train_calls, calls[:] = list(calls), []
    assert train_calls == ["gradient", "before", "after"]
    backward(model, batch(0))
    opt.step()
    assert calls == ["gradient", "before", "after"]


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.RMSprop])
def test_a_checkpoint_resumes_to_the_same_bits(make):
    def start():
        model = small_model()
        return model, distribute(model, make, lr=0.01, options={"weight_decay": 1e-3})

    model, opt = start()
    train(model, opt, 10)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
    train(model, opt, 10, first=10)
    expected = replica(model, opt)
    opt.close()

    model, opt = start()
    file.seek(0)
    saved = torch.load(file)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    train(model, opt, 10, first=10)
    assert replica(model, opt) == expected
    opt.close()


def test_a_state_dict_may_be_loaded_during_training():
    model = small_model()
    opt = distribute(model, optim.Adam)
    train(model, opt, 3)
    saved = copy.deepcopy(opt.state_dict())
    train(model, opt, 3, first=3)
    opt.load_state_dict(saved)
    train(model, opt, 3, first=6)
    assert opt.stats().rounds == 9
    assert_replicas(model, opt)
    opt.close()


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.filterwarnings("ignore:the copy of a DistributedOptimizer")
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_copies_are_plain_and_local(duplicate):
    model = small_model()
    opt = distribute(model, optim.Adam)
    train(model, opt, 2)
    other_model, other = duplicate((model, opt))
    assert type(other) is optim.Adam
    assert not hasattr(other, "attempt")
    if RANK == 0:  # alone: nobody else needs to come
        other.zero_grad()
        backward(other_model, batch(0))
        other.step()
    assert duplicate(opt).state_dict()["param_groups"] == opt.state_dict()["param_groups"]
    train(model, opt, 2, first=2)
    assert_replicas(model, opt)
    opt.close()
    hvd.DistributedOptimizer(other).close()


def test_a_model_can_be_saved_whole():
    model = small_model()
    opt = distribute(model)
    train(model, opt, 1)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert [tensor_bits(p) for p in loaded.parameters()] == [
        tensor_bits(p) for p in model.parameters()
    ]
    opt.close()


def test_it_goes_away_with_its_model():
    models = []
    for _ in range(2):
        model = small_model()
        opt = distribute(model)
        train(model, opt, 1)
        models.append(weakref.ref(model[0].weight))
    del model, opt
    gc.collect()
    assert [alive() for alive in models] == [None, None]


def test_names_are_checked():
    model = small_model()
    make = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"were not named\. .*4 of .* 6"):
        hvd.DistributedOptimizer(make, model[0].named_parameters())
    with pytest.raises(ValueError, match=r"sequence of tuples \(name, parameter\)"):
        hvd.DistributedOptimizer(make, model.parameters())
    with pytest.raises(ValueError, match=r"must be unique\. Found duplicates: w"):
        hvd.DistributedOptimizer(make, [("w", p) for p in model.parameters()])
    opt = hvd.DistributedOptimizer(make)  # nothing was left behind by the refusals
    train(model, opt, 1)
    opt.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backup_workers": SIZE}, f"backup_workers={SIZE}"),
        ({"backup_workers": -1}, "backup_workers=-1"),
        ({"late": "never"}, "late='never'"),
        ({"window": 0}, "window=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"grace": -1.0}, "grace=-1.0"),
    ],
)
def test_options_are_checked(options, words):
    model = small_model()
    make = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=words):
        hvd.DistributedOptimizer(make, **options)
    hvd.DistributedOptimizer(make).close()


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_no_weight_is_refused_before_anything_is_sent(weight):
    model = small_model()
    opt = distribute(model)
    train(model, opt, 1)
    backward(model, batch(1))
    if RANK == 0:
        opt.weight = weight
        with pytest.raises(ValueError, match=r"to abstain. or between"):
            opt.step()
        opt.weight = 1.0
    opt.step()
    assert_replicas(model, opt)
    opt.close()


def test_a_parameter_that_cannot_be_averaged_is_refused_by_name():
    model = nn.ParameterDict({"phase": nn.Parameter(torch.zeros(2, dtype=torch.complex64))})
    with pytest.raises(TypeError, match=r"'phase' is torch\.complex64"):
        hvd.DistributedOptimizer(optim.SGD(model.parameters()), model.named_parameters())


def test_different_models_raise_mismatch_on_every_rank():
    if SIZE == 1:
        return
    model = nn.Linear(2, 2 + (RANK == 1))
    opt = hvd.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(
        hvd.Mismatch, match=r"rank 1: DistributedOptimizer\(SGD, weight: .*\[3, 2\]"
    ):
        opt.step()
    opt.close()


def test_the_rounds_of_a_rank_are_in_its_stats():
    model = small_model()
    opt = distribute(model, backup_workers=SIZE - 1)
    for step in range(5):
        train(model, opt, 1, attempt=True, first=step)
        assert opt.last_round.number == step
        record = opt.stats().history[-1]
        assert record.number == step
        assert record.contributed == opt.last_round.contributed
        assert record.contributed == (RANK in opt.last_round.contributors)
        same_everywhere(opt.last_round.contributors, opt.last_round.weight)
    assert "rounds=5" in repr(opt.stats())
    opt.close()


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="a torch optimizer, not None"):
        hvd.DistributedOptimizer(None)
