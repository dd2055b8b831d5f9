"""The exchange between nodes beside MPI_Allreduce on the same layout: part of `make bench`.

Nodes are parts of this host (HVD_BACKUP_NODE_SIZE), joined by MPI's shared memory; with root, also
hosts of their own, as network namespaces joined by cables of 1 Gbit/s. Samples are taken as
ranks.py says; the seal and the service thread as node_ranks.py says.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any

import output
import setting
import typer
from partial_allreduce import parse_size, than

Row = dict[str, Any]

SIZES = "4K,64K,1M,16M"
MBIT = 1000
HEADER = f"{'bytes':>10} {'late':>5}  {'path':<14}{'median':>9} {'p90':>9} {'algbw':>7}  than MPI"
UNITS = f"{'':>10} {'':>5}  {'':<14}{'(us)':>9} {'(us)':>9} {'(GB/s)':>7}"
COLUMNS = {
    "late": "ranks of the one node that is late, asleep; only the others are timed. They do not "
    "wait for it, except in MPI_Allreduce, where a second thread of each late rank takes part",
    "in_place": "hvd_backup as the optimizers use it: gradient and result lie in shared memory",
    "end_to_end": "hvd_backup from an array of the caller's to another one: two copies more",
    "median, p90": "time of one call, of the samples taken in turns; a tenth took longer than p90",
    "algbw": "bytes of one rank / median",
    "than MPI": "median beside that of MPI_Allreduce on the same layout",
}


def main(
    layouts: Annotated[
        str,
        typer.Option(help="Ranks x ranks per node.  [default: 2x1,4x1,4x2; with --quick: 2x1]"),
    ] = "",
    sizes: Annotated[str, typer.Option(help="Message sizes in bytes, or with K, M, G.")] = SIZES,
    hosts: Annotated[
        bool, typer.Option(help="Also over TCP, between hosts of network namespaces.")
    ] = True,
    out: output.Out = output.FRESH,
    quick: Annotated[bool, typer.Option("--quick", help="Few samples.")] = False,
) -> None:
    """Measure the partial all-reduce of several nodes beside MPI_Allreduce."""
    try:
        shapes = [parse_layout(text) for text in (layouts or default_layouts(quick)).split(",")]
        byte_sizes = [parse_size(text) for text in sizes.split(",")]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    about = setting.meta()
    rows: list[Row] = []
    for ranks, per_node in shapes:
        rows += show(
            f"{ranks} ranks, nodes of {per_node}", one_host(ranks, per_node, byte_sizes, quick)
        )
    if hosts:
        for ranks, per_node in shapes[: 1 if quick else None]:
            rows += show(
                f"{ranks} ranks, {ranks // per_node} hosts, TCP of {MBIT} Mbit/s",
                several_hosts(ranks, per_node, byte_sizes, quick),
            )
    rows += others(shapes, quick)
    output.explain(COLUMNS)
    output.quote(sentence(rows), about)
    output.write(out / "nodes.json", {"meta": about, "rows": rows})


def default_layouts(quick: bool) -> str:
    return "2x1" if quick else "2x1,4x1,4x2"


def parse_layout(text: str) -> tuple[int, int]:
    """Ranks and ranks per node of '4x2'."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if match is None or int(match[1]) % int(match[2]) or int(match[1]) == int(match[2]):
        raise ValueError(f"{text!r} is no layout of several nodes alike; write 4x2")
    return int(match[1]), int(match[2])


def one_host(ranks: int, per_node: int, sizes: list[int], quick: bool) -> Iterator[Row]:
    env = {"HVD_BACKUP_NODE_SIZE": str(per_node)}
    for row in setting.start(ranks, "ranks", *arguments(per_node, sizes, quick), env=env):
        yield {"wire": "shared memory", "per_node": per_node, **row}


