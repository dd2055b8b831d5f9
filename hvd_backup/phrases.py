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


def death(dead: str, seen_by: str, where: str, last_round: str) -> str:
    """Processes have ended; `last_round` is the text of ``last_round()``, if there were rounds."""
    several = dead.startswith("ranks")
    known = f" {last_round[0].upper()}{last_round[1:]}." if last_round else ""
    return (
        f"{dead} {'have' if several else 'has'} died, without shutdown(): {seen_by} saw it at "
        f"{time.strftime('%H:%M:%S')}, in {where}.{known} What {dead} or the launcher printed last "
        "says why (a signal, out of memory); then start again from the last checkpoint"
    )


def failure(rank: int, what: str) -> str:
    """An exception has ended a call, or the program, of a rank."""
    return (
        f"rank {rank} failed with {what}; what rank {rank} printed says why; then start again from "
        "the last checkpoint"
    )


def last_round(completed: int, whose: str, where: str) -> str:
    """`whose` ranks are known to have completed `completed` rounds of the collective `where`."""
    last = f"round {completed - 1}" if completed else "none so far"
    return f"the last round of {where} that {whose} are known to have completed is {last}"


def moment(last_round: str) -> str:
    """Now, by the clock and by the rounds."""
    return "; ".join(filter(None, (f"at {time.strftime('%H:%M:%S')}", last_round)))
