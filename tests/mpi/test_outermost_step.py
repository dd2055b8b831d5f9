"""Every call of the outermost step() is one round, whatever optimizers do inside; never none."""

import copy
from collections import OrderedDict, defaultdict

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi.training import assert_replicas, backward, batch, distribute, small_model
from torch import nn, optim

import hvd_backup.torch as hvd

pytestmark = pytest.mark.mpi

STEPS = 3
MEAN = (SIZE - 1) / 2


def vector():
    return nn.Parameter(torch.zeros(3))


def check_each_step_is_one_round(opt, p, steps=STEPS, through=None):
    """lr is 1, and rank r's gradient is r: each step takes the mean of the ranks."""
    before = p.detach().clone()
    for _ in range(steps):
        opt.zero_grad()
        (p * float(RANK)).sum().backward()
        (through or opt).step()
    assert opt.stats().rounds == steps
    torch.testing.assert_close(p.detach(), before - steps * MEAN)
    same_everywhere(p.tolist())


@pytest.fixture(params=["parent used before", "on one rank only", "on none"])
def parent(request):
    """Torch wraps the step() of each class when its first instance is made."""

    class Plain(optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    if request.param == "parent used before" or (request.param != "on none" and RANK == 0):
        Plain([nn.Parameter(torch.zeros(1))], lr=1.0)
    return Plain


def test_a_step_that_calls_its_parents_step_is_one_round(parent):
    class Child(parent):
        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.clamp_(-1000, 1000)
            return loss

    for make in (parent, Child):
        p = vector()
        opt = hvd.DistributedOptimizer(make([p], lr=1.0))
        check_each_step_is_one_round(opt, p)
        opt.close()


def test_clipping_and_a_scaler_go_with_a_step_that_calls_its_parents(parent):
    class Child(parent):
        def step(self, closure=None):
            return super().step(closure)

    p = vector()
    opt = hvd.DistributedOptimizer(Child([p], lr=1.0))
    (p * float(RANK + 1)).sum().backward()
    opt.synchronize()
    nn.utils.clip_grad_value_([p], 0.25)
    with opt.skip_synchronize():
        opt.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.25))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for _ in range(2):
        opt.zero_grad()
        scaler.scale((p * float(RANK)).sum()).backward()
        scaler.step(opt)
        scaler.update()
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.25 - 2 * MEAN))
    assert opt.stats().rounds == 3
    opt.close()


class Timms(optim.Optimizer):
    """As timm's Lookahead: no super().__init__(), empty dictionaries of hooks."""

    def __init__(self, base):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        self._base_optimizer = base
        self.param_groups, self.defaults = base.param_groups, base.defaults
        self.state = defaultdict(dict)

    def step(self, closure=None):
        return self._base_optimizer.step(closure)


class Bare(optim.Optimizer):
    """Nothing of torch's constructor at all."""

    def __init__(self, base):
        self.inner = base
        self.param_groups, self.state = base.param_groups, base.state
        self.defaults = base.defaults

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


class Constructed(optim.Optimizer):
    """Torch's constructor, with the same groups."""

    def __init__(self, base):
        super().__init__(base.param_groups, base.defaults)
        self.base = base

    def step(self, closure=None):
        return self.base.step(closure)


class Several(optim.Optimizer):
    """Steps all optimizers of a list."""

    def __init__(self, base):
        super().__init__(base.param_groups, base.defaults)
        self.optimizers = [base]

    def step(self, closure=None):
        for one in self.optimizers:
            one.step()