def several_hosts(ranks: int, per_node: int, sizes: list[int], quick: bool) -> Iterator[Row]:
    sys.path.insert(0, str(setting.ROOT / "tests"))
    from hosts.network import Hosts, missing

    if reason := missing():
        print(f"\n# no hosts of their own: {reason}")
        return
    from hvd_backup.study.mpirun import parse

    command = [sys.executable, "-m", "ranks", *arguments(per_node, sizes, quick)]
    with Hosts(ranks // per_node, mbit=MBIT) as network:
        env = {"PYTHONPATH": setting.search_path()}
        run = network.mpirun(command, per_node, env=env, timeout=1800)
    if run.returncode != 0:
        raise RuntimeError(str(run))
    for line in str(run.stdout).splitlines():
        if (row := parse(line)) is not None:
            yield {"wire": f"TCP, {MBIT} Mbit/s", "per_node": per_node, **row}


def arguments(late: int, sizes: list[int], quick: bool) -> list[str]:
    quickly = ["--quick"] if quick else []
    # Asleep: a late node's cores are its own, which nodes that are parts of one host are not.
    return ["--sizes", ",".join(map(str, sizes)), "--late", f"0,{late}", "--late-sleeps", *quickly]


def show(title: str, rows: Iterator[Row]) -> list[Row]:
    """Prints the rows as they come, each group in relation to MPI."""
    seen: list[Row] = []
    for (nbytes, late), group in groupby(rows, key=lambda row: (row["bytes"], row["late"])):
        if not seen:
            print(f"\n# {title}, float32\n{HEADER}\n{UNITS}", flush=True)
        of_size = list(group)
        mpi = next(row["median_us"] for row in of_size if row["path"] == "mpi_allreduce")
        for row in of_size:
            time = row["median_us"]
            beside = "-" if row["path"] == "mpi_allreduce" else output.compared(time, mpi)
            print(
                f"{nbytes:>10} {late:>5}  {row['path']:<14}{output.short(time):>9} "
                f"{output.short(row['p90_us']):>9} {output.short(nbytes / time / 1e3):>7}  "
                f"{beside}",
                flush=True,
            )
        seen += of_size
    return seen


def sentence(rows: list[Row]) -> str:
    """The largest message between the first layout's nodes, over each wire."""
    timed = [row for row in rows if "path" in row and not row["late"]]
    first, largest = timed[0], max(row["bytes"] for row in timed)
    parts = []
    for wire in dict.fromkeys(row["wire"] for row in timed):
        time = {
            row["path"]: row["median_us"]
            for row in timed
            if (row["wire"], row["ranks"], row["per_node"], row["bytes"])
            == (wire, first["ranks"], first["per_node"], largest)
        }
        words = than(output.compared(time["in_place"], time["mpi_allreduce"]))
        parts.append(f"{output.short(time['in_place'] / 1e3)} ms over {wire}, {words}")
    nodes = first["ranks"] // first["per_node"]
    return f"{nodes} nodes all-reduce {output.size(largest)} in place in {'; '.join(parts)}."


def others(shapes: list[tuple[int, int]], quick: bool) -> list[Row]:
    """The seal and the service thread."""
    rows: list[Row] = []
    quickly = ["--quick"] if quick else []
    print(
        "\n# From the last arrival, in us: the seal known on every node, the result on every rank"
    )
    for ranks, per_node in shapes:
        env = {"HVD_BACKUP_NODE_SIZE": str(per_node)}
        for row in setting.start(ranks, "node_ranks", "seal", *quickly, env=env):
            rows.append({"per_node": per_node, **row})
            print(
                f"{ranks} ranks, nodes of {per_node}: seal {row['sealed_us']:.0f} (p90 "
                f"{row['sealed_p90_us']:.0f}), result {row['result_us']:.0f} (p90 "
                f"{row['result_p90_us']:.0f}); MPI_Allreduce {row['mpi_allreduce_us']:.0f}"
            )
    print("\n# What the service thread costs a rank that computes, times its step without one")
    for row in setting.start(
        2, "node_ranks", "service", *quickly, env={"HVD_BACKUP_NODE_SIZE": "1"}
    ):
        rows.append({"per_node": 1, **row})
        print(
            f"idle {row['idle_ratio']:.3f}, with a round of {row['bytes']} bytes per step "
            f"{row['rounds_ratio']:.3f} (steps of {row['step_ms']} ms)"
        )
    return rows


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        typer.run(main)
