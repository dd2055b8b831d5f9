"""Control messages and coordinator time per round in large worlds: `make bench-control`.

The real ledger, coordinator and messages, driven by random arrivals; csrc/bench/control_traffic.cpp
says how.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Annotated, Any

import setting
import typer
from partial_allreduce import to_json


def main(
    ranks: Annotated[str, typer.Option(help="World sizes.")] = "100,1000,10000",
    per_node: Annotated[str, typer.Option(help="Ranks per node.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each world.")] = 50,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("benchmarks/results"),
) -> None:
    """Simulate rounds with 4 % backup workers, as the paper chose, and count what is sent."""
    about = setting.meta()
    program = setting.build_program("control_traffic")
    rows: list[dict[str, Any]] = []
    print(
        f"{'ranks':>7} {'per node':>9} {'reports':>9} {'seals':>7} {'KB up':>9} {'KB down':>9} ",
        end="",
    )
    print(f"{'coordinator':>12}\n{'':>7} {'':>9} {'':>9} {'':>7} {'':>9} {'':>9} {'(us)':>12}")
    for world in (int(n) for n in ranks.split(",")):
        for size in (int(n) for n in per_node.split(",")):
            numbers = [world, size, world // 25, rounds]
            done = subprocess.run(
                [program, *map(str, numbers)], check=True, capture_output=True, text=True
            )
            row = json.loads(done.stdout)
            rows.append(row)
            print(
                f"{row['ranks']:>7} {row['ranks_per_node']:>9} {row['reports']:>9} "
                f"{row['seals']:>7} {row['bytes_up'] / 1e3:>9.1f} {row['bytes_down'] / 1e3:>9.1f} "
                f"{row['coordinator_us']:>12.1f}"
            )
    out.mkdir(parents=True, exist_ok=True)
    saved = out / "control_traffic.json"
    saved.write_text(to_json({"meta": about, "rows": rows}))
    print(f"\n{saved}")


if __name__ == "__main__":
    typer.run(main)
