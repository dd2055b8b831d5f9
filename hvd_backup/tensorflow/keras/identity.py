"""Sets of variables, by identity, in callbacks that can be copied and pickled."""

from __future__ import annotations

import pickle
import weakref
from typing import Any

import keras


def tensor_of(variable: Any) -> Any:
    """TensorFlow's variable of a Keras one."""
    return variable.value if isinstance(variable, keras.Variable) else variable


class Sent:
    """Variables that every rank has got. They are not kept alive.

    A copy is empty: it may come with a copy of the model, or to another process.
    """

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, variable: Any) -> None:
        tensor = tensor_of(variable)
        self._known[id(tensor)] = weakref.ref(tensor)

    def __contains__(self, variable: Any) -> bool:
        tensor = tensor_of(variable)
        known = self._known.get(id(tensor))
        return known is not None and known() is tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return Sent, ()


class Local:
    """Variables that are each rank's own. A copy is of the same variables."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def add(self, variable: Any) -> None:
        tensor = tensor_of(variable)
        self._known[id(tensor)] = tensor

    def __contains__(self, variable: Any) -> bool:
        return id(tensor_of(variable)) in self._known

    def __deepcopy__(self, memo: dict[int, Any]) -> Local:
        copied = Local()
        copied._known.update(self._known)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        if self._known:
            raise pickle.PicklingError(
                f"{len(self._known)} local variables cannot be pickled: in another process they "
                "are others; pass local_variables there"
            )
        return Local, ()
