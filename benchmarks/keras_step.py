"""What a Keras step pays for its exchange, and how much of it a custom op could save.

`py_function` hands the gradients to Python and back, without exchange or copy: what it takes over
`no_exchange` is the most that an op in C++ could save.
"""

from __future__ import annotations

from importlib import metadata
from itertools import groupby
from typing import Annotated, Any

import output
import setting
import typer

Row = dict[str, Any]

COLUMNS = {
    "no_exchange": "each rank trains for itself",
    "py_function": "gradients go to Python and back, without exchange or copy: what this takes is "
    "the most that an op in C++ could save",
    "step": "time of one step, median of the samples taken in turns; overhead: that over "
    "no_exchange",
    "least": "the shortest sample, which other programs disturbed least, and its overhead",
}


def main(
    ranks: Annotated[str, typer.Option(help="World sizes.")] = "1,2",
    models: Annotated[str, typer.Option(help="Of small, medium, large.")] = "small,medium,large",
    seconds: Annotated[float, typer.Option(help="For one model, about.")] = 4.0,
    out: output.Out = output.FRESH,
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
    output.explain(COLUMNS)
    output.quote(sentence(rows), about)
    output.write(out / "keras_step.json", {"meta": about, "rows": rows})


def sentence(rows: list[Row]) -> str:
    """The last model of the largest world."""
    last = {row["way"]: row for row in rows if row["ranks"] == rows[-1]["ranks"]
            and row["model"] == rows[-1]["model"]}  # fmt: skip
    ours, python = last["hvd_backup"], last["py_function"]
    return (
        f"a Keras step of {ours['parameters'] / 1e6:.1f} M parameters on {ours['ranks']} rank(s) "
        f"takes {output.short(ours['step_ms'])} ms with hvd_backup, "
        f"{output.short(ours['overhead_ms'])} ms more than without exchange; an op in C++ could "
        f"save {output.short(max(python['overhead_ms'], 0))} ms of it."
    )


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
