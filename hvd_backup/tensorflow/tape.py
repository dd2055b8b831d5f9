"""GradientTapes whose gradients have been through a round."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf

from hvd_backup.collectives.group import Group
from hvd_backup.rounds.reports import Round
from hvd_backup.tensorflow import arguments
from hvd_backup.tensorflow.compression import Compression
from hvd_backup.tensorflow.gradient_reducer import (
    Encoding,
    GradientReducer,
    averaged_afterwards,
    divided,
)
from hvd_backup.tensorflow.identity import key_of
from hvd_backup.tensorflow.rounds import Options
from hvd_backup.world import runtime
from hvd_backup.world.wire import Average

# A program makes a new tape for each step, and its rounds go on. The ranks of a process set make
# the same tapes, so that they forget the same rounds: so many of each set are kept. What a graph
# was traced with is kept as well: the graph goes on calling it.
_KEPT = 16
_TRACING = "func_graph_from_py_func"  # TensorFlow's, which calls what is traced
_FRAMEWORKS = ("tensorflow.", "keras.")  # their lines differ between a first trace and the next
_plans: MutableMapping[runtime.Runtime, OrderedDict[Any, GradientReducer]] = WeakKeyDictionary()


def DistributedGradientTape(  # noqa: N802 (Horovod's name)
    gradtape: Any,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    op: str = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = None,
    scale_local_gradients: bool = True,
    *,
    name: str | None = None,
    backup_workers: int | None = None,
    late: str = "drop",
    grace: float | None = None,
    window: int | None = None,
    timeout: float | None = None,
    sparse_mean: str = "contributors",
) -> Any:
    """`gradtape`, with a ``gradient()`` that gives the mean over a round's contributors.

    Every ``gradient()`` is one round of all ranks. A rank that was late gets the same gradients as
    the contributors. ``tape.last_round`` is its ``Round``, ``register_local_source(variable)``
    leaves a variable out. The arguments are ``DistributedOptimizer``'s.

    A program makes a new tape for each step. Tapes go through the same rounds if their sources are
    the same variables and their `name` is the same. With ``late="carry"``, and without a name, the
    lines of the program that come to ``gradient()`` must be the same as well, so that the gradient
    of one loss is not carried into that of another. Give tapes names of their own if one line takes
    the gradients of several losses by the same variables.

    ``gradient()`` raises Mismatch, on every rank, if the ranks' sources are not the same variables.
    """
    arguments.check(num_groups, groups, compression)
    group = Group(process_set)
    options = Options(backup_workers, late, grace, window, timeout, op, sparse_mean)
    options.check(group, gradient_predivide_factor)
    encoding = Encoding(compression or Compression.none, sparse_as_dense, scale_local_gradients)
    return _Tape(gradtape, name, options, encoding, group)


def PartialDistributedGradientTape(  # noqa: N802 (Horovod's name)
    gradtape: Any,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    op: str = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = None,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
    **options: Any,
) -> Any:
    """``DistributedGradientTape`` that leaves the gradients of `local_layers` to each rank."""
    tape = DistributedGradientTape(
        gradtape,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        op,
        gradient_predivide_factor,
        num_groups,
        groups,
        process_set,
        scale_local_gradients,
        **options,
    )
    for variable in local_variables(local_layers):
        tape.register_local_source(variable)
    return tape


def local_variables(local_layers: Any) -> list[Any]:
    """The trainable variables of a Keras layer, or of some."""
    if local_layers is None:
        return []
    layers = [local_layers] if isinstance(local_layers, tf.keras.layers.Layer) else local_layers
    layers = list(layers)
    if not all(isinstance(layer, tf.keras.layers.Layer) for layer in layers):
        raise ValueError("All local layers must be of tf.keras.layers.Layer type.")
    return [variable for layer in layers for variable in layer.trainable_weights]


class _Tape:
    """A tape with another ``gradient()``; all else is the tape's own."""

    def __init__(
        self, tape: Any, name: str | None, options: Options, encoding: Encoding, group: Group
    ) -> None:
        self._tape, self._name, self._options, self._encoding = tape, name, options, encoding
        self._group = group
        self._local: list[Any] = []
        self._reducer: GradientReducer | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)

    def __enter__(self) -> Any:
        self._tape.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._tape.__exit__(*error)

    @property
    def last_round(self) -> Round | None:
        """The round of the last ``gradient()``."""
        return None if self._reducer is None else self._reducer.rounds.last_round

    def register_local_source(self, source: Any) -> None:
        """Leave this variable's gradient out of the exchange."""
        self._local.append(source)

    @tf.autograph.experimental.do_not_convert
    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        use_generic_names: bool = False,
        **options: Any,
    ) -> Any:
        """Gradients of `target`, averaged over the round's contributors; `sources` as nested."""
        with averaged_afterwards():
            mine = self._tape.gradient(target, sources, output_gradients, **options)
        flat_sources = tf.nest.flatten(sources)
        gradients = [None] * len(flat_sources)
        for i, gradient in enumerate(_flatten(mine)):
            gradients[i] = gradient
        return tf.nest.pack_sequence_as(sources, self._exchange(flat_sources, gradients))

    def get_local_and_global_gradients(
        self, target: Any, sources: Any, output_gradients: Any = None, **options: Any
    ) -> tuple[list[Any], list[Any]]:
        """Pairs of source and gradient: those left to each rank, and those exchanged."""
        gradients = self.gradient(target, sources, output_gradients, **options)
        pairs = list(zip(sources, gradients, strict=True))
        local = [pair for pair in pairs if self._is_local(pair[0])]
        return local, [pair for pair in pairs if not self._is_local(pair[0])]

    def _is_local(self, source: Any) -> bool:
        return any(source is local for local in self._local)

    def _exchange(self, sources: list[Any], gradients: list[Any]) -> list[Any]:
        if not self._group.included:
            return gradients
        shared = [i for i, source in enumerate(sources) if not self._is_local(source)]
        reducer = self._plan([sources[i] for i in shared])
        self._reducer = reducer
        mine = [gradients[i] for i in shared]
        results = reducer.exchange(mine, lambda: 1.0, of_a_tape=True).gradients
        scale, size = self._encoding.scale_local, self._group.size
        together = [divided(g, size) if scale else g for g in gradients]
        for i, result in zip(shared, results, strict=True):
            together[i] = result
        return together

    def _plan(self, sources: list[Any]) -> GradientReducer:
        """The rounds of tapes with these sources, options, encoding, ranks and name.

        A late gradient is carried into the next round of the plan. It must be of the same loss, for
        which the place in the program stands where there is no name.
        """
        plans = _plans.setdefault(runtime.current(), OrderedDict())
        kind = (self._group.process_set.process_set_id, tf.inside_function())
        carries = self._options.late == "carry"
        place = _place_in_program() if carries and self._name is None else ()
        who = tuple(key_of(source) for source in sources)
        key = (kind, self._name, place, who, self._options, self._encoding)
        if key not in plans:
            name = self._name or "DistributedGradientTape"
            plans[key] = GradientReducer(name, sources, self._options, self._encoding, self._group)
        plans.move_to_end(key)
        alike = [other for other in plans if other[0] == kind]
        if len(alike) > _KEPT and not tf.inside_function():
            plans.pop(alike[0]).rounds.close()
        return plans[key]


def _place_in_program() -> tuple[Any, ...]:
    """Which calls the program is in, those of a traced function if one is being traced."""
    place = []
    frame: Any = sys._getframe(2)  # noqa: SLF001
    tracing = tf.inside_function()
    while frame is not None and not (tracing and frame.f_code.co_name == _TRACING):
        if not (frame.f_globals.get("__name__") or "").startswith(_FRAMEWORKS):
            place.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(place)


def _flatten(gradients: Any) -> Iterable[Any]:
    """As tf.nest, which would take IndexedSlices apart."""
    if isinstance(gradients, list | tuple):
        return [leaf for part in gradients for leaf in _flatten(part)]
    if isinstance(gradients, dict):
        return [leaf for key in sorted(gradients) for leaf in _flatten(gradients[key])]
    return [gradients]
