"""How benchmarks print and write their results: the same figures, words and folder for all."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
# `make bench-save` copies from the first to the second, which is in the repository.
FRESH = ROOT / "build" / "bench"
SAVED = ROOT / "benchmarks" / "results"

Out = Annotated[Path, typer.Option(help="Folder for the results.", show_default="build/bench")]


def digits(value: float) -> float:
    """`value` with three digits: 0.0417 stays more than nothing."""
    return float(f"{value:.3g}")


def short(value: float) -> str:
    """Three digits, never in scientific notation: 0.0417, 4.17, 417, 41700."""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def compared(time: float, other: float) -> str:
    """How `time` does beside `other`: 1.8x faster, 1.8x slower, or as fast."""
    ratio = other / time
    if 0.95 < ratio < 1.05:
        return "as fast"
    return f"{short(ratio)}x faster" if ratio > 1 else f"{short(1 / ratio)}x slower"


def size(nbytes: int) -> str:
    """Bytes as 4 KB, 16 MB."""
    for unit, name in ((1 << 20, "MB"), (1 << 10, "KB")):
        if nbytes >= unit:
            return f"{nbytes / unit:g} {name}"
    return f"{nbytes} B"


def explain(columns: dict[str, str]) -> None:
    """Print what columns and rows of the tables above mean."""
    print()
    wide = max(map(len, columns)) + 2
    for name, meaning in columns.items():
        print(textwrap.fill(meaning, 96, initial_indent=name.ljust(wide),
                            subsequent_indent=" " * wide))  # fmt: skip


def quote(sentence: str, meta: dict[str, Any]) -> None:
    """Print the one sentence that a reader may repeat, and where it is true."""
    machine = f"{meta['cores']} cores ({meta.get('cpu') or meta['device']})"
    print("\n" + textwrap.fill(f"In a sentence: on {machine}, {sentence}", 96))
    load = meta.get("load_before", 0)
    if load > meta["cores"] / 4:
        print(f"Do not quote it: the machine was busy, its load was {load} before the start.")
    if "--quick" in meta["command"].split():
        print("Do not quote it: --quick takes too few samples.")


def write(file: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, a line per row, and say where."""
    rows = ",\n  ".join(json.dumps(row) for row in result["rows"])
    text = f'{{"meta": {json.dumps(result["meta"], indent=1)},\n "rows": [\n  {rows}\n ]}}\n'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    print(f"\n{file}")
