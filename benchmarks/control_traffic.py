"""Control messages and coordinator time per round in large worlds: `make bench-control`.

The real ledger, coordinator and messages, driven by random arrivals; csrc/bench/control_traffic.cpp
says how.
"""

from __future__ import annotations

import json
import subprocess
from typing import Annotated, Any

import output
import setting
import typer

COLUMNS = {
    "reports": "messages to rank 0 in a round, KB up: their bytes",
    "seals": "messages from rank 0 in a round, KB down: their bytes",
    "coordinator": "time that rank 0 works on a round, on one core, without sending",
}


def main(
    ranks: Annotated[str, typer.Option(help="World sizes.")] = "100,1000,10000",
    per_node: Annotated[str, typer.Option(help="Ranks per node.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each world.")] = 50,
    out: output.Out = output.FRESH,
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
    output.explain(COLUMNS)
    last = rows[-1]
    output.quote(
        f"a round of {last['ranks']} ranks, {last['ranks_per_node']} to a node, takes rank 0 "
        f"{output.short(last['coordinator_us'])} us of work, {last['reports']} messages in and "
        f"{last['seals']} out.",
        about,
    )
    output.write(out / "control_traffic.json", {"meta": about, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