class Asks(optim.Optimizer):
    """What it does not have it asks the optimizer inside for, step() too."""

    def __init__(self, base):
        self.__dict__["base"] = base

    def __getattribute__(self, name):
        own = ("base", "__dict__", "__class__")
        if name in own or name in object.__getattribute__(self, "__dict__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "base"), name)


class SetOnInstance(optim.SGD):
    """Its step is an attribute that the constructor has set."""

    def __init__(self, base):
        super().__init__(base.param_groups, lr=1.0)
        self.step = lambda closure=None: optim.SGD.step(self, closure)


WRAPPERS = [Timms, Bare, Constructed, Several, Asks, SetOnInstance]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("order", ["wrapper inside", "wrapper outside", "twice"])
def test_each_step_of_a_wrapper_is_one_round(wrap, order):
    if order != "wrapper inside" and wrap is SetOnInstance:
        return  # it does not step the optimizer that it was made of
    p = vector()
    base = optim.SGD([p], lr=1.0)
    if order == "wrapper outside":
        opt = hvd.DistributedOptimizer(base)
        check_each_step_is_one_round(opt, p, through=wrap(opt))
    else:
        inner = hvd.DistributedOptimizer(base) if order == "twice" else base
        opt = hvd.DistributedOptimizer(wrap(inner))
        check_each_step_is_one_round(opt, p)
    opt.close()


def test_a_wrapper_of_a_wrapper_is_one_round():
    p = vector()
    opt = hvd.DistributedOptimizer(Timms(Bare(optim.SGD([p], lr=1.0))))
    check_each_step_is_one_round(opt, p)
    opt.close()


class Forwards(optim.Optimizer):
    """What is set on it is set on the optimizer inside."""

    def __init__(self, base):
        self.__dict__["base"] = base

    def __getattr__(self, name):
        return getattr(self.__dict__["base"], name)

    def __setattr__(self, name, value):
        setattr(self.__dict__["base"], name, value)

    def step(self, closure=None):
        return self.base.step(closure)


class Decides(optim.SGD):
    """Its step is a property, so that no attribute can take its place."""

    @property
    def step(self):
        return lambda closure=None: optim.SGD.step(self, closure)

    @step.setter
    def step(self, value):
        pass


class NoOptimizer:
    """Has all that an optimizer has, and is none."""

    def __init__(self, base):
        self.base = base

    def __getattr__(self, name):
        return getattr(self.base, name)


@pytest.mark.parametrize("wrap", [Forwards, NoOptimizer])
def test_a_wrapper_whose_steps_cannot_be_made_rounds_is_refused_with_the_way_out(wrap):
    p = vector()
    base = optim.SGD([p], lr=1.0)
    with pytest.raises(TypeError, match=rf"{wrap.__name__}\(hvd.DistributedOptimizer\(inner"):
        hvd.DistributedOptimizer(wrap(base))
    opt = hvd.DistributedOptimizer(base)  # as the message says
    check_each_step_is_one_round(opt, p, through=wrap(opt))
    opt.close()


def test_an_optimizer_that_decides_what_its_step_is_is_refused():
    opt = Decides.__new__(Decides)
    opt.param_groups = [{"params": [vector()]}]
    with pytest.raises(TypeError, match="decides by itself what its attribute `step` is"):
        hvd.DistributedOptimizer(opt)


def test_a_step_that_goes_past_the_optimizer_raises_instead_of_exchanging_nothing():
    p = vector()
    base = optim.SGD([p], lr=1.0)
    kept = base.step
    opt = hvd.DistributedOptimizer(Timms(base))
    (p * float(RANK)).sum().backward()
    for past in (kept, base.step, lambda: optim.SGD.step(base)):
        with pytest.raises(RuntimeError, match="past the DistributedOptimizer"):
            past()
    assert not p.any()
    opt.step()
    opt.close()
    base.step()  # a local one now


def test_a_step_set_later_that_calls_the_one_before_is_one_round():
    p = vector()
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0))
    before, calls = opt.step, []

    def step(*args, **kwargs):
        calls.append(args)
        return before(*args, **kwargs)

    opt.step = step
    check_each_step_is_one_round(opt, p)
    assert len(calls) == STEPS
    opt.close()


def test_a_copy_is_local_and_says_so():
    opt = hvd.DistributedOptimizer(optim.SGD([vector()], lr=1.0))
    with pytest.warns(UserWarning, match="whose steps exchange nothing"):
        other = copy.deepcopy(opt)
    if RANK == 0:
        other.step()
    opt.close()


def test_a_subclass_steps_often_inside_and_is_one_round():
    class Twice(optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            return super().step(closure)

    model = small_model()
    opt = distribute(model, Twice, lr=0.05)
    for step in range(STEPS):
        opt.zero_grad()
        backward(model, batch(step))
        opt.step()
    assert opt.stats().rounds == STEPS
    assert_replicas(model, opt)
    opt.close()


def test_a_backward_within_step_is_refused_as_no_other_rank_would_see_its_gradient():
    class Probing(optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad = None
                (p * float(RANK)).sum().backward()
            return super().step(closure)

    p = vector()
    opt = hvd.DistributedOptimizer(Probing([p], lr=1.0), backward_passes_per_step=5)
    with pytest.raises(RuntimeError, match=r"backward\(\) within optimizer.step\(\)"):
        opt.step()
    assert not p.any()
    opt.close()


@pytest.mark.skipif(SIZE > 2, reason="compiling takes seconds: in worlds of 1 and 2 ranks")
def test_a_training_function_may_be_compiled_with_its_step():
    p = vector()
    opt = hvd.DistributedOptimizer(optim.SGD([p], lr=1.0))

    @torch.compile(backend="eager")
    def train():
        opt.zero_grad()
        (p * float(RANK)).sum().backward()
        opt.step()

    for _ in range(STEPS):
        train()
    torch.testing.assert_close(p.detach(), torch.full((3,), -STEPS * MEAN))
    opt.close()
