"""DistributedOptimizer for Keras 3: any optimizer, applying in rounds with the other ranks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from hvd_backup.collectives.group import Group
from hvd_backup.tensorflow import arguments
from hvd_backup.tensorflow.compression import Compression
from hvd_backup.tensorflow.gradient_reducer import Encoding
from hvd_backup.tensorflow.keras.attempt import Attempt
from hvd_backup.tensorflow.keras.steps import Steps
from hvd_backup.tensorflow.rounds import Options
from hvd_backup.world.wire import Average

if TYPE_CHECKING:
    from hvd_backup.rounds.reports import Round, Stats

do_not_convert = tf.autograph.experimental.do_not_convert  # there is nothing to convert
LossScaleOptimizer = keras.optimizers.LossScaleOptimizer


def DistributedOptimizer(  # noqa: N802 (Horovod's name)
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: str = Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = None,
    scale_local_gradients: bool = True,
    *,
    backup_workers: int | None = None,
    late: str = "drop",
    grace: float | None = None,
    window: int | None = None,
    timeout: float | None = None,
    sparse_mean: str = "contributors",
) -> Any:
    """Make every ``apply()`` one round: it applies the mean over the round's contributors.

    Returns `optimizer` itself, a Keras 3 optimizer that keeps its class name, state and config (a
    saved model does not know of us), with these besides: ``attempt()``, ``on_time()``, ``skip()``,
    ``last_round``, ``weight``, ``stats()``, ``close()``, ``register_local_var()``; see
    ``DistributedOptimizerType``. Under the global policy mixed_float16 it returns `optimizer` in a
    LossScaleOptimizer, which then judges finiteness on what was exchanged: all ranks alike.

    `compression`, `gradient_predivide_factor`, `op` (Average or Sum over the contributors),
    `backward_passes_per_step` and `average_aggregated_gradients` are Horovod's. All gradients
    travel together, so that `groups` and `num_groups` change nothing; `device_dense` and
    `device_sparse` neither: the exchange runs on the host. IndexedSlices travel as they are, or as
    dense tensors with `sparse_as_dense`. `sparse_mean` is what their mean is over: "contributors",
    or for each row those of them that touched it, "rows".

    `backup_workers` is b of R ranks, R - b gradients close a round (default: HVD_BACKUP_WORKERS,
    else 0). `late` is what becomes of a gradient that misses its round: "drop", or "carry" it into
    the next. `grace` and `timeout` are in seconds, `window` in rounds; see ``hvd_backup.torch``.

    All ranks construct it with the same arguments; the first ``apply()`` (in a graph, its tracing)
    sets it up. Every rank makes the same number of steps.

    With a `process_set` the rounds are of its ranks; outside of it the optimizer applies this
    rank's own gradients.

    Raises ValueError or TypeError for arguments that cannot be. ``apply()`` raises Mismatch when
    ranks disagree, RoundTimeout, which names the missing ranks, and PeerFailed; in a graph as the
    text of a ``tf.errors.OpError``, see ``native_errors``.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"DistributedOptimizer takes a Keras optimizer, not {optimizer!r}")
    if steps_of(optimizer) is not None:
        raise ValueError(f"{optimizer.name} already is a DistributedOptimizer; close() it first")
    arguments.check(num_groups, groups, compression, backward_passes_per_step)
    group = Group(process_set)
    options = Options(backup_workers, late, grace, window, timeout, op, sparse_mean)
    options.check(group, gradient_predivide_factor)
    if backward_passes_per_step > 1 and optimizer.gradient_accumulation_steps:
        raise ValueError(
            f"backward_passes_per_step={backward_passes_per_step} and the optimizer's own "
            f"gradient_accumulation_steps={optimizer.gradient_accumulation_steps}: use one of them"
        )
    if _scales_loss(optimizer):
        optimizer = LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
    steps = Steps(
        name or f"Distributed{type(optimizer).__name__}",
        options,
        Encoding(compression or Compression.none, sparse_as_dense, scale_local_gradients),
        group,
        passes=backward_passes_per_step,
        average_passes=average_aggregated_gradients,
    )
    # In place, so that schedules, state and references to the optimizer stay what they are.
    object.__setattr__(optimizer, "_hvd_steps", steps)
    base: Any = type(optimizer)
    _set_class(optimizer, _distributed(base))
    return optimizer


