"""Gradients of a TensorFlow program through one round, eagerly or in a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hvd_backup import errors
from hvd_backup.collectives.group import Group
from hvd_backup.tensorflow.collectives import grouped_allreduce
from hvd_backup.tensorflow.compression import Compression
from hvd_backup.tensorflow.failures import tensorflow_errors
from hvd_backup.tensorflow.identity import identities
from hvd_backup.tensorflow.layout import Array, GradientSpec, Kind
from hvd_backup.tensorflow.ops import host_call, refuse_what_cannot_exchange
from hvd_backup.tensorflow.rounds import Gradient, GradientRounds, Options, Slices

_SECOND = "a gradient of a distributed tape's gradient"
_averaging: list[bool] = []  # not of one thread: graphs run in several
_NO_GRADIENT = "No gradients provided for any variable, by none of the ranks."
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Encoding(NamedTuple):
    """How gradients are dressed for the exchange: Horovod's arguments that need no round.

    Its gradient_predivide_factor is not among them: sums are of float32 or wider, so that there is
    nothing to divide before them.
    """

    compression: Any = Compression.none
    sparse_as_dense: bool = False
    scale_local: bool = True


class Outcome(NamedTuple):
    """What a round gave for a list of variables."""

    gradients: list[Any]
    """The mean (or sum) for each. Where no contributor had one: eagerly None, in a graph zeros."""
    present: Any
    """Whether some contributor had one, for each: eagerly a list of bool, in a graph a tensor."""


class GradientReducer:
    """The rounds of one list of variables, on tensors."""

    def __init__(
        self,
        name: str,
        variables: Sequence[Any],
        options: Options,
        encoding: Encoding,
        group: Group,
    ) -> None:
        self._encoding, self._options, self._group = encoding, options, group
        self._dtypes = [tf.as_dtype(v.dtype) for v in variables]
        who = identities(variables)
        self._names = [identity.name for identity in who]
        self._shapes = [self._known_shape(i, v.shape) for i, v in enumerate(variables)]
        self._plain = [
            GradientSpec(dtype.name, shape) if dtype.name in _FLOATS else None
            for dtype, shape in zip(self._dtypes, self._shapes, strict=True)
        ]
        specs = [self._compressed(spec) for spec in self._plain]
        self.rounds = GradientRounds(name, who, specs, options, group)

    def exchange(
        self,
        gradients: Sequence[Any],
        weight: Callable[[], float],
        there: Any = None,
        *,
        of_a_tape: bool = False,
        needed: bool = False,
    ) -> Outcome:
        """One round. `gradients` are tensors, IndexedSlices or None.

        In a graph `there` may be a bool tensor [number of gradients]: which of them there are in
        this execution. Blocks until the round is complete; the first call, when a graph is traced,
        until all ranks have come.

        With `of_a_tape` the gradient of this is Horovod's, and in a graph a gradient that this rank
        does not have is None, unless at first others had it. If one is `needed`, and no contributor
        has any, all ranks raise ValueError.
        """
        refuse_what_cannot_exchange()
        if not self._names:
            return self._nothing(needed)
        with tensorflow_errors():
            self.rounds.prepare([self._kind(g) for g in gradients], self._plain)
        if not self.rounds.is_prepared:
            return self._nothing(needed)
        packed, contexts = self._pack(gradients)
        kinds = [self._kind(g) for g in packed]
        inputs = _tensors(packed)
        if there is not None:
            inputs.append(there)

        def go(*arrays: Array) -> tuple[list[Gradient], Array]:
            mine = _gradients(kinds, arrays)
            if there is not None:
                mine = [g if on else None for g, on in zip(mine, arrays[-1], strict=True)]
            return self.rounds.contribute(mine, weight())

        left_out: list[bool] = [False] * len(packed)
        if of_a_tape and not tf.executing_eagerly():
            differing = self.rounds.differing
            left_out = [k is None and not differing[i] for i, k in enumerate(kinds)]
        go_checked = self._checked(go, left_out, needed=needed)
        if of_a_tape and inputs:
            outputs = self._differentiable(go_checked, inputs, kinds)
        else:
            outputs = self._call(go_checked, inputs)
        outcome = self._outcome(outputs, contexts)
        for i, out in enumerate(left_out):
            if out:
                outcome.gradients[i] = None
        return outcome

    def skip(self, *, needed: bool = False) -> Outcome:
        """The same without a gradient of this rank's. Raises Error before the first exchange."""
        if not self.rounds.is_prepared:
            raise errors.Error(
                "skip() before the first step: where both are in one tf.function, write "
                "`if optimizer.on_time(): … else: optimizer.skip()`, in this order"
            )
        go = self._checked(self.rounds.skip, [], needed=needed)
        return self._outcome(self._call(go, []), [None] * len(self._names))

    def _nothing(self, needed: bool) -> Outcome:
        """No rank has a gradient of anything, as yet."""
        if needed:
            raise ValueError(_NO_GRADIENT)
        there = [False] * len(self._names)
        return Outcome(
            [None] * len(there), there if tf.executing_eagerly() else tf.constant(there, tf.bool)
        )

    # Before the round

    def _known_shape(self, i: int, shape: Any) -> tuple[int, ...]:
        shape = tf.TensorShape(shape)
        if not shape.is_fully_defined():
            raise TypeError(
                f"{self._names[i]} has the shape {shape}; what gradients of it are exchanged needs "
                "a shape that is known when the step is traced"
            )
        return tuple(shape)

    def _compressed(self, spec: GradientSpec | None) -> GradientSpec | None:
        """What a dense gradient's spec is when it travels."""
        if spec is None or self._encoding.compression is Compression.none:
            return spec
        with tf.init_scope():
            packed, _ = self._encoding.compression.compress(tf.zeros(spec.shape, spec.dtype))
        return GradientSpec(packed.dtype.name, tuple(packed.shape))

    def _kind(self, gradient: Any) -> Kind:
        if gradient is None:
            return None
        return isinstance(gradient, tf.IndexedSlices) and not self._encoding.sparse_as_dense

    def _pack(self, gradients: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        pairs = [
            (None, None) if gradient is None else self._packed(i, gradient)
            for i, gradient in enumerate(gradients)
        ]
        return [packed for packed, _ in pairs], [context for _, context in pairs]

    def _packed(self, i: int, gradient: Any) -> tuple[Any, Any]:
        spec, dtype = self.rounds.specs[i], self._dtypes[i]
        if spec is None:
            raise TypeError(
                f"{self._names[i]}: a gradient of {dtype.name} cannot be averaged; use one of "
                f"{', '.join(_FLOATS)}"
            )
        if isinstance(gradient, tf.IndexedSlices) and spec.sparse:
            values = tf.cast(gradient.values, dtype)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape), None
        if self._kind(gradient) and self._options.sparse_mean == "rows":
            raise errors.Error(
                f"{self._names[i]}: its gradient was dense in the first step and is IndexedSlices "
                "now, whose rows sparse_mean='rows' cannot count; use sparse_mean='contributors' "
                "or sparse_as_dense=True"
            )
        gradient = tf.convert_to_tensor(gradient)
        gradient.shape.assert_is_compatible_with(self._shapes[i])
        gradient = tf.cast(tf.ensure_shape(gradient, self._shapes[i]), dtype)
        return (gradient, None) if spec.sparse else self._encoding.compression.compress(gradient)

    # The round

    def _checked(
        self,
        go: Callable[..., tuple[list[Gradient], Array]],
        left_out: Sequence[bool],
        *,
        needed: bool,
    ) -> Callable[..., tuple[list[Gradient], Array]]:
        """`go`, refusing what this graph has no tensor for, and a round without a gradient."""

        def run(*arrays: Array) -> tuple[list[Gradient], Array]:
            results, present = go(*arrays)
            round_ = self.rounds.last_round
            if needed and not present.any() and round_ is not None and round_.weight > 0:
                raise ValueError(_NO_GRADIENT)
            for i, out in enumerate(left_out):
                if out and present[i]:
                    raise self.rounds.failed(
                        errors.Mismatch(
                            f"{self._names[i]} has a gradient on another rank, but had none when "
                            "this rank's tf.function was traced; use DistributedOptimizer, or "
                            "gradient(..., unconnected_gradients=tf.UnconnectedGradients.ZERO)"
                        )
                    )
            return results, present

        return run

    def _call(
        self, go: Callable[..., tuple[list[Gradient], Array]], inputs: Sequence[Any]
    ) -> list[Any]:
        """The tensors of the round's results, and which of them are there."""
        specs = self.rounds.specs

        def run(*arrays: Array) -> list[Array]:
            results, present = go(*arrays)
            return [*_arrays(specs, results), present]

        outputs = host_call(run, inputs, [*_dtypes(specs), tf.bool])
        for output, shape in zip(outputs, [*_shapes(specs), (len(specs),)], strict=True):
            output.set_shape(shape)
        return outputs

    def _differentiable(
        self,
        go: Callable[..., tuple[list[Gradient], Array]],
        inputs: Sequence[Any],
        kinds: Sequence[Kind],
    ) -> list[Any]:
        """The same; its gradient is Horovod's: that of a mean over all ranks is their mean."""

        @tf.custom_gradient
        def call(*tensors: Any) -> Any:
            def gradient(*upstream: Any) -> list[Any]:
                back = self._backward(upstream)
                return [g for g, kind in zip(back, kinds, strict=True) if kind is not None]

            return self._call(go, tensors), gradient

        return list(call(*inputs))

    def _backward(self, upstream: Sequence[Any]) -> list[Any]:
        """One per variable; None where none can travel."""
        specs = self.rounds.specs
        if self.rounds.backup_workers:
            raise NotImplementedError(
                f"{_SECOND} with backup_workers={self.rounds.backup_workers}: every rank would "
                "wait for the late one; use backup_workers=0 for this tape"
            )
        if any(spec is not None and spec.sparse for spec in specs):
            raise NotImplementedError(f"{_SECOND} that is IndexedSlices: use sparse_as_dense=True")
        where = [i for i, spec in enumerate(specs) if spec is not None]
        given = [
            tf.zeros(spec.shape, spec.dtype) if g is None else tf.convert_to_tensor(g)
            for spec, g in zip(filter(None, specs), upstream, strict=False)
        ]
        given = _only_for_distributed_tapes(given)
        means = grouped_allreduce(given, op=self._options.op, process_set=self._group.process_set)
        back: list[Any] = [None] * len(specs)
        for i, mean in zip(where, means, strict=True):
            back[i] = mean
        return back

    # After the round

    def _outcome(self, outputs: list[Any], contexts: Sequence[Any]) -> Outcome:
        *values, present = outputs
        results = [
            self._result(i, spec, values, contexts[i]) for i, spec in enumerate(self.rounds.specs)
        ]
        if not tf.executing_eagerly():
            return Outcome(results, present)
        there = present.numpy().tolist()
        return Outcome([r if there[i] else None for i, r in enumerate(results)], there)

    def _result(self, i: int, spec: GradientSpec | None, values: list[Any], ctx: Any) -> Any:
        """Takes from `values` what it needs."""
        if spec is None:
            return None
        value = values.pop(0)
        if spec.sparse:
            return tf.IndexedSlices(value, values.pop(0), tf.constant(spec.shape, tf.int64))
        compression = self._encoding.compression
        if compression is Compression.none:
            return value
        if ctx is None:  # this rank has no gradient for it
            _, ctx = compression.compress(tf.zeros(self._shapes[i], self._dtypes[i]))
        return tf.cast(compression.decompress(value, ctx), self._dtypes[i])


