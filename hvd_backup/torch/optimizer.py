"""DistributedOptimizer: any torch optimizer, stepping in rounds with the other ranks."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from hvd_backup import runtime
from hvd_backup.config import RoundOptions
from hvd_backup.exchange import Exchange
from hvd_backup.reports import Round, Stats
from hvd_backup.torch.attempt import Attempt
from hvd_backup.torch.layout import GradientLayout

# Not an attribute of the parameter: torch.save(model) would pickle it. Weak on both sides: an owner
# knows its parameters.
_owners: MutableMapping[torch.Tensor, weakref.ref[_Rounds]] = WeakTensorKeyDictionary()


def DistributedOptimizer(  # noqa: N802 (Horovod's name)
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    backup_workers: int | None = None,
    *,
    late: str = "drop",
    grace: float | None = None,
    window: int | None = None,
    timeout: float | None = None,
) -> DistributedOptimizerType:
    """Make every ``optimizer.step()`` one round: it applies the mean over the round's contributors.

    Returns `optimizer` itself, with its class, state, schedulers and hooks, and these besides:

    - ``attempt()``: a context for forward and backward that is left early once the round is sealed
      without this rank; see ``Attempt``.
    - ``last_round``: the ``Round`` of the last step, None before the first.
    - ``weight``: how much this rank's gradient counts (1.0; set it to the batch size, say).
    - ``stats()``: this rank's ``Stats``.
    - ``close()``: take the hooks away again.

    `backup_workers` is b of R ranks, R - b gradients close a round (default: HVD_BACKUP_WORKERS,
    else 0: every rank counts, as in Horovod). `late` is what becomes of a gradient that misses its
    round: "drop", or "carry" it into the next. `grace` and `timeout` are in seconds; `window` is
    how many results are kept for late ranks, and so how many rounds a rank may fall behind before
    the others wait for it. All ranks construct it with the same arguments; the first ``step()``
    sets it up. Every rank makes the same number of steps.

    Raises ValueError or TypeError for arguments that cannot be. ``step()`` raises Mismatch when
    ranks disagree, RoundTimeout, which names the missing ranks, and PeerFailed.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"DistributedOptimizer takes a torch optimizer, not {optimizer!r}")
    rounds = _Rounds(
        optimizer,
        named_parameters,
        {
            "backup_workers": backup_workers,
            "late": late,
            "grace": grace,
            "window": window,
            "timeout": timeout,
        },
    )
    # Instance attributes, not a subclass: isinstance, pickling and schedulers see what they saw.
    extended: Any = optimizer
    extended.attempt = rounds.attempt
    extended.stats = rounds.stats
    extended.close = rounds.close
    extended.last_round = None
    extended.weight = 1.0
    return cast("DistributedOptimizerType", optimizer)


if TYPE_CHECKING:

    class DistributedOptimizerType(torch.optim.Optimizer):
        """What DistributedOptimizer returns, as type checkers see it."""

        last_round: Round | None
        weight: float

        def attempt(self) -> Attempt: ...
        def stats(self) -> Stats: ...
        def close(self) -> None: ...


