"""Copies results from build/bench/ to benchmarks/results/, to be committed: `make bench-save`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import output
import typer


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="As in nodes, training_step.  [default: all]")
    ] = None,
    source: Annotated[Path, typer.Option(help="Where they are.")] = output.FRESH,
    target: Annotated[Path, typer.Option(help="Where they go.")] = output.SAVED,
) -> None:
    """Copy results and their pictures. What was measured with --quick is refused."""
    files = [source / f"{name}.json" for name in names] if names else sorted(source.glob("*.json"))
    if missing := [str(file) for file in files if not file.exists()]:
        sys.exit(f"there is no {', '.join(missing)}: run the benchmark first (make help)")
    if not files:
        sys.exit(f"there are no results in {source}: run make bench first")
    quick = [file.stem for file in files if is_quick(file)]
    if quick:
        sys.exit(
            f"measured with --quick, which is not worth keeping: {', '.join(quick)}. "
            "Measure again without it, or name the results that you want to save"
        )
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        for part in (file, file.with_suffix(".png")):
            if part.exists():
                print(shutil.copy(part, target))


def is_quick(file: Path) -> bool:
    """Whether the command that is written down with the results has --quick."""
    return "--quick" in json.loads(file.read_text())["meta"]["command"].split()


if __name__ == "__main__":
    typer.run(main)