@contextlib.contextmanager
def averaged_afterwards() -> Iterator[None]:
    """Within it a distributed tape takes gradients, which are averaged over the ranks then."""
    _averaging.append(True)
    try:
        yield
    finally:
        _averaging.pop()


def _only_for_distributed_tapes(tensors: list[Any]) -> list[Any]:
    """The same tensors; raises NotImplementedError, in a graph when it runs, for other tapes.

    A graph's backward part may be made before anybody asks for a gradient.
    """
    if _averaging:
        return tensors

    def check(*arrays: Array) -> Sequence[Array]:
        if not _averaging:
            raise NotImplementedError(
                f"{_SECOND}: each rank would have a part of it, and their mean is the gradient; "
                "let the outer tape be a DistributedGradientTape, too"
            )
        return arrays

    if tf.executing_eagerly():
        check()
        return tensors
    checked = host_call(check, tensors, [tensor.dtype for tensor in tensors])
    return [tf.ensure_shape(new, old.shape) for new, old in zip(checked, tensors, strict=True)]


def _tensors(packed: Sequence[Any]) -> list[Any]:
    tensors: list[Any] = []
    for gradient in packed:
        if isinstance(gradient, tf.IndexedSlices):
            tensors += [gradient.values, tf.cast(gradient.indices, tf.int64)]
        elif gradient is not None:
            tensors.append(gradient)
    return tensors


