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
# the same tapes, so that they forget the same rounds. This many of each set are kept. What a graph
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
    """A tape whose every ``gradient()`` is one round: it gives the mean over the contributors.

    A late rank gets the same gradients as the contributors. All ranks make the same calls.

    A program makes a new tape for each step. Tapes go through the same rounds if their sources are
    the same variables and their `name` is the same. With ``late="carry"``, and without a name, the
    lines of the program that come to ``gradient()`` must be the same as well, so that the gradient
    of one loss is not carried into that of another. Give tapes names if one line takes the
    gradients of several losses.

    Horovod's ``DistributedGradientTape``, with its positional arguments in their order.

    Args:
        gradtape: A ``tf.GradientTape``.
        device_dense: Accepted for Horovod; without effect, as the exchange runs on the host.
        device_sparse: Accepted for Horovod; without effect, as the exchange runs on the host.
        compression: The dtype in which gradients travel: a class of ``Compression``, or one like
            it.
        sparse_as_dense: Exchange IndexedSlices as dense tensors.
        op: Average, or Sum: the sum over the contributors.
        gradient_predivide_factor: Checked as in Horovod; without effect, as sums are made in
            float32 or wider.
        num_groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        process_set: The ranks whose rounds these are. On other ranks ``gradient()`` gives their own
            gradients. Default: all ranks.
        scale_local_gradients: Divide the gradients of local sources by the number of ranks.
        name: Tells the rounds of tapes with the same sources apart.
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
        A tape with ``gradient()``, ``register_local_source()``, ``last_round`` and
        ``get_local_and_global_gradients()``. All else is `gradtape`'s.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.
        NotImplementedError: `op` is Adasum.
        NotInitialized: ``init()`` was not called.

        ``gradient()`` raises Mismatch, on every rank, when the ranks' sources or arguments differ;
        RoundTimeout, which names the missing ranks; and PeerFailed.

    Example:
        >>> import tensorflow as tf
        >>> import hvd_backup.tensorflow as hvd
        >>> hvd.init()
        >>> x = tf.Variable(3.0)
        >>> with tf.GradientTape() as tape:
        ...     loss = x * x
        >>> tape = hvd.DistributedGradientTape(tape)
        >>> float(tape.gradient(loss, x))
        6.0
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
    """``DistributedGradientTape`` that leaves the gradients of some layers to each rank.

    Horovod's ``PartialDistributedGradientTape``.

    Args:
        gradtape: A ``tf.GradientTape``.
        device_dense: Accepted for Horovod; without effect, as the exchange runs on the host.
        device_sparse: Accepted for Horovod; without effect, as the exchange runs on the host.
        compression: The dtype in which gradients travel: a class of ``Compression``, or one like
            it.
        sparse_as_dense: Exchange IndexedSlices as dense tensors.
        op: Average, or Sum: the sum over the contributors.
        gradient_predivide_factor: Checked as in Horovod; without effect.
        num_groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        process_set: The ranks whose rounds these are; default: all.
        local_layers: A Keras layer, or an iterable of them, whose trainable weights are not
            exchanged.
        scale_local_gradients: Divide the gradients of local sources by the number of ranks.
        **options: As in ``DistributedGradientTape``: `name`, `backup_workers`, `late`, `grace`,
            `window`, `timeout` and `sparse_mean`.

    Returns:
        The tape of ``DistributedGradientTape``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or `local_layers` are not Keras layers.
        NotImplementedError: `op` is Adasum.
        NotInitialized: ``init()`` was not called.
    """
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
        """The ``Round`` of the last ``gradient()``; None before the first."""
        return None if self._reducer is None else self._reducer.rounds.last_round

    def register_local_source(self, source: Any) -> None:
        """Leave the gradient of a variable to each rank.

        Args:
            source: A variable, of any shape and dtype, that ``gradient()`` gets as a source.
        """
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
        """The gradients of `target`, after one round: the mean over the contributors.

        Args:
            target: A tensor, or a nest of them, of any shape and a floating dtype.
            sources: A variable, or a nest of them, of any shape and a floating dtype; the same on
                all ranks.
            output_gradients: None, or for each target a tensor of its shape and dtype.
            use_generic_names: Accepted for Horovod; without effect.
            **options: Passed on to ``tf.GradientTape.gradient``.

        Returns:
            A nest as `sources`, of gradients of their shapes and dtypes, or IndexedSlices. Where no
            contributor has a gradient it is None; in a ``tf.function`` it is zeros, or None if no
            rank had one in the first call.

        Raises:
            Mismatch: The ranks' sources or arguments differ; on every rank.
            NotImplementedError: XLA is to compile the call.
            RoundTimeout: A rank did not come in time; the text names it.
            PeerFailed: Another rank died, left or failed.
        """
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
        """The gradients of ``gradient()``, apart: those left to each rank, and those exchanged.

        Args:
            target: A tensor, or a nest of them, of any shape and a floating dtype.
            sources: A list of variables, of any shape and a floating dtype; the same on all ranks.
            output_gradients: None, or for each target a tensor of its shape and dtype.
            **options: Passed on to ``tf.GradientTape.gradient``.

        Returns:
            Two lists of pairs, a source and its gradient, of the source's shape and dtype: the
            local ones, and the exchanged ones.

        Raises:
            Mismatch: The ranks' sources or arguments differ; on every rank.
            NotImplementedError: XLA is to compile the call.
            RoundTimeout: A rank did not come in time; the text names it.
            PeerFailed: Another rank died, left or failed.
        """
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
