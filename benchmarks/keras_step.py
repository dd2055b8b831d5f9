"""What a Keras step pays for its exchange, and how much of it a custom op could save.

`py_function` hands the gradients to Python and back, without exchange or copy: what it takes over
`no_exchange` is the most that an op in C++ could save.
"""

from __future__ import annotations

from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import setting
import typer
from partial_allreduce import to_json

Row = dict[str, Any]


def main(
    ranks: Annotated[str, typer.Option(help="World sizes.")] = "1,2",
    models: Annotated[str, typer.Option(help="Of small, medium, large.")] = "small,medium,large",
    seconds: Annotated[float, typer.Option(help="For one model, about.")] = 4.0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("benchmarks/results"),
) -> None:
    """Measure steps of a tf.function with SGD on the CPU, a thread per rank."""
    about = setting.meta()
    about["versions"].pop("torch")
    about["versions"] |= {name: metadata.version(name) for name in ("tensorflow-cpu", "keras")}
    rows: list[Row] = []
    for world in (int(n) for n in ranks.split(",")):
        rows += setting.start(world, "keras_ranks", "--models", models, "--seconds", str(seconds))
    for _, of_model in groupby(rows, key=lambda row: (row["ranks"], row["model"])):
        group = list(of_model)
        for row in group:
            row["overhead_ms"] = round(row["step_ms"] - group[0]["step_ms"], 3)
            row["least_overhead_ms"] = round(row["least_ms"] - group[0]["least_ms"], 3)
        print_group(group)
    out.mkdir(parents=True, exist_ok=True)
    saved = out / "keras_step.json"
    saved.write_text(to_json({"meta": about, "rows": rows}))
    print(f"\n{saved}")


def print_group(rows: list[Row]) -> None:
    first = rows[0]
    size = f"{first['parameters'] / 1e6:.1f} M parameters in {first['tensors']} tensors"
    print(f"\n# {first['ranks']} ranks, {first['model']}: {size}")
    print(f"{'way':<14}{'step (ms)':>12}{'overhead (ms)':>15}{'least':>10}{'overhead':>10}")
    for row in rows:
        print(
            f"{row['way']:<14}{row['step_ms']:>12.2f}{row['overhead_ms']:>15.2f}"
            f"{row['least_ms']:>10.2f}{row['least_overhead_ms']:>10.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
