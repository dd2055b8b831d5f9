"""Gradients of a TensorFlow program through one round, eagerly or in a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_backup import errors
from hvd_backup.group import Group
from hvd_backup.tensorflow.compression import Compression
from hvd_backup.tensorflow.layout import Array, Form
from hvd_backup.tensorflow.ops import host_call, refuse_xla
from hvd_backup.tensorflow.rounds import Gradient, GradientRounds, Options, Slices


class Wrapping:
    """How gradients are dressed for the exchange: Horovod's arguments that need no round."""

    def __init__(
        self, compression: Any, predivide: float, sparse_as_dense: bool, scale_local: bool = True
    ) -> None:
        self.compression = Compression.none if compression is None else compression
        self.predivide = float(predivide)
        self.sparse_as_dense = sparse_as_dense
        self.scale_local = scale_local

    def dense(self, gradient: Any) -> tuple[Any, Any]:
        if self.predivide != 1.0:
            gradient /= tf.cast(self.predivide, gradient.dtype)
        packed, ctx = self.compression.compress(gradient)
        return packed, ctx

    def undress(self, result: Any, ctx: Any) -> Any:
        result = self.compression.decompress(result, ctx)
        if self.predivide != 1.0:
            result *= tf.cast(self.predivide, result.dtype)
        return result


class Reduction:
    """The rounds of one list of variables, on tensors."""

    def __init__(
        self,
        name: str,
        variables: Sequence[Any],
        options: Options,
        wrapping: Wrapping,
        group: Group,
    ) -> None:
        self._names = [name_of(v) for v in variables]
        self._shapes = [tuple(v.shape) for v in variables]
        self._dtypes = [tf.as_dtype(v.dtype) for v in variables]
        self._wrapping = wrapping
        self.rounds = GradientRounds(name, self._names, options, group)

    def exchange(self, gradients: Sequence[Any], weight: Callable[[], float]) -> list[Any]:
        """The round's mean (or sum) for each variable; None where no rank has a gradient.

        `gradients` are tensors, IndexedSlices or None. Blocks until the round is complete; the
        first call, when a graph is traced, until all ranks have come.
        """
        refuse_xla()
        packed, contexts = self._pack(gradients)
        self.rounds.prepare([self._form(i, g) for i, g in enumerate(packed)])
        if not self.rounds.is_prepared:
            return list(gradients)
        kinds = [None if g is None else isinstance(g, tf.IndexedSlices) for g in packed]

        def go(*arrays: Array) -> tuple[list[Gradient], Array]:
            return self.rounds.contribute(_gradients(kinds, arrays), weight())

        return self._call(go, _tensors(packed), contexts)

    def skip(self) -> list[Any]:
        """The same without a gradient of this rank's. Raises Error before the first exchange."""
        if not self.rounds.is_prepared:
            raise errors.Error(
                "skip() before the first step: where both are in one tf.function, write "
                "`if optimizer.on_time(): … else: optimizer.skip()`, in this order"
            )
        contexts: list[Any] = [None] * len(self._names)
        return self._call(self.rounds.skip, [], contexts)

    def _pack(self, gradients: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        packed: list[Any] = []
        contexts: list[Any] = []
        for i, gradient in enumerate(gradients):
            if isinstance(gradient, tf.IndexedSlices) and self._wrapping.sparse_as_dense:
                gradient = tf.convert_to_tensor(gradient)
            ctx = None
            if gradient is not None and not isinstance(gradient, tf.IndexedSlices):
                gradient = tf.convert_to_tensor(gradient)
                gradient.shape.assert_is_compatible_with(self._shapes[i])
                gradient, ctx = self._wrapping.dense(tf.ensure_shape(gradient, self._shapes[i]))
            packed.append(gradient)
            contexts.append(ctx)
        return packed, contexts

    def _form(self, i: int, gradient: Any) -> Form | None:
        if gradient is None:
            return None
        if isinstance(gradient, tf.IndexedSlices):
            return Form(gradient.values.dtype.name, self._shapes[i], sparse=True)
        if not gradient.shape.is_fully_defined():
            raise TypeError(
                f"{self._names[i]}: its compressed gradient has the shape {gradient.shape}; "
                "a compressor's tensors need shapes that are known when the step is traced"
            )
        return Form(gradient.dtype.name, tuple(gradient.shape))

    def _call(
        self,
        go: Callable[..., tuple[list[Gradient], Array]],
        inputs: Sequence[Any],
        contexts: list[Any],
    ) -> list[Any]:
        forms = list(self.rounds.forms)

        def run(*arrays: Array) -> list[Array]:
            results, present = go(*arrays)
            self._check_up_to_date(forms, present)
            return [*_arrays(forms, results), present]

        outputs = host_call(run, inputs, [*_dtypes(forms), tf.bool])
        present = outputs.pop()
        results = [self._result(i, form, outputs, contexts[i]) for i, form in enumerate(forms)]
        if tf.executing_eagerly():  # as if nobody but the contributors were there
            there = present.numpy()
            results = [r if there[i] else None for i, r in enumerate(results)]
        return results

    def _result(self, i: int, form: Form | None, outputs: list[Any], ctx: Any) -> Any:
        """Takes from `outputs` what it needs."""
        if form is None:
            return None
        value = outputs.pop(0)
        if form.sparse:
            indices = outputs.pop(0)
            value.set_shape((None, *form.shape[1:]))
            indices.set_shape((None,))
            return tf.IndexedSlices(value, indices, tf.constant(form.shape, tf.int64))
        value.set_shape(form.shape)
        if ctx is None:  # this rank has no gradient for it
            _, ctx = self._wrapping.dense(tf.zeros(self._shapes[i], self._dtypes[i]))
        return self._wrapping.undress(value, ctx)

    def _check_up_to_date(self, forms: list[Form | None], present: Array) -> None:
        if forms != self.rounds.forms:
            new = [i for i, form in enumerate(forms) if form is None and present[i]]
            if new:
                raise errors.Error(
                    f"{self._names[new[0]]} has a gradient since this step was traced; trace the "
                    "step again on every rank (make a new tf.function, or compile the model)"
                )


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


def _arrays(forms: Sequence[Form | None], results: Sequence[Gradient]) -> list[Array]:
    arrays: list[Array] = []
    for form, result in zip(forms, results, strict=True):
        if form is None or result is None:
            continue
        if isinstance(result, Slices):
            arrays += [result.values, result.indices]
        else:
            arrays.append(result)
    return arrays


def _dtypes(forms: Sequence[Form | None]) -> list[Any]:
    dtypes: list[Any] = []
    for form in forms:
        if form is not None:
            dtypes += [tf.as_dtype(form.dtype), *([tf.int64] if form.sparse else [])]
    return dtypes


def scaled_local(gradient: Any, size: int) -> Any:
    """A local variable's gradient, as if it had been averaged with zeros, `size` in all."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values / size, gradient.indices, gradient.dense_shape)
    return gradient / tf.cast(np.float64(size), gradient.dtype)


def name_of(variable: Any) -> str:
    """A Keras variable's path, else the name, else what it is."""
    for attribute in ("path", "name"):
        if name := getattr(variable, attribute, None):
            return str(name)
    return f"tensor {tuple(variable.shape)}"
