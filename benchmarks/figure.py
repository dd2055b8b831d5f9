"""The picture of partial_allreduce.json: time against size, a panel per world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Ours in colour, what they are compared with in greys; the limit dashed.
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "gloo": ("gloo", {"color": "#b0b0b0", "marker": "s"}),
    "mpi_allreduce": ("MPI_Allreduce", {"color": "#5a5a5a", "marker": "D"}),
    "end_to_end": ("hvd_backup, end to end", {"color": "#e07b00", "marker": "o"}),
    "in_place": ("hvd_backup, in place", {"color": "#0063b1", "marker": "o"}),
    "memory_limit": ("memory limit", {"color": "#000000", "linestyle": "--", "linewidth": 1.0}),
}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the rows of `result` to `path` (PNG)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows: list[Row] = result["rows"]
    worlds = sorted({row["ranks"] for row in rows})
    lates = sorted({row["late"] for row in rows})
    sizes = sorted({row["bytes"] for row in rows})
    panels = (len(lates), len(worlds))
    figure, axes = plt.subplots(
        *panels,
        figsize=(max(6.5, 1.2 + 3.6 * panels[1]), 1.4 + 3.0 * panels[0]),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for i, late in enumerate(lates):
        for j, world in enumerate(worlds):
            axis = axes[i][j]
            _panel(axis, [r for r in rows if r["ranks"] == world and r["late"] == late])
            kind = f"{late} late, burning a core" if late else "all contribute"
            axis.set_title(f"{world} ranks, {kind}", fontsize=10, loc="left")
            axis.set_xticks(sizes, [_size(n) for n in sizes])
            axis.minorticks_off()
            axis.set_yticks(*_time_ticks(rows))
            axis.tick_params(labelsize=8)
    meta = result["meta"]
    where = f"{meta['cpu']}, {meta['cores']} cores; {meta['versions']['mpi']}; {meta['date'][:10]}"
    figure.supxlabel(f"bytes per rank (float32)\n{where}", fontsize=9)
    figure.supylabel("time of one all-reduce, median", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=5 if panels[1] > 1 else 3,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, rows: list[Row]) -> None:
    for path, (label, style) in STYLES.items():
        line = sorted((r["bytes"], r["median_us"]) for r in rows if r["path"] == path)
        if line:
            axis.plot(*zip(*line, strict=True), label=label, **{"markersize": 4, **style})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.grid(which="major", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _size(nbytes: int) -> str:
    for unit, name in ((1 << 20, "MB"), (1 << 10, "KB")):
        if nbytes >= unit:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


def _time_ticks(rows: list[Row]) -> tuple[list[float], list[str]]:
    names = {1: "1 µs", 10: "10 µs", 100: "100 µs", 1e3: "1 ms", 1e4: "10 ms", 1e5: "100 ms"}
    names[1e6] = "1 s"
    least, most = (pick(r["median_us"] for r in rows) for pick in (min, max))
    inside = {at: name for at, name in names.items() if least / 10 < at < most * 10}
    return list(inside), list(inside.values())
