"""Partial all-reduce beside MPI_Allreduce, gloo and the memory limit: `make bench`.

How a sample is taken is said in ranks.py.
"""

from __future__ import annotations

import json
import math
import re
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import figure
import output
import setting
import typer

Row = dict[str, Any]

PATHS = ("in_place", "end_to_end", "mpi_allreduce", "gloo", "memory_limit")
SIZES = "4K,64K,1M,16M,100M"
OURS = ("in_place", "end_to_end")
QUOTED = 16 << 20  # bytes: the gradient of a small model
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
HEADER = (
    f"{'bytes':>10} {'late':>5}  {'path':<14}{'median':>9} {'p90':>9} {'algbw':>7}  "
    f"{'than MPI':<13} {'of limit':>9}\n"
    f"{'':>10} {'':>5}  {'':<14}{'(us)':>9} {'(us)':>9} {'(GB/s)':>7}"
)
COLUMNS = {
    "late": "ranks that are late and burn a core meanwhile; only the others are timed. They do not "
    "wait for it, except in MPI and gloo, where a second thread of the late rank takes part",
    "in_place": "hvd_backup as the optimizers use it: the gradient lies in shared memory, and the "
    "result is read there",
    "end_to_end": "hvd_backup from an array of the caller's to another one: two copies more",
    "mpi_allreduce": "MPI_Allreduce, which waits for all ranks",
    "gloo": "all_reduce of torch.distributed on the CPU",
    "memory_limit": "no all-reduce: threads of one process sum as many arrays, without a word to "
    "each other. It is the floor for arrays beyond the caches, where each rank has a core",
    "median, p90": "time of one call, of the samples taken in turns; a tenth took longer than p90",
    "algbw": "bytes of one rank / median",
    "than MPI": "median beside that of MPI_Allreduce",
    "of limit": "median / that of memory_limit; at a few KB it is large, as a sum takes no time",
}


def main(
    ranks: Annotated[
        str, typer.Option(help="World sizes.  [default: 2,4,8; with --quick: 2]")
    ] = "",
    sizes: Annotated[str, typer.Option(help="Message sizes in bytes, or with K, M, G.")] = SIZES,
    late: Annotated[str, typer.Option(help="How many ranks are late: 0, 1.")] = "0,1",
    out: output.Out = output.FRESH,
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
        result = load(saved)
        print_table(result["rows"])
    else:
        result = {"meta": setting.meta(), "rows": measure(worlds, byte_sizes, lates, quick)}
    output.explain(COLUMNS)
    output.quote(sentence(result["rows"], result["meta"]["cores"]), result["meta"])
    if not show:
        output.write(saved, result)
    picture = saved.with_suffix(".png")
    figure.draw(result, picture)
    print(picture)


def load(saved: Path) -> dict[str, Any]:
    """Results that were written before."""
    if not saved.exists():
        raise typer.BadParameter(
            f"there is no {saved}: run `make bench`, or add --out benchmarks/results for ours"
        )
    result: dict[str, Any] = json.loads(saved.read_text())
    return result


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
    """The paths at one size, each beside MPI and beside the limit."""
    median = {row["path"]: row["median_us"] for row in rows}
    limit, mpi = median["memory_limit"], median["mpi_allreduce"]
    for row in rows:
        path, time = row["path"], row["median_us"]
        than_mpi = output.compared(time, mpi) if path in OURS else "-"
        of_limit = output.short(time / limit) if path in OURS and limit else "-"
        print(
            f"{row['bytes']:>10} {row['late']:>5}  {path:<14}{output.short(time):>9} "
            f"{output.short(row['p90_us']):>9} "
            f"{output.short(row['bytes'] / time / 1e3) if time else '-':>7}  "
            f"{than_mpi:<13} {of_limit:>9}",
            flush=True,
        )


def sentence(rows: list[Row], cores: int) -> str:
    """The result at about 16 MB, in the largest world that has a core for each rank."""
    worlds = sorted({row["ranks"] for row in rows})
    world = max((n for n in worlds if n <= cores), default=worlds[0])
    of_world = [row for row in rows if row["ranks"] == world]
    nbytes = min({row["bytes"] for row in of_world}, key=lambda n: abs(math.log(n / QUOTED)))
    parts = []
    for late in sorted({row["late"] for row in of_world}):
        time = {
            row["path"]: row["median_us"]
            for row in of_world
            if row["bytes"] == nbytes and row["late"] == late
        }
        ours = time["in_place"]
        who = f"with {late} of them late" if late else f"on {world} ranks"
        words = than(output.compared(ours, time["mpi_allreduce"]))
        parts.append(f"{output.short(ours)} us {who}, {words}")
    return f"a partial all-reduce of {output.size(nbytes)} in place takes {'; '.join(parts)}."


def than(words: str) -> str:
    """`1.8x faster` as part of a sentence."""
    return "as fast as MPI_Allreduce" if words == "as fast" else f"{words} than MPI_Allreduce"


if __name__ == "__main__":
    typer.run(main)
