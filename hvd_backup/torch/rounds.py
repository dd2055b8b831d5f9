"""The rounds of one DistributedOptimizer: gradients in at every step, the agreed mean out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.amp.grad_scaler import GradScaler

from hvd_backup.collectives.group import Group
from hvd_backup.rounds import arguments
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.rounds.reports import Round, Stats
from hvd_backup.torch import owners
from hvd_backup.torch.attempt import Attempt
from hvd_backup.torch.cycle import Cycle, State
from hvd_backup.torch.device import check_devices
from hvd_backup.torch.encoding import Encoding
from hvd_backup.torch.joined import Replicas
from hvd_backup.torch.passes import Passes, Watched
from hvd_backup.torch.scaling import all_finite, ignore_the_scalers_warning
from hvd_backup.torch.staging import Staging, wished
from hvd_backup.torch.stepping import Stepping, inside
from hvd_backup.world import runtime

log = logging.getLogger("hvd_backup")


class Rounds:
    """What DistributedOptimizer adds to an optimizer."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: dict[int, str],
        encoding: Encoding,
        options: dict[str, Any],
        group: Group,
        *,
        backup_workers: int,
        add: bool,
        passes: int,
        on_nonfinite: str,
        view: bool,
    ) -> None:
        self._optimizer: Any = optimizer
        self._names, self._encoding, self._options = names, encoding, options
        self._group = group
        self._add, self._on_nonfinite, self._view = add, on_nonfinite, view
        self.backup_workers = backup_workers
        params = self._exchanged()
        check_devices(params, self._name)
        encoding.plan(params, [self._name(p) for p in params])  # raises what is wrong with them
        self._check_every_rank_is_needed(params)
        for former in owners.owners_of(params):
            former.hand_over(optimizer)
        self._cycle = Cycle()
        self._exchange: Exchange | None = None
        self._staging: Staging
        self._attempt: Attempt | None = None
        self._passes = Passes(passes)
        self._counted = True  # this rank's last gradient was in its round
        self._step_makes_round = True  # not in skip_synchronize()
        self._warned_of_abstaining: set[str] = set()
        self._plain_zero_grad = optimizer.zero_grad
        self._handles: list[Any] = [Stepping(optimizer, self)]
        if hasattr(optimizer, "_optimizer_load_state_dict_post_hooks"):  # else it made no hooks
            self._handles.append(optimizer.register_load_state_dict_post_hook(self._start_anew))
        ignore_the_scalers_warning()
        self._take(params)

    # What the user sees

    def attempt(self) -> Attempt:
        """Context for the computation of one gradient; see ``Attempt``."""
        self._cycle.begin_attempt()
        self._attempt = Attempt(self._sealed_without_me, self._finish_attempt)
        return self._attempt

    def synchronize(self) -> None:
        """Go through the round now: ``p.grad`` is the agreed mean after it, on every rank alike.

        Make the step ``with optimizer.skip_synchronize():`` then, else it goes through another one.
        """
        self._make_round("synchronize()")

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """A context in which ``step()`` applies what ``synchronize()`` has left in ``p.grad``."""
        self._step_makes_round = False
        try:
            yield
        finally:
            self._step_makes_round = True

    def set_backward_passes_per_step(self, passes: int) -> None:
        """From now on `passes` backward passes add to a gradient before ``step()``."""
        arguments.check_passes(passes)
        self._passes.clear()
        self._passes.most = passes

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's own, which must not come between ``backward()`` and ``step()``."""
        if self._passes.any():
            raise AssertionError(
                "optimizer.zero_grad() was called after loss.backward() but before "
                "optimizer.step() or optimizer.synchronize(). This is prohibited as it can cause a "
                "race condition."
            )
        self._plain_zero_grad(*args, **kwargs)

    def stats(self) -> Stats:
        """This rank's rounds so far."""
        return self._exchange.stats if self._exchange is not None else Stats()

    def close(self) -> None:
        """Take away all hooks; the optimizer is a local one again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if vars(self._optimizer).get("zero_grad") == self.zero_grad:
            del self._optimizer.zero_grad
        self._cycle.close()
        self._leave()

    def hand_over(self, optimizer: torch.optim.Optimizer | None) -> None:
        """The DistributedOptimizer of `optimizer`, or a DDP hook, takes over; this one is refused.

        But one that the new one makes its steps with is a local optimizer from now on.
        """
        if optimizer is not None and inside(optimizer, self._optimizer):
            self.close()
            return
        self._cycle.retire(
            "a DistributedOptimizer made later has taken over parameters of this one; step that "
            "one. If both are to train in turn, give them no parameters in common, or make them "
            "one optimizer with parameter groups. (close() makes this one a local optimizer)"
        )
        for handle in self._handles:
            if isinstance(handle, Stepping):
                handle.remove_guards()
            else:
                handle.remove()
        self._leave()

    def _leave(self) -> None:
        for group in self._optimizer.param_groups:
            for param in group["params"]:  # also those that are frozen by now
                owners.give_back(param, self)
        owners.forget(self)
        if self._exchange is not None:
            self._staging.own_gradients()
            self._exchange.close()

    # A step

    def step(
        self,
        inner: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        grad_scaler: GradScaler | None,
    ) -> Any:
        """One round, then the optimizer's own step, `inner`."""
        if self._cycle.is_in(State.CLOSED, State.STEPPING):  # the latter: by the optimizer's step
            return inner(*args, **kwargs)
        self._check_step(args, kwargs, grad_scaler)
        if self._step_makes_round:
            if self._cycle.is_in(State.AGREED):
                _warn_of_a_second_round()
            self._make_round("step()")
        elif not self._cycle.is_in(State.AGREED):
            raise RuntimeError(
                "step() in skip_synchronize() without synchronize() before it would apply this "
                "rank's own gradient and part it from the others; call optimizer.synchronize()"
            )
        try:
            if grad_scaler is not None:
                weight = self._optimizer.last_round.weight
                if not all_finite(self._optimizer, grad_scaler, weight):
                    return None
            self._cycle.begin_step()
            return inner(*args, **kwargs)
        finally:
            self._cycle.end_step()

    def check_within_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise RuntimeError for a step that would apply this rank's own gradients."""
        if not self._cycle.is_in(State.STEPPING):
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() was called past the DistributedOptimizer, so "
                "that nothing was exchanged; call step() of what DistributedOptimizer returned, "
                "looked up after that (optimizer.step, not a method kept from before)"
            )

    def _check_step(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], grad_scaler: GradScaler | None
    ) -> None:
        self._cycle.check_not_retired()
        if (args and args[0] is not None) or kwargs.get("closure") is not None:
            raise ValueError(
                "step(closure) cannot be distributed: the closure would compute gradients after "
                "the exchange; call backward() first, then step()"
            )
        self._cycle.check_not_attempting("step()")
        hidden = grad_scaler is None and getattr(self._optimizer, "found_inf", None) is not None
        if self._step_makes_round and hidden:
            raise RuntimeError(
                "something between GradScaler.step() and this optimizer hides that it judges the "
                "agreed gradient itself; call optimizer.synchronize(), scaler.unscale_(optimizer), "
                "then scaler.step(optimizer) with optimizer.skip_synchronize()"
            )

    def _start_anew(self, _: torch.optim.Optimizer) -> None:
        self._passes.clear()
        self._cycle.start_anew()
        self._step_makes_round = True

    # A round

    def _make_round(self, call: str) -> None:
        contributes = self._cycle.begin_round(call)
        try:
            exchange = self._prepared()
            exchange.check_open()
            if contributes:
                round_ = self._contribute(exchange)
            else:
                self._counted = False
                self._staging.settle()
                exchange.skip()
                round_ = exchange.wait()
            self._optimizer.last_round = round_
            if round_.weight == 0:
                self._warn_once(
                    "every contributor abstained; nobody's parameters change", round_.number
                )
            self._staging.load()
        finally:  # also after an error: zero_grad() would hide it behind one of its own
            self._passes.clear()
        self._cycle.end_round()

    def _contribute(self, exchange: Exchange) -> Round:
        self._staging.stage()
        weight = self._weight()
        round_ = exchange.arrive_and_wait(weight)
        self._counted = weight > 0
        return round_

    def _weight(self) -> float:
        """How much the gradient that has been staged counts."""
        weight = arguments.check_weight(self._optimizer.weight, "optimizer.weight")
        if self._on_nonfinite == "contribute" or self._staging.is_finite():
            return weight
        number = cast("Exchange", self._exchange).number
        why = self._staging.first_not_finite()
        if self._on_nonfinite == "raise":
            raise FloatingPointError(
                f"round {number}, rank {runtime.rank()}: {why}; nothing was sent: mend the "
                "gradient and step() again, or use on_nonfinite='abstain'"
            )
        self._warn_once(f"{why}; this rank abstains (logged once, counted in stats())", number)
        return 0.0

    def _warn_once(self, words: str, number: int) -> None:
        kind = words.rpartition("; ")[2]
        if kind not in self._warned_of_abstaining:
            self._warned_of_abstaining.add(kind)
            log.warning("round %d, rank %d: %s", number, runtime.rank(), words)

    def before_pass(self, param: torch.Tensor) -> None:
        """backward() is about to add to this parameter's gradient."""
        if self._cycle.is_in(State.STEPPING):
            raise RuntimeError(
                "backward() within optimizer.step(): the round was made at the start of step(), so "
                "that this rank alone would apply this gradient; call backward() before step()"
            )
        self._passes.before(param)

    def _given(self, param: torch.Tensor) -> torch.Tensor | None:
        return self._passes.given(param, contributes=self._counted)

    def after_pass(self, param: torch.Tensor) -> None:
        """It has."""
        if self._attempt is not None:
            self._attempt.check()
        self._passes.after(param, self._name)
        if self._exchange is not None:
            self._staging.early(param)

    # Attempts

    def _sealed_without_me(self) -> bool:
        return self._exchange is not None and self._exchange.sealed_without_me()

    def _finish_attempt(self, overtaken: bool) -> None:
        self._attempt = None
        self._cycle.end_attempt(overtaken=overtaken)

    # Setting up

    def _prepared(self) -> Exchange:
        params = self._exchanged()
        if self._exchange is None or not self._staging.fits(params):
            self._set_up(params)
        assert self._exchange is not None
        return self._exchange

    def _set_up(self, params: list[torch.Tensor]) -> None:
        """Slots and window for these parameters. All ranks come here in the same step."""
        strange = [p for p in params if owners.owner(p) is not self]
        for former in owners.owners_of(strange):
            former.hand_over(self._optimizer)
        self._take(strange)
        names = [self._name(p) for p in params]
        layout, contexts = self._encoding.plan(params, names)
        kind = type(self._optimizer).__name__
        what = ", ".join(f"{name}: {d}{list(s)}" for name, d, s, _ in layout.signature)
        alike = self._encoding.words()
        if self._on_nonfinite != "contribute":
            alike += f", on_nonfinite={self._on_nonfinite!r}"
        world = self._group.world()
        wish = wished(params, world.config)
        if wish is not None:
            alike += ", device_path='mapped'"
        exchange = Exchange(
            layout.flats,
            name=f"DistributedOptimizer({kind}, {what}{alike})",
            signature=(layout.signature, alike),
            add=self._add,
            world=world,
            wish=wish,
            **self._options,
        )
        if self._exchange is not None:
            exchange.stats = self._exchange.stats
            self._staging.own_gradients()
            self._exchange.close()
        with runtime.current().failing_together():
            self._staging = Staging(
                params,
                names,
                layout,
                contexts,
                exchange,
                self._encoding,
                self._given,
                view=self._view,
            )
        self._exchange = exchange
        exchange.allow_absence(Replicas(self._optimizer, params, view=self._view))

    def _check_every_rank_is_needed(self, params: list[torch.Tensor]) -> None:
        for param in params:
            if self.backup_workers > 0 and (why := owners.needs_every_rank(param)):
                raise ValueError(
                    f"backup_workers={self.backup_workers}, but parameter {self._name(param)!r} "
                    f"is of a {why}"
                )

    def _take(self, params: list[torch.Tensor]) -> None:
        watched = Watched(self)
        for param in params:
            owners.take(param, self)
            if param.requires_grad:  # else nothing but the user can give it a gradient
                self._handles += watched.watch(param)

    def _exchanged(self) -> list[torch.Tensor]:
        """All that the optimizer may step: what needs a gradient, has one, or ever did.

        A parameter that is frozen after backward() is stepped all the same.
        """
        all_params = (p for group in self._optimizer.param_groups for p in group["params"])
        unique = {id(p): p for p in all_params}.values()  # of one that is there twice torch warns
        return [
            p for p in unique if p.requires_grad or p.grad is not None or owners.owner(p) is self
        ]

    def _name(self, param: torch.Tensor) -> str:
        return self._names.get(id(param)) or f"parameter {tuple(param.shape)}"


def _warn_of_a_second_round() -> None:
    warnings.warn(
        "optimizer.step() called without optimizer.skip_synchronize() context after "
        "optimizer.synchronize(). This can cause training slowdown. You may want to "
        "consider using optimizer.skip_synchronize() context if you use "
        "optimizer.synchronize() in your code.",
        stacklevel=4,
    )
