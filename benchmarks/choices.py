"""`make bench-choices`: times the ways between which the core chooses (csrc/bench/choices.cpp)."""

from __future__ import annotations

import subprocess
from typing import Annotated

import setting
import typer


def main(
    megabytes: Annotated[int, typer.Option(min=1, help="Largest size, in MiB.")] = 100,
) -> None:
    """Print what each choice of docs/measurements.md rests on."""
    subprocess.run([setting.build_program("choices"), str(megabytes << 20)], check=True)


if __name__ == "__main__":
    typer.run(main)
