"""What callbacks change about a model that is to be fitted."""

from __future__ import annotations

import logging
from typing import Any

import keras
import tensorflow as tf

from hvd_backup.tensorflow.keras.optimizer import steps_of
from hvd_backup.tensorflow.ops import native_errors

log = logging.getLogger("hvd_backup")


class _Fitting:
    """What callbacks of ours ask of a model's next ``fit``, and what its step was made for.

    Every ``fit`` makes its callbacks known to the model before it asks for the train function, and
    ``compile`` may change everything in between: so what holds is decided there, each time.
    """

    def __init__(self) -> None:
        self.has_callbacks = False
        self.is_to_leave = False
        self.leaves = False
        """Whether the train function skips batches that can no longer count."""
        self._warned = False

    def take(self, model: Any) -> None:
        """Settle what the train function is to be, and forget what was asked."""
        has_callbacks, self.has_callbacks = self.has_callbacks, False
        leaves, self.is_to_leave = self.is_to_leave, False
        if has_callbacks or steps_of(model.optimizer) is not None:
            self._switch_off_xla(model)
        if leaves != self.leaves:
            self.leaves = leaves
            model.train_function = None  # made of the step that it was

    def _switch_off_xla(self, model: Any) -> None:
        # Where there is a GPU, jit_compile="auto" means True; an explicit True cannot be told from
        # it.
        if not (model.jit_compile and model._resolve_auto_jit_compile()):  # noqa: SLF001
            return
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: jit_compile is switched off, as XLA cannot compile an exchange between ranks; "
                "compile(jit_compile=False) says the same without this warning",
                model.name,
            )
        model.jit_compile = False
        model.train_function = None


def prepare_model(model: Any) -> None:
    """Let ``fit`` raise this package's errors as what they are, and switch off automatic XLA."""
    fitting = _fitting(model)
    fitting.has_callbacks = True
    make = model.make_train_function
    if getattr(make, "_hvd_made", False):
        return

    def make_train_function(force: bool = False) -> Any:
        fitting.take(model)
        make(force)
        model.train_function = _with_native_errors(model.train_function)
        return model.train_function

    make_train_function._hvd_made = True  # type: ignore[attr-defined]  # noqa: SLF001
    object.__setattr__(model, "make_train_function", make_train_function)


def _fitting(model: Any) -> _Fitting:
    fitting: _Fitting | None = vars(model).get("_hvd_fitting")
    if fitting is None:
        fitting = _Fitting()
        object.__setattr__(model, "_hvd_fitting", fitting)
    return fitting


def _with_native_errors(function: Any) -> Any:
    if getattr(function, "_hvd_native", False):
        return function

    def train_function(iterator: Any) -> Any:
        with native_errors():
            return function(iterator)

    train_function._hvd_native = True  # type: ignore[attr-defined]  # noqa: SLF001
    return train_function


def leave_early(model: Any) -> None:
    """Let the next ``fit`` skip what can no longer count.

    Raises ValueError if the model's optimizer is not distributed.
    """
    if steps_of(model.optimizer) is None:
        raise ValueError(
            "AttemptCallback needs compile(optimizer=hvd.DistributedOptimizer(…)); "
            f"this model has {model.optimizer!r}"
        )
    fitting = _fitting(model)
    fitting.is_to_leave = True
    compute = model.train_step
    if getattr(compute, "_hvd_leaves", False):
        return

    def skip() -> Any:
        model.optimizer.skip()
        return model.get_metrics_result()

    def train_step(data: Any) -> Any:
        if not fitting.leaves or steps_of(model.optimizer) is None:
            return compute(data)
        on_time = model.optimizer.on_time()
        if isinstance(on_time, bool):
            return compute(data) if on_time else skip()
        return tf.cond(on_time, lambda: compute(data), skip)

    train_step._hvd_leaves = True  # type: ignore[attr-defined]  # noqa: SLF001
    object.__setattr__(model, "train_step", train_step)
    model.train_function = None


def optimizers_of(model: Any) -> list[Any]:
    """Those of ``compile``, and those that the model or a part of it has as attributes."""
    found: dict[int, Any] = {}

    def look(value: Any) -> None:
        if isinstance(value, keras.optimizers.Optimizer):
            found.setdefault(id(value), value)
        elif isinstance(value, dict):
            look(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                look(item)

    for part in model._flatten_layers():  # noqa: SLF001
        look(vars(part))
    return list(found.values())


def load_model(
    filepath: Any,
    custom_optimizers: Any = None,
    custom_objects: dict[str, Any] | None = None,
    compression: Any = None,
    legacy_opts: bool = False,
    **options: Any,
) -> Any:
    """Load a saved Keras model; its optimizer, state included, becomes a DistributedOptimizer.

    Horovod's ``load_model``.

    Args:
        filepath: A ``.keras`` file. (Of an ``.h5`` file Keras does not load the optimizer's state.)
        custom_optimizers: Classes of optimizers that Keras does not know.
        custom_objects: As in ``keras.models.load_model``.
        compression: As in ``DistributedOptimizer``.
        legacy_opts: Keras 3 has no legacy optimizers: False.
        **options: As in ``DistributedOptimizer``.

    Returns:
        The model.

    Raises:
        ValueError: `legacy_opts` is true, Keras cannot load the file, or an option is out of range.
        TypeError: An option is of the wrong type.
        NotInitialized: ``init()`` was not called.
    """
    from hvd_backup.tensorflow.keras.optimizer import DistributedOptimizer

    if legacy_opts:
        raise ValueError("legacy_opts: Keras 3 has no legacy optimizers")
    known = {kind.__name__: kind for kind in custom_optimizers or []}
    model = keras.models.load_model(filepath, custom_objects={**known, **(custom_objects or {})})
    if getattr(model, "optimizer", None) is not None:
        model.optimizer = DistributedOptimizer(model.optimizer, compression=compression, **options)
    return model
