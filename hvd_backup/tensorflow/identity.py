"""By what ranks tell that their variable i is the others' variable i. Pure, but for Keras' counts.

The place in an agreed list is what counts. What is here makes sure that the lists are the same: the
names, or, where names say nothing, the order in which the variables were made.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hvd_backup import errors

_NUMBERED = re.compile(r"(.*?)(?:_(\d+))?")
_MADE = re.compile(r"_(\d+)$")


class Identity(NamedTuple):
    """What ranks compare of one variable, besides its shape and dtype."""

    name: str
    """Keras' path, or TensorFlow's name."""
    from_the_end: str
    """The same, with Keras' automatic numbers counted from the last such object.

    A rank that has made another model before (a download, say) has other numbers in its names, but
    these are the same.
    """
    turn: int
    """Which of the variables of this name in the list it is, in the order of their making."""


def identities(variables: Sequence[Any]) -> list[Identity]:
    """What the ranks compare of a list of variables (of TensorFlow's, Keras' or plain tensors)."""
    names = [name_of(v) for v in variables]
    counts = _keras_counts()
    made: dict[str, list[int]] = {}
    for name, variable in zip(names, variables, strict=True):
        made.setdefault(name, []).append(_made(variable))
    order = {name: sorted(set(numbers)) for name, numbers in made.items()}
    return [
        Identity(name, from_the_end(name, counts), order[name].index(_made(variable)))
        for name, variable in zip(names, variables, strict=True)
    ]


def check_same(everybody: Sequence[Sequence[Identity]]) -> None:
    """Raises Mismatch, on every rank alike, if the ranks' lists are not of the same variables."""
    counts = [len(mine) for mine in everybody]
    if len(set(counts)) > 1:
        told = ", ".join(f"rank {rank}: {count}" for rank, count in enumerate(counts))
        raise errors.Mismatch(
            f"the ranks disagree on the number of variables: {told}; give every rank the same ones "
            "(an optimizer: build() it with all)"
        )
    if not (_same(everybody, "name") or _same(everybody, "from_the_end")):
        i = _first_difference(everybody, "name")
        told = ", ".join(f"rank {rank}: {mine[i].name}" for rank, mine in enumerate(everybody))
        raise errors.Mismatch(
            f"the ranks disagree on what variable {i} is: {told}; give every rank the same "
            "variables in the same order, with the same names (an optimizer: build() it with all)"
        )
    if not _same(everybody, "turn"):
        i = _first_difference(everybody, "turn")
        told = ", ".join(
            f"rank {rank}: number {mine[i].turn + 1}" for rank, mine in enumerate(everybody)
        )
        raise errors.Mismatch(
            f"the ranks disagree on what variable {i} is: of those that are named "
            f"{everybody[0][i].name}, in the order of their making, {told}; give every rank the "
            "same variables in the same order, or names of their own"
        )


def name_of(variable: Any) -> str:
    """A Keras variable's path, else the name, else what it is."""
    for attribute in ("path", "name"):
        if (name := getattr(variable, attribute, None)) and is_variable(variable):
            return str(name)
    return f"tensor {tuple(variable.shape)}"


def is_variable(source: Any) -> bool:
    """Whether it has a state of its own, so that it is the same from step to step."""
    return hasattr(source, "assign")


def key_of(source: Any) -> str:
    """What tells a variable from all others of this process, also from those that are no more.

    Of a tensor, which lives for one step, what it is like.
    """
    value = getattr(source, "value", None)
    unique = getattr(value, "_unique_id", None) or getattr(source, "_unique_id", None)
    if is_variable(source) and unique is not None:
        return str(unique)
    return f"{name_of(source)} {tuple(source.shape)} {source.dtype}"


def from_the_end(path: str, counts: Mapping[str, int]) -> str:
    """The path with automatic numbers counted from the end: dense_2, of 3, is dense[-1]."""
    parts = []
    for part in path.split("/"):
        match = _NUMBERED.fullmatch(part)
        assert match is not None
        base, number = match[1], int(match[2] or 0)
        automatic = number < counts.get(base, 0)
        parts.append(f"{base}[{number - counts[base]}]" if automatic else part)
    return "/".join(parts)


def _same(everybody: Sequence[Sequence[Identity]], field: str) -> bool:
    lists = [[getattr(identity, field) for identity in mine] for mine in everybody]
    return all(mine == lists[0] for mine in lists)


def _first_difference(everybody: Sequence[Sequence[Identity]], field: str) -> int:
    columns = zip(*everybody, strict=True)
    return next(i for i, of in enumerate(columns) if len({getattr(x, field) for x in of}) > 1)


def _made(variable: Any) -> int:
    """A number that grows from variable to variable of a process; 0 for anything else."""
    match = _MADE.search(key_of(variable))
    return int(match[1]) if match is not None and is_variable(variable) else 0


def _keras_counts() -> Mapping[str, int]:
    """How many objects of each automatic name Keras has made; empty without Keras."""
    state = sys.modules.get("keras.src.backend.common.global_state")
    if state is None:
        return {}
    return Counter(state.get_global_attribute("object_name_uids") or {})