def steps_of(optimizer: Any) -> Steps | None:
    """What DistributedOptimizer added to it; None if it did not, or was closed."""
    steps: Steps | None = getattr(optimizer, "__dict__", {}).get("_hvd_steps")
    return steps


def _scales_loss(optimizer: Any) -> bool:
    """Whether ``compile`` would put it into a LossScaleOptimizer, which must come first."""
    policy = keras.config.dtype_policy()
    return policy.name == "mixed_float16" and not isinstance(optimizer, LossScaleOptimizer)


def _set_class(optimizer: Any, kind: type) -> None:
    object.__dict__["__class__"].__set__(optimizer, kind)  # past the property of the same name


class _Distributed:
    """What the subclass of an optimizer's class has.

    An object can become of another class only if that has one base: therefore these are copied, and
    find the optimizer's own methods by hand.
    """

    _hvd_steps: Steps
    _hvd_base: Any

    @do_not_convert
    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        optimizer: Any = self
        own = _own(self)
        grads = list(grads)
        if not optimizer.built:
            if trainable_variables is None or not grads:
                return own.apply(grads)  # raises, or does nothing
            with keras.name_scope(optimizer.name, caller=optimizer):
                optimizer.build(list(trainable_variables))
            optimizer.built = True
        if trainable_variables is None:
            trainable_variables = optimizer._trainable_variables  # noqa: SLF001
        variables = list(trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(f"{len(grads)} gradients for {len(variables)} variables")
        return self._hvd_steps.apply(self, grads, variables, own.apply)

    def attempt(self) -> Attempt:
        return self._hvd_steps.attempt(self)

    @do_not_convert
    def on_time(self) -> Any:
        return self._hvd_steps.on_time()

    @do_not_convert
    def skip(self) -> Any:
        return self._hvd_steps.skip(self, _own(self).apply)

    def stats(self) -> Stats:
        return self._hvd_steps.stats()

    def close(self) -> None:
        self._hvd_steps.close()
        del self.__dict__["_hvd_steps"]
        _set_class(self, self._hvd_base)

    def register_local_var(self, var: Any) -> None:
        self._hvd_steps.register_local_var(var)

    @property
    def last_round(self) -> Round | None:
        return self._hvd_steps.last_round

    @property
    def weight(self) -> float:
        return self._hvd_steps.weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._hvd_steps.weight = value

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Any:
        """A local optimizer, as of the class that this was."""
        return cls._hvd_base.from_config(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # LossScaleOptimizer's constructor does this to what it is given.
        if name == "loss_scale_factor" and value is None:
            raise ValueError(
                "a LossScaleOptimizer around a DistributedOptimizer would judge each rank's "
                "gradient by itself; use DistributedOptimizer(LossScaleOptimizer(optimizer)), "
                "or set the policy mixed_float16 before you call DistributedOptimizer"
            )
        _own(self).__setattr__(name, value)


_OF_A_CLASS = ("__dict__", "__weakref__", "__annotations__", "__module__", "__doc__")


def _own(optimizer: Any) -> Any:
    """The methods that the optimizer had."""
    return super(type(optimizer), optimizer)


@functools.cache
def _distributed(base: Any) -> Any:
    """The subclass of `base` that exchanges first."""
    return type(
        base.__name__,
        (base,),
        {
            **{k: v for k, v in vars(_Distributed).items() if k not in _OF_A_CLASS},
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_hvd_base": base,
            # What serializes an optimizer, or asks for its class, sees the class that it was.
            "__class__": property(lambda _: base),
        },
    )


if TYPE_CHECKING:

    class DistributedOptimizerType:
        """What DistributedOptimizer adds to an optimizer, as type checkers see it."""

        last_round: Round | None
        """The ``Round`` of the last step; None before the first."""
        weight: float
        """How much this rank's gradient counts (1.0; set it to the batch size, say)."""

        def attempt(self) -> Attempt:
            """Context for one step, left early once its round is closed; see ``Attempt``."""
            raise NotImplementedError

        def on_time(self) -> Any:
            """Whether a gradient computed now can still count: a bool, in a graph a tensor."""

        def skip(self) -> Any:
            """Make the step without a gradient of this rank's: apply what the others agreed on."""

        def stats(self) -> Stats:
            """This rank's rounds so far."""
            raise NotImplementedError

        def close(self) -> None:
            """Make it a local optimizer again."""

        def register_local_var(self, var: Any) -> None:
            """Leave this variable's gradient out of the exchange."""
