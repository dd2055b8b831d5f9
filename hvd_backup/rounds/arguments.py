"""What optimizers and tapes of any framework are given, checked: in Horovod's words if any."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import cast

from hvd_backup.world.wire import Average, Sum

# The core's: beyond these, a weight times a float32, or a sum of weights, may be no number.
LEAST_WEIGHT, MOST_WEIGHT = 1e-30, 1e30
SPARSE_MEANS = ("contributors", "rows")


def check_op(op: object, gradient_predivide_factor: float, sparse_mean: str) -> None:
    """Raises ValueError for an op that no gradient can have, NotImplementedError for Adasum."""
    if str(op).rpartition(".")[2] == "Adasum":
        raise NotImplementedError(
            "op=Adasum is not here: it combines gradients in pairs, and all of them; use "
            "op=Average with a learning rate for the larger batch, or Horovod"
        )
    if op not in (Average, Sum):
        raise ValueError(f"op={op!r}: op currently only supports Average and Sum")
    if gradient_predivide_factor != 1.0 and op != Average:
        raise ValueError("gradient_predivide_factor not supported with op != Average")
    if not math.isfinite(gradient_predivide_factor) or gradient_predivide_factor <= 0:
        raise ValueError(
            f"gradient_predivide_factor={gradient_predivide_factor!r}: use a number above 0"
        )
    if sparse_mean not in SPARSE_MEANS:
        raise ValueError(f"sparse_mean={sparse_mean!r}: use {' or '.join(map(repr, SPARSE_MEANS))}")
    if sparse_mean == "rows" and op == Sum:
        raise ValueError("sparse_mean='rows' is a mean, and op=Sum is not; leave one of them out")


def check_groups(
    num_groups: int, groups: object, member: type | tuple[type, ...], name: str
) -> None:
    """`groups` is a number, or lists of `member`, whose name is `name`. ValueError as Horovod's.

    Groups have nothing left to do: all gradients go in one round.
    """
    if num_groups != 0:
        warnings.warn(
            "Parameter `num_groups` has been replaced by `groups` and will be removed in v0.23.0.",
            DeprecationWarning,
            stacklevel=3,
        )
        groups = num_groups if groups is None else groups
    if groups is None:
        return
    if not isinstance(groups, list):
        if isinstance(groups, bool) or not isinstance(groups, int) or groups <= 0:
            raise ValueError(
                f"groups should be a non-negative integer or a list of list of {name}."
            )
        return
    seen: set[int] = set()
    for one in (one for group in groups for one in group):
        if not isinstance(one, member):
            raise ValueError(f"groups must consist of {name}.")  # noqa: TRY004, Horovod's
        if id(one) in seen:
            raise ValueError("A parameter can only appear once in groups.")
        seen.add(id(one))


def check_compression(compression: object) -> None:
    """Raises TypeError for what cannot compress."""
    if not all(callable(getattr(compression, name, None)) for name in ("compress", "decompress")):
        raise TypeError(
            f"compression={compression!r} has no compress() and decompress(); use hvd.Compression. "
            "(backup_workers is given by its name.)"
        )


def check_weight(weight: object, name: str) -> float:
    """The weight of a contribution, as the core takes it; raises TypeError and ValueError."""
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TypeError(f"{name} must be a number, not {weight!r}")
    number = cast("float", weight)
    if number != 0 and not LEAST_WEIGHT <= number <= MOST_WEIGHT:
        raise ValueError(
            f"{name} must be 0 (to abstain) or between {LEAST_WEIGHT:g} and {MOST_WEIGHT:g}, not "
            f"{weight!r}"
        )
    return float(number)


def check_passes(passes: object) -> None:
    """Raises ValueError for a number of backward passes that cannot be."""
    if isinstance(passes, bool) or not isinstance(passes, int) or passes <= 0:
        raise ValueError(f"backward_passes_per_step must be > 0, not {passes!r}")
