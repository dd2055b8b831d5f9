"""Phrases that errors of several modules share."""

from __future__ import annotations

import time
from collections.abc import Sequence

QUOTE = 300  # characters of a call that an error quotes


def quote_groups(descriptions: Sequence[str], ranks: Sequence[int] | None = None) -> str:
    """The descriptions, one per rank, each once with its ranks; what is long, where it differs."""
    if max(map(len, descriptions)) > QUOTE:
        columns = enumerate(zip(*descriptions, strict=False))
        differs = next((i for i, letters in columns if len(set(letters)) > 1), 0)
        first = max(0, differs - QUOTE // 2)
        descriptions = ["…" * (first > 0) + text[first : first + QUOTE] for text in descriptions]
    groups: dict[str, list[int]] = {}
    numbers = range(len(descriptions)) if ranks is None else ranks
    for rank, text in zip(numbers, descriptions, strict=True):
        groups.setdefault(text, []).append(rank)
    return "; ".join(f"{ranks_text(group)}: {text}" for text, group in groups.items())


def ranks_text(ranks: Sequence[int]) -> str:
    """``rank 2``, ``ranks 2, 7``."""
    return f"rank{'s' if len(ranks) != 1 else ''} {', '.join(map(str, ranks))}"


def ranks_have(ranks: Sequence[int]) -> str:
    """``rank 2 has``, ``ranks 2, 7 have``."""
    return f"{ranks_text(ranks)} {'has' if len(ranks) == 1 else 'have'}"


def title(call: str) -> str:
    """The call without what is long in it: shapes of parameters, say."""
    return call if len(call) <= 60 else call[:60].partition("(")[0]


def death(dead: str, seen_by: str, where: str, completed: int | None = None) -> str:
    """Processes have ended; all ranks are known to have completed so many rounds before."""
    several = dead.startswith("ranks")
    last = f"round {completed - 1}" if completed else "none so far"
    known = f" The last round that all ranks are known to have completed is {last}."
    return (
        f"{dead} {'have' if several else 'has'} died, without shutdown(): {seen_by} saw it at "
        f"{time.strftime('%H:%M:%S')}, in {where}.{known if completed is not None else ''} What "
        f"{dead} or the launcher printed last says why (a signal, out of memory); then start again "
        "from the last checkpoint"
    )