def _gradients(kinds: Sequence[bool | None], arrays: Sequence[Array]) -> list[Gradient]:
    left = iter(arrays)
    gradients: list[Gradient] = []
    for sparse in kinds:
        if sparse is None:
            gradients.append(None)
        elif sparse:
            gradients.append(Slices(next(left), next(left)))
        else:
            gradients.append(next(left))
    return gradients


def _arrays(specs: Sequence[GradientSpec | None], results: Sequence[Gradient]) -> list[Array]:
    arrays: list[Array] = []
    for spec, result in zip(specs, results, strict=True):
        if spec is None or result is None:
            continue
        if isinstance(result, Slices):
            arrays += [result.values, result.indices]
        else:
            arrays.append(result)
    return arrays


def _dtypes(specs: Sequence[GradientSpec | None]) -> list[Any]:
    dtypes: list[Any] = []
    for spec in specs:
        if spec is not None:
            dtypes += [tf.as_dtype(spec.dtype), *([tf.int64] if spec.sparse else [])]
    return dtypes


def _shapes(specs: Sequence[GradientSpec | None]) -> list[tuple[int | None, ...]]:
    shapes: list[tuple[int | None, ...]] = []
    for spec in specs:
        if spec is not None:
            shapes += [(None, *spec.shape[1:]), (None,)] if spec.sparse else [spec.shape]
    return shapes


def divided(gradient: Any, by: int) -> Any:
    """A gradient, dense, sparse or None, divided by a number that every dtype holds."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values / by, gradient.indices, gradient.dense_shape)
    return gradient / tf.cast(np.float64(by), gradient.dtype)
