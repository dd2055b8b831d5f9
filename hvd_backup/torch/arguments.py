"""What only torch's DistributedOptimizer is given, checked in Horovod's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

ON_NONFINITE = ("contribute", "abstain", "raise")


def names_of(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]] | None
) -> dict[int, str]:
    """Id of a parameter -> its name. Raises ValueError for names that leave a doubt."""
    if named_parameters is None:
        return {
            id(param): f"group {g}, parameter {i}"
            for g, group in enumerate(optimizer.param_groups)
            for i, param in enumerate(group["params"])
        }
    pairs = list(named_parameters)
    if any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
        raise ValueError(
            "named_parameters should be a sequence of tuples (name, parameter), usually produced "
            "by model.named_parameters()."
        )
    names = [name for name, _ in pairs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            "Parameter names in named_parameters must be unique. Found duplicates: "
            + ", ".join(doubled)
        )
    known = {id(param): name for name, param in pairs}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if missing := [i for i, p in enumerate(params) if id(p) not in known]:
        raise ValueError(
            "named_parameters was specified, but one or more model parameters were not named. "
            f"Python object ids: {', '.join(str(id(params[i])) for i in missing)} "
            f"({len(missing)} of the optimizer's {len(params)} parameters, number {missing[0]} is "
            "the first); pass model.named_parameters()"
        )
    return known


def parameter_names(
    optimizer: torch.optim.Optimizer, pairs: Sequence[tuple[str, torch.Tensor]] | None
) -> dict[torch.Tensor, str]:
    """Horovod's ``_parameter_names``, which its users read; without `pairs` with its own names."""
    if pairs is None:
        pairs = [
            (f"allreduce.noname.{g}.{i}", param)
            for g, group in enumerate(optimizer.param_groups)
            for i, param in enumerate(group["params"])
        ]
    return {param: name for name, param in sorted(pairs, key=lambda pair: pair[0])}


def check_on_nonfinite(on_nonfinite: str) -> None:
    """Raises ValueError for a word that is not one of them."""
    if on_nonfinite not in ON_NONFINITE:
        raise ValueError(f"on_nonfinite={on_nonfinite!r}: use one of {', '.join(ON_NONFINITE)}")
