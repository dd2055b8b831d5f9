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

    A round closes when R - b of R ranks have contributed their gradients. A late rank applies the
    same mean; what becomes of its own gradient is said by `late`. All ranks construct the optimizer
    with the same arguments and make the same number of steps. The first ``apply()`` (in a graph:
    its tracing) sets the rounds up. All gradients of a step are one contribution. Where a rank has
    no gradient for a variable, it contributes zeros; a variable that no contributor has a gradient
    for stays as it is.

    Horovod's ``DistributedOptimizer``, with its positional arguments in their order, and backup
    workers as in Chen et al., "Revisiting Distributed Synchronous SGD" (2016).

    Args:
        optimizer: A Keras 3 optimizer. Its variables have any shape and a floating dtype.
        name: Names the rounds in errors.
        device_dense: Accepted for Horovod; without effect, as the exchange runs on the host.
        device_sparse: Accepted for Horovod; without effect, as the exchange runs on the host.
        compression: The dtype in which gradients travel: ``Compression.none``, ``.fp16``,
            ``.bf16``, or a class with ``compress`` and ``decompress``.
        sparse_as_dense: Exchange IndexedSlices as dense tensors.
        gradient_predivide_factor: Checked as in Horovod; without effect, as sums are made in
            float32 or wider.
        op: Average, or Sum: the weighted sum over the contributors, that is over R - b gradients.
        backward_passes_per_step: How many calls of ``apply()`` add up to one round.
        average_aggregated_gradients: Divide the sum of several passes by their number.
        num_groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        process_set: The ranks whose rounds these are, counted from 0 in them. Other ranks apply
            their own gradients. Default: all ranks.
        scale_local_gradients: Divide the gradients of local variables by the number of ranks.
        backup_workers: b, how many of the R ranks a round does not wait for. None:
            HVD_BACKUP_WORKERS, else 0.
        late: What becomes of a gradient that misses its round: "drop", or "carry" it into the next.
        grace: Seconds that a round stays open after its quorum. None: HVD_BACKUP_GRACE, else 0.
        window: How many results are kept for late ranks, 1 to 4096, and so how many rounds a rank
            can fall behind before the others wait for it. None: HVD_BACKUP_WINDOW, else by size.
        timeout: Seconds that one wait may take. None: HVD_BACKUP_TIMEOUT, else 600.
        sparse_mean: Rows of IndexedSlices are the mean over all "contributors", or over those that
            touched the row ("rows").

    Returns:
        `optimizer` itself, which keeps its class name, state and config, and has the methods and
        attributes of ``DistributedOptimizerType``: ``attempt()``, ``on_time()``, ``skip()``,
        ``last_round``, ``weight``, ``stats()``, ``close()`` and ``register_local_var()``. Under the
        global policy mixed_float16: `optimizer` in a LossScaleOptimizer, which looks for infinities
        in what was exchanged, so that all ranks skip the same steps.

    Raises:
        TypeError: `optimizer` is not a Keras optimizer, or an argument is of the wrong type.
        ValueError: An argument is out of range, or `optimizer` already is distributed.
        NotImplementedError: `op` is Adasum.
        NotInitialized: ``init()`` was not called.

        ``apply()`` raises Mismatch, on every rank, when the ranks' arguments or variables differ;
        RoundTimeout, which names the missing ranks; and PeerFailed. In a graph these are the text
        of a ``tf.errors.OpError``; see ``native_errors``.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import hvd_backup.tensorflow.keras as hvd
        >>> hvd.init()
        >>> model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
        >>> optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
        >>> model.compile(optimizer=optimizer, loss="mse")
        >>> callbacks = [
        ...     hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        ...     hvd.callbacks.MetricAverageCallback(),
        ...     hvd.callbacks.AttemptCallback(),
        ... ]
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> history = model.fit(x, y, batch_size=4, callbacks=callbacks, verbose=0)
        >>> optimizer.last_round.number
        1
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
        """Go through a round, then apply what it gave; see ``keras.optimizers.Optimizer.apply``."""
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
        """A context for one step, left once its round is closed without this rank."""
        return self._hvd_steps.attempt(self)

    @do_not_convert
    def on_time(self) -> Any:
        """Whether a gradient that is computed now can still count; in a graph a bool tensor."""
        return self._hvd_steps.on_time()

    @do_not_convert
    def skip(self) -> Any:
        """Make the step without a gradient of this rank: apply what the others agreed on."""
        return self._hvd_steps.skip(self, _own(self).apply)

    def stats(self) -> Stats:
        """The rounds of this rank."""
        return self._hvd_steps.stats()

    def close(self) -> None:
        """End the rounds: the optimizer is a local one again."""
        self._hvd_steps.close()
        del self.__dict__["_hvd_steps"]
        _set_class(self, self._hvd_base)

    def register_local_var(self, var: Any) -> None:
        """Leave the gradient of a variable to each rank."""
        self._hvd_steps.register_local_var(var)

    @property
    def last_round(self) -> Round | None:
        """The ``Round`` of the last step; None before the first."""
        return self._hvd_steps.last_round

    @property
    def weight(self) -> float:
        """How much this rank's gradient counts (1.0): set it to the batch size, say. 0 abstains."""
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
        """How much this rank's gradient counts (1.0): set it to the batch size, say. 0 abstains."""

        def attempt(self) -> Attempt:
            """Begin one step, left once its round is closed without this rank. For eager code.

            Returns:
                A context; see ``Attempt``.

            Raises:
                NotImplementedError: `backward_passes_per_step` is above 1.
                RuntimeError: It is in a ``tf.function``.
            """
            raise NotImplementedError

        def on_time(self) -> Any:
            """Whether a gradient that is computed now can still count.

            Returns:
                A bool; in a graph a bool tensor, a scalar.

            Raises:
                NotImplementedError: `backward_passes_per_step` is above 1.
            """

        def skip(self) -> Any:
            """Make the step without a gradient of this rank: apply what the others agreed on.

            Returns:
                What ``apply()`` returns.

            Raises:
                NotImplementedError: `backward_passes_per_step` is above 1.
                Error: There was no step before.
                Mismatch: The ranks disagree; on every rank.
                RoundTimeout: A rank did not come in time; the text names it.
                PeerFailed: Another rank died, left or failed.
            """

        def stats(self) -> Stats:
            """The rounds of this rank.

            Returns:
                Its ``Stats``.
            """
            raise NotImplementedError

        def close(self) -> None:
            """End the rounds: the optimizer is a local one again."""

        def register_local_var(self, var: Any) -> None:
            """Leave the gradient of a variable to each rank.

            Args:
                var: A variable of the optimizer. All ranks register the same ones.
            """
