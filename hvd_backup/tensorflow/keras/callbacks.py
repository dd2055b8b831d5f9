"""Callbacks for ``fit``."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hvd_backup import collectives
from hvd_backup.tensorflow.functions import broadcast_variables
from hvd_backup.tensorflow.keras.averages import average, leaves, put
from hvd_backup.tensorflow.keras.fitting import leave_early, optimizers_of, prepare_model
from hvd_backup.tensorflow.keras.identity import Local, Sent, tensor_of
from hvd_backup.tensorflow.keras.optimizer import steps_of
from hvd_backup.tensorflow.keras.seen import Epoch, Pass
from hvd_backup.world import runtime

log = logging.getLogger("hvd_backup")


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):
    """Give every rank the weights and optimizer state of one rank, once, before the first batch.

    What exists only after the first batch is sent then. The optimizers are that of ``compile``, and
    those that the model or a layer of it has as attributes (a GAN's). In another ``fit`` the
    callback sends what is new: the state of another optimizer, say. Each rank keeps random seeds of
    its own. With any callback of this package ``fit`` raises this package's errors as what they
    are, and XLA is off where ``jit_compile="auto"`` switched it on.

    Horovod's ``BroadcastGlobalVariablesCallback``.

    Args:
        root_rank: The rank whose values all get.
        device: Accepted for Horovod; without effect.
        local_variables: A variable, or an iterable of them, that each rank keeps.

    Raises:
        ValueError: `local_variables` has what is not a variable.
    """

    def __init__(self, root_rank: int, device: str = "", local_variables: Any = None) -> None:
        super().__init__()
        self.root_rank = root_rank
        self.broadcast_done = False
        self._sent = Sent()
        self._local = Local()
        self._is_first_batch = True
        if local_variables is None:
            local_variables = []
        elif isinstance(local_variables, tf.Variable | keras.Variable):
            local_variables = [local_variables]
        for variable in local_variables:
            if not isinstance(variable, tf.Variable | keras.Variable):
                raise ValueError("All local variables must be of tf.Variable type.")  # noqa: TRY004
            self.register_local_var(variable)

    def register_local_var(self, var: Any) -> None:
        """Leave a variable to each rank.

        Args:
            var: A variable of TensorFlow or Keras.
        """
        self._local.add(var)

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        prepare_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        optimizer = self.model.optimizer
        if self.model.built and optimizer is not None and not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self._broadcast()
        self._is_first_batch = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._is_first_batch:
            self._is_first_batch = False
            self._broadcast()

    def _broadcast(self) -> None:
        states = [v for optimizer in optimizers_of(self.model) for v in optimizer.variables]
        variables = {id(tensor_of(v)): v for v in [*self.model.weights, *states]}
        new = [v for v in variables.values() if v not in self._sent and v not in self._local]
        if new:
            broadcast_variables(new, self.root_rank)
            self.broadcast_done = True
        for variable in new:
            self._sent.add(variable)


class MetricAverageCallback(keras.callbacks.Callback):
    """Average an epoch's metrics over all ranks, for the callbacks that come after it.

    The callback puts the same values into every rank's logs. A metric that is a mean (a loss, an
    accuracy) is weighted by the number of samples that it saw on each rank. Any other metric is
    weighted by the samples, or else the batches, of the rank's epoch. A rank that saw none does not
    count, and a rank that lacks a value gets it. Arrays are averaged element by element. What is
    not made of numbers, or has another shape elsewhere, stays as it is, with one warning.

    Every rank waits for every other, once an epoch. Horovod's ``MetricAverageCallback``, which
    weighs all ranks alike.

    Args:
        device: Accepted for Horovod; without effect.
    """

    def __init__(self, device: str = "") -> None:
        super().__init__()
        self._epoch = Epoch()
        self._first_step = 0
        self._warned = False

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        prepare_model(model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = Epoch(self._skipped())

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._first_step = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._epoch.training.add(batch - self._first_step + 1)

    def on_test_begin(self, logs: Any = None) -> None:
        self._end_training()  # Keras uses the same metrics for validation
        self._epoch.validation = Pass()

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._first_step = batch

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._epoch.validation is not None:
            self._epoch.validation.add(batch - self._first_step + 1)

    def on_test_end(self, logs: Any = None) -> None:
        if self._epoch.validation is not None:
            self._epoch.validation.complete(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._end_training()
        logs = {} if logs is None else logs
        mine = {path: self._epoch.part(path, value) for path, value in leaves(logs)}
        # Also of a rank without logs. A rank whose epoch is longer is told the name.
        name = "MetricAverageCallback, at the end of an epoch"
        averages = average(collectives.allgather_object(mine, name))
        for path, mean in averages.means.items():
            put(logs, path, mean)
        told = [".".join(path) for path, r in averages.refused.items() if r == runtime.rank()]
        if told and not self._warned:
            self._warned = True
            log.warning(
                "MetricAverageCallback leaves %s to each rank: not made of numbers, or not of one "
                "shape on all ranks",
                ", ".join(told),
            )

    def _end_training(self) -> None:
        skipped = self._skipped() - self._epoch.skipped_before
        self._epoch.training.complete(self.model, skipped)

    def _skipped(self) -> int:
        steps = steps_of(getattr(self.model, "optimizer", None))
        return 0 if steps is None else steps.stats().skipped


class LearningRateScheduleCallback(keras.callbacks.Callback):
    """Set the learning rate to `initial_lr` times `multiplier` in some epochs.

    Horovod's ``LearningRateScheduleCallback``. Momentum correction is that of Goyal et al.,
    "Accurate, Large Minibatch SGD" (2017). Keras 3 compiles momentum as a constant, so the callback
    scales the velocity instead, which is the same.

    Args:
        initial_lr: The learning rate that is multiplied.
        multiplier: A function of the epoch, or a number: its power of the epochs since
            `start_epoch`.
        start_epoch: The first epoch, counted from 0, in which the callback sets the rate.
        end_epoch: The first epoch in which it no longer does; None: to the end.
        staircase: Set the rate once an epoch. False: with each batch, and epochs are fractions.
        momentum_correction: Scale the velocity as the rate changes, where the optimizer has one.
        steps_per_epoch: Batches in an epoch, for ``staircase=False``. None: ``fit`` tells.

    Raises:
        ValueError: `initial_lr` is None. When ``fit`` begins: the model has no optimizer of
            ``compile``, or `steps_per_epoch` is needed.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if initial_lr is None:
            raise ValueError("Parameter `initial_lr` is required")
        self.initial_lr = initial_lr
        self.start_epoch, self.end_epoch = start_epoch, end_epoch
        self.staircase = staircase
        self.momentum_correction = momentum_correction
        self.steps_per_epoch = steps_per_epoch
        self._detects_steps = not steps_per_epoch
        self.current_epoch = 0
        # No function made here: the callback is to be copied and pickled.
        if not callable(multiplier):
            multiplier = functools.partial(_power, multiplier, start_epoch)
        self.multiplier: Callable[[float], float] = multiplier

    def on_train_begin(self, logs: Any = None) -> None:
        if self.model.optimizer is None:
            raise ValueError(
                f"{type(self).__name__} sets the learning rate of the optimizer that compile() was "
                "given, and this model was given none; optimizers of its own can have a schedule "
                "each (keras.optimizers.schedules)"
            )
        if not self.staircase and self._detects_steps:
            self.steps_per_epoch = (self.params or {}).get("steps")
            if not self.steps_per_epoch:
                raise ValueError(
                    "Could not autodetect the number of steps per epoch. Please specify the "
                    f"steps_per_epoch parameter to the {type(self).__name__}()."
                )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.current_epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        ended = self.end_epoch is not None and self.current_epoch >= self.end_epoch
        if self.current_epoch < self.start_epoch or ended:
            return
        if not self.staircase:
            assert self.steps_per_epoch is not None
            self._adjust(self.current_epoch + batch / self.steps_per_epoch)
        elif batch == 0:
            self._adjust(self.current_epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs["lr"] = self._rate()

    def _rate(self) -> float:
        return float(np.asarray(self.model.optimizer.learning_rate))

    def _adjust(self, epoch: float) -> None:
        old, new = self._rate(), self.initial_lr * self.multiplier(epoch)
        self.model.optimizer.learning_rate = new
        if self.momentum_correction and old > 0 and new != old:
            # Momentum is a constant of Keras 3's compiled step. To scale what it multiplies, the
            # velocity, once is the same as to scale momentum for one batch.
            for velocity in _velocities(self.model.optimizer):
                velocity.assign(velocity * (new / old))


def _power(base: float, start_epoch: int, epoch: float) -> float:
    return float(base ** (epoch - start_epoch))


def _velocities(optimizer: Any) -> Iterable[Any]:
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not getattr(optimizer, "momentum", 0) or not optimizer.built:
        return []
    found = getattr(optimizer, "momentums", None) or getattr(optimizer, "_momentums", None) or []
    return [velocity for velocity in found if velocity is not None]


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raise the learning rate from `initial_lr` / size to `initial_lr` in the first epochs.

    Horovod's ``LearningRateWarmupCallback``, after Goyal et al., "Accurate, Large Minibatch SGD"
    (2017).

    Args:
        initial_lr: The learning rate for all ranks together.
        warmup_epochs: In how many epochs it is reached.
        momentum_correction: Scale the velocity as the rate changes, where the optimizer has one.
        steps_per_epoch: Batches in an epoch. None: ``fit`` tells.
        verbose: Above 0: rank 0 prints when the rate is reached.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            initial_lr,
            self._warmed_up,
            end_epoch=warmup_epochs,
            staircase=False,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )
        self.warmup_epochs = warmup_epochs
        self.verbose = verbose

    def _warmed_up(self, epoch: float) -> float:
        assert self.steps_per_epoch is not None
        size = runtime.size()
        done = epoch + 1.0 / self.steps_per_epoch  # round numbers at the ends of epochs
        return 1.0 / size * (done * (size - 1) / self.warmup_epochs + 1)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self.end_epoch == epoch + 1 and self.verbose > 0 and runtime.rank() == 0:
            print(
                f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to {self._rate():g}."
            )


class BestModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Save the best model so far, on rank 0. After MetricAverageCallback: the best for all ranks.

    Horovod's ``BestModelCheckpoint``.

    Args:
        monitor: The metric that decides.
        verbose: As in ``keras.callbacks.ModelCheckpoint``.
        save_weights_only: As in ``keras.callbacks.ModelCheckpoint``.
        mode: Whether the metric is to be small or large: "auto", "min" or "max".
        save_freq: "epoch", or a number of batches.
        filepath: The file, which ends in ``.keras``, or ``.weights.h5`` for weights. None: set the
            attribute of this name before ``fit``.

    Raises:
        ValueError: When ``fit`` begins: there is no `filepath`. Keras: it ends in something else.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        filepath: Any = None,
    ) -> None:
        suffix = ".weights.h5" if save_weights_only else ".keras"
        super().__init__(
            filepath=f"best{suffix}" if filepath is None else filepath,
            monitor=monitor,
            verbose=verbose,
            save_best_only=True,
            save_weights_only=save_weights_only,
            mode=mode,
            save_freq=save_freq,
        )
        if filepath is None:
            self.filepath = None

    def on_train_begin(self, logs: Any = None) -> None:
        if self.filepath is None:
            raise ValueError("BestModelCheckpoint: set its filepath, to a name that ends in .keras")
        super().on_train_begin(logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if runtime.rank() == 0:
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if runtime.rank() == 0:
            super().on_epoch_end(epoch, logs)


class AttemptCallback(keras.callbacks.Callback):
    """Let ``fit`` skip a batch whose round is over without this rank. Not in Horovod.

    Before each forward pass a rank looks whether its gradient can still count. If not, it applies
    what the others agreed on, and leaves out the computation, and the batch's part in the metrics.
    A batch that was begun is finished.

    Raises:
        ValueError: When ``fit`` begins: the model's optimizer is not a DistributedOptimizer.
    """

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        prepare_model(model)
        leave_early(model)
