"""Partial all-reduce beside MPI_Allreduce, gloo and the memory limit: `make bench`.

How a sample is taken is said in ranks.py.
"""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import figure
import setting
import typer

Row = dict[str, Any]

PATHS = ("in_place", "end_to_end", "mpi_allreduce", "gloo", "memory_limit")
SIZES = "4K,64K,1M,16M,100M"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
HEADER = (
    f"{'bytes':>10} {'count':>9}  {'path':<14}{'median':>10} {'p90':>10} {'algbw':>7} "
    f"{'vs MPI':>7} {'x limit':>8}\n"
    f"{'(B)':>10} {'(elem)':>9}  {'':<14}{'(us)':>10} {'(us)':>10} {'(GB/s)':>7} "
    f"{'faster':>7} {'time':>8}"
)


def main(
    ranks: Annotated[
        str, typer.Option(help="World sizes.  [default: 2,4,8; with --quick: 2]")
    ] = "",
    sizes: Annotated[str, typer.Option(help="Message sizes in bytes, or with K, M, G.")] = SIZES,
    late: Annotated[str, typer.Option(help="How many ranks are late: 0, 1.")] = "0,1",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("benchmarks/results"),
    quick: Annotated[bool, typer.Option("--quick", help="Few samples: half a minute.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Measure nothing: the table and picture of --out.")
    ] = False,
) -> None:
    """Measure a partial all-reduce of float32 beside MPI_Allreduce, gloo and the memory limit."""
    try:
        worlds = [int(n) for n in (ranks or ("2" if quick else "2,4,8")).split(",")]
        lates = [int(n) for n in late.split(",")]
        byte_sizes = [parse_size(text) for text in sizes.split(",")]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    saved = out / "partial_allreduce.json"
    if show:
        result = json.loads(saved.read_text())
        print_table(result["rows"])
    else:
        result = {"meta": setting.meta(), "rows": measure(worlds, byte_sizes, lates, quick)}
        out.mkdir(parents=True, exist_ok=True)
        saved.write_text(to_json(result))
    picture = saved.with_suffix(".png")
    figure.draw(result, picture)
    print(f"\n{saved}\n{picture}")


def measure(worlds: list[int], sizes: list[int], lates: list[int], quick: bool) -> list[Row]:
    """All rows; prints each group of them as it comes."""
    program = setting.build_program("memory_limit")
    rows: list[Row] = []
    args = ["--sizes", ",".join(map(str, sizes)), "--late", ",".join(map(str, lates))]
    args += ["--gloo", "--memory-limit", str(program), *(["--quick"] if quick else [])]
    for world in worlds:
        print_header(world)
        group: list[Row] = []
        for row in setting.start(world, "ranks", *args):
            group.append(row)
            if len(group) == len(PATHS):
                print_group(group)
                rows += group
                group = []
    return rows


def parse_size(text: str) -> int:
    """Bytes of '4096', '4K' or '1M'; whole cache lines."""
    match = re.fullmatch(r"(\d+)([KMG]?)B?", text.strip().upper())
    if match is None:
        raise ValueError(f"{text!r} is no size in bytes; write 4096, 4K or 1M")
    size = int(match[1]) * UNITS[match[2]]
    if size == 0 or size % 64:
        raise ValueError(f"{text!r} is not a multiple of 64 bytes")
    return size


def print_table(rows: list[Row]) -> None:
    for world, of_world in groupby(rows, key=lambda row: row["ranks"]):
        print_header(world)
        for _, group in groupby(of_world, key=lambda row: (row["bytes"], row["late"])):
            print_group(list(group))


def print_header(world: int) -> None:
    print(f"\n# {world} ranks, float32\n{HEADER}", flush=True)


def print_group(rows: list[Row]) -> None:
    """The paths at one size, each in relation to MPI and to the limit."""
    median = {row["path"]: row["median_us"] for row in rows}
    if rows[0]["late"]:
        print(f"{'':>10} {'':>9}  -- {rows[0]['late']} rank late, burning a core --")
    for row in rows:
        time = row["median_us"]
        bandwidth = row["bytes"] / time / 1e3 if time else float("inf")
        print(
            f"{row['bytes']:>10} {row['bytes'] // 4:>9}  {row['path']:<14}{time:>10.1f} "
            f"{row['p90_us']:>10.1f} {bandwidth:>7.2f} {ratio(median['mpi_allreduce'], time):>7} "
            f"{ratio(time, median['memory_limit']):>8}",
            flush=True,
        )


def ratio(a: float, b: float) -> str:
    if not b:
        return "-"
    return f"{a / b:.2f}" if a / b < 100 else f"{a / b:.0f}"


def to_json(result: dict[str, Any]) -> str:
    """JSON with a line per row."""
    rows = ",\n  ".join(json.dumps(row) for row in result["rows"])
    return f'{{"meta": {json.dumps(result["meta"], indent=1)},\n "rows": [\n  {rows}\n ]}}\n'


if __name__ == "__main__":
    typer.run(main)
