"""What a training step pays for its exchange: DistributedOptimizer, DDP over gloo, plain MPI.

And the real Horovod, where `make horovod` has built it.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import setting
import typer
from partial_allreduce import to_json

Row = dict[str, Any]


def main(
    ranks: Annotated[str, typer.Option(help="World sizes.")] = "2,4",
    models: Annotated[str, typer.Option(help="Of mlp, resnet18.")] = "mlp,resnet18",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("benchmarks/results"),
    quick: Annotated[bool, typer.Option("--quick", help="Few samples.")] = False,
) -> None:
    """Measure training steps on the CPU, a thread per rank, with and without an exchange.

    The overhead is over `no_exchange`: the same number of processes, each training for itself.
    """
    about = setting.meta()
    rows: list[Row] = []
    args = ["--models", models, *(["--quick"] if quick else [])]
    env = setting.with_horovod()
    if not env:
        print("# without Horovod, which is not built: make horovod")
    for world in (int(n) for n in ranks.split(",")):
        rows += setting.start(world, "training_ranks", *args, env=env)
    for _, of_model in groupby(rows, key=lambda row: (row["ranks"], row["model"])):
        group = list(of_model)
        base = next(row["step_ms"] for row in group if row["way"] == "no_exchange")
        for row in group:
            row["overhead_ms"] = round(row["step_ms"] - base, 3)
            row["ratio"] = round(row["step_ms"] / base, 3)
        print_group(group)
    out.mkdir(parents=True, exist_ok=True)
    saved = out / "training_step.json"
    saved.write_text(to_json({"meta": about, "rows": rows}))
    print(f"\n{saved}")


def print_group(rows: list[Row]) -> None:
    first = rows[0]
    about = f"{first['model']}: {first['parameters'] / 1e6:.1f} M parameters"
    print(f"\n# {first['ranks']} ranks, {about} in {first['tensors']} tensors")
    print(f"{'way':<16}{'step':>10} {'p90':>10} {'overhead':>10} {'ratio':>7}")
    print(f"{'':<16}{'(ms)':>10} {'(ms)':>10} {'(ms)':>10}")
    for row in rows:
        print(
            f"{row['way']:<16}{row['step_ms']:>10.2f} {row['p90_ms']:>10.2f} "
            f"{row['overhead_ms']:>10.2f} {row['ratio']:>7.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
