"""What a training step pays for its exchange: DistributedOptimizer, DDP over gloo, plain MPI.

And the real Horovod, where `make horovod` has built it.
"""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any

import output
import setting
import typer

Row = dict[str, Any]

COLUMNS = {
    "single_process": "one process trains, the other ranks sleep",
    "no_exchange": "each rank trains for itself: what ranks take from each other by sharing "
    "caches and memory is in it, an exchange is not",
    "step, p90": "time of one step, median of the samples taken in turns; a tenth took longer",
    "overhead": "step - step of no_exchange: what the exchange costs",
    "ratio": "step / step of no_exchange",
}
NAMES = {"ddp_gloo": "DDP over gloo", "horovod": "Horovod", "mpi_allreduce": "plain MPI_Allreduce"}


def main(
    ranks: Annotated[str, typer.Option(help="World sizes.")] = "2,4",
    models: Annotated[str, typer.Option(help="Of mlp, resnet18.")] = "mlp,resnet18",
    out: output.Out = output.FRESH,
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
    output.explain(COLUMNS)
    output.quote(sentence(rows), about)
    output.write(out / "training_step.json", {"meta": about, "rows": rows})


def sentence(rows: list[Row]) -> str:
    """What the exchange of the first world's last model costs, each way."""
    of_world = [row for row in rows if row["ranks"] == rows[0]["ranks"]]
    group = {row["way"]: row for row in of_world if row["model"] == of_world[-1]["model"]}
    ours = group["hvd_backup"]
    others = [
        f"{name} {output.short(group[way]['overhead_ms'])} ms"
        for way, name in NAMES.items()
        if way in group
    ]
    return (
        f"a training step of {ours['model']} ({ours['parameters'] / 1e6:.1f} M parameters) on "
        f"{ours['ranks']} ranks takes {output.short(ours['step_ms'])} ms with hvd_backup, of which "
        f"the exchange is {output.short(ours['overhead_ms'])} ms; with {', '.join(others)}."
    )


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