class _Rounds:
    """What DistributedOptimizer adds to an optimizer."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
        options: dict[str, Any],
    ) -> None:
        self._optimizer = optimizer
        self._options = options
        self._names = _names(optimizer, named_parameters)
        self._params = self._trainable()
        world = runtime.current()
        RoundOptions.resolve(world.config, world=world.size, nbytes=0, **options)
        GradientLayout(self._params, [self._name(p) for p in self._params])
        for param in self._params:
            if _owner(param) is not None:
                raise ValueError(
                    f"parameter {self._name(param)!r} already has a DistributedOptimizer; "
                    "call close() on it first"
                )
        self._exchange: Exchange | None = None
        self._attempt: Attempt | None = None
        self._overtaken = False
        self._handles: list[Any] = [optimizer.register_step_pre_hook(self._step)]
        self._take(self._params)

    # What the user sees

    def attempt(self) -> Attempt:
        """Context for the computation of one gradient; see ``Attempt``."""
        if self._attempt is not None:
            raise RuntimeError("attempt() within attempt(); one block per step")
        self._attempt = Attempt(self._sealed_without_me, self._finish_attempt)
        return self._attempt

    def stats(self) -> Stats:
        """This rank's rounds so far."""
        return self._exchange.stats if self._exchange is not None else Stats()

    def close(self) -> None:
        """Take away all hooks; the optimizer is a local one again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for group in self._optimizer.param_groups:
            for param in group["params"]:  # also those that are frozen by now
                if _owner(param) is self:
                    del _owners[param]
        if self._exchange is not None:
            self._own_gradients()
            self._exchange.close()

    # A round

    def _step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None:
            raise ValueError(
                "step(closure) cannot be distributed: the closure would compute gradients after "
                "the exchange; call backward() first, then step()"
            )
        if self._attempt is not None:
            raise RuntimeError("step() belongs after the attempt() block, not into it")
        exchange = self._prepared()
        if self._overtaken:
            self._overtaken = False
            exchange.skip()
            optimizer.last_round = exchange.wait()
        else:
            self._stage_all()
            optimizer.last_round = exchange.arrive_and_wait(optimizer.weight)
        self._load(exchange)

    def _stage(self, param: torch.Tensor) -> None:
        """Move a gradient to its place in the slot, while it is in the cache."""
        if self._attempt is not None:
            self._attempt.check()
        if self._exchange is None or param.grad is None:
            return
        i = self._index.get(id(param))
        if i is None or param.grad.dtype != self._slots[i].dtype:
            return  # new to this step, or converted since the last; the step will set up anew
        if param.grad.requires_grad:
            return  # backward(create_graph=True): the user's to differentiate, until step()
        if not self._is_in_slot(i, param.grad):
            self._move(i, param)

    def _is_in_slot(self, i: int, grad: torch.Tensor) -> bool:
        # By address: `p.grad.data = …` gives the tensor we made other memory.
        if grad.layout != torch.strided or grad.data_ptr() != self._slots[i].data_ptr():
            return False
        return grad.stride() == self._slots[i].stride()

    def _move(self, i: int, param: torch.Tensor) -> None:
        assert param.grad is not None
        if param.grad.layout != torch.strided:
            raise TypeError(
                f"parameter {self._name(param)!r} has a {param.grad.layout} gradient, which cannot "
                "be exchanged; build its module with sparse=False"
            )
        source = param.grad.detach() if param.grad.requires_grad else param.grad
        self._slots[i].copy_(source)
        param.grad = self._slots[i].detach()  # an alias, for the user to do with as he likes

    def _stage_all(self) -> None:
        for i, param in enumerate(self._params):
            self._present[i] = param.grad is not None
            if param.grad is None:
                self._slots[i].zero_()
            elif not self._is_in_slot(i, param.grad):
                self._move(i, param)

    def _load(self, exchange: Exchange) -> None:
        """Let every parameter's grad be the result, in place: no copy."""
        flats = exchange.results
        if exchange.buffer not in self._views:
            views = self._layout.gradients(flats), self._layout.presence(flats)
            self._views[exchange.buffer] = views
        gradients, present = self._views[exchange.buffer]
        for i, (param, gradient) in enumerate(zip(self._params, gradients, strict=True)):
            param.grad = gradient.detach() if present[i] > 0 else None

    # Attempts

    def _sealed_without_me(self) -> bool:
        return self._exchange is not None and self._exchange.sealed_without_me()

    def _finish_attempt(self, overtaken: bool) -> None:
        self._attempt = None
        self._overtaken = overtaken

    # Setting up

    def _prepared(self) -> Exchange:
        params = self._trainable()
        same = len(params) == len(self._params) and all(map(_is, params, self._params))
        if self._exchange is None or not same or not all(map(_same_dtype, params, self._slots)):
            self._set_up(params)
        assert self._exchange is not None
        return self._exchange

    def _set_up(self, params: list[torch.Tensor]) -> None:
        """Slots and window for these parameters. All ranks come here in the same step."""
        self._take([p for p in params if _owner(p) is not self])
        names = [self._name(p) for p in params]
        layout = GradientLayout(params, names)
        kind = type(self._optimizer).__name__
        what = ", ".join(f"{name}: {d}{list(s)}" for name, d, s, _ in layout.signature)
        exchange = Exchange(
            layout.flats,
            name=f"DistributedOptimizer({kind}, {what})",
            signature=layout.signature,
            **self._options,
        )
        if self._exchange is not None:
            exchange.stats = self._exchange.stats
            self._own_gradients()
            self._exchange.close()
        self._params = params
        self._index = {id(param): i for i, param in enumerate(params)}
        self._layout = layout
        self._exchange = exchange
        self._slots = layout.gradients(exchange.slots)
        self._present = layout.presence(exchange.slots)
        self._views: dict[int, tuple[list[torch.Tensor], Any]] = {}

    def _own_gradients(self) -> None:
        """Gradients outlive the shared memory they lie in."""
        for param in self._params:
            if param.grad is not None:
                param.grad = param.grad.clone()

    def _take(self, params: list[torch.Tensor]) -> None:
        this = weakref.ref(self)  # torch's hooks are no part of the cycles that Python collects

        def stage(param: torch.Tensor) -> None:
            if (owner := this()) is not None:
                owner._stage(param)  # noqa: SLF001

        for param in params:
            _owners[param] = this
            register: Any = param.register_post_accumulate_grad_hook
            self._handles.append(register(stage))

    def _trainable(self) -> list[torch.Tensor]:
        groups = self._optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def _name(self, param: torch.Tensor) -> str:
        return self._names.get(id(param)) or f"parameter {tuple(param.shape)}"


def _owner(param: torch.Tensor) -> _Rounds | None:
    reference = _owners.get(param)
    return None if reference is None else reference()


def _is(a: object, b: object) -> bool:
    return a is b


def _same_dtype(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype


def _names(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]] | None
) -> dict[int, str]:
    """Id of a parameter -> its name. Raises ValueError for names that leave a doubt."""
    if named_parameters is None:
        return {
            id(param): f"group {g}, parameter {i}"
            for g, group in enumerate(optimizer.param_groups)
            for i, param in enumerate(group["params"])
        }
    pairs = list(named_parameters)
    if any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
        raise ValueError("named_parameters takes (name, parameter): model.named_parameters()")
    names = [name for name, _ in pairs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"named_parameters has these names more than once: {', '.join(doubled)}")
    known = {id(param): name for name, param in pairs}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if missing := [i for i, p in enumerate(params) if id(p) not in known]:
        raise ValueError(
            f"named_parameters lacks {len(missing)} of the optimizer's {len(params)} parameters "
            f"(number {missing[0]} is the first); pass model.named_parameters()"
        )
    return known
