"""The demo's report: a table for the console, a picture, and one self-contained HTML page."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from rich.table import Table

from hvd_backup.study.experiment import Run, Settings, time_to_accuracy_s
from hvd_backup.study.stragglers import Floats, observed

FULL, BACKUP, QUIET = "#c8553d", "#1f6f8b", "#8a8f98"
SMOOTH_ROUNDS = 25
FEW_ROUNDS = 300
SHORT = "In a run as short as {rounds} rounds, much of this is chance."


def write(full: Run, backup: Run, settings: Settings, summary: dict[str, Any], out: Path) -> None:
    """Write `demo.png` and `report.html` to the folder `out`."""
    png = to_png(draw(full, backup, settings))
    (out / "demo.png").write_bytes(png)
    (out / "report.html").write_text(render(summary, settings, png))


def draw(full: Run, backup: Run, settings: Settings) -> Figure:
    """Four panels: the arrivals of both runs; training loss and test accuracy against time."""
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    (left, right), (loss, accuracy) = figure.subplots(2, 2)
    right.sharex(left)
    for axes, run in ((left, full), (right, backup)):
        draw_arrivals(axes, run, settings)
    draw_loss(loss, (full, backup))
    draw_accuracy(accuracy, (full, backup), settings.target_accuracy)
    for axes in (left, right, loss, accuracy):
        tidy(axes)
    return figure


def draw_arrivals(axes: Axes, run: Run, settings: Settings) -> None:
    """ECDF of the k-th arrival for each k that was observed in every round."""
    kth = 1e3 * run.kth_arrival_s()
    for k in observed(kth):
        sealing = k == settings.quorum(run.backup_workers)
        axes.ecdf(
            kth[:, k - 1],
            color=_color(run) if sealing else _shade(k, settings.ranks),
            linewidth=2.4 if sealing else 1.4,
            label=f"k = {k}" + (" (seals the round)" if sealing else ""),
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.03)
    plain_log_ticks(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("ms since the round opened")
    axes.set_ylabel("rounds with k gradients in")
    axes.set_title(_arrivals_title(run, settings))
    axes.legend(loc="lower right", frameon=False)
    _mark_p95(axes, 1e3 * float(np.percentile(run.step_s, 95)), _color(run))
    if len(observed(kth)) < settings.ranks:
        note = "later gradients are not observed:\nthose ranks give the round up"
        axes.text(0.97, 0.5, note, transform=axes.transAxes, ha="right", color=QUIET)


def _mark_p95(axes: Axes, step_ms: float, color: str) -> None:
    axes.plot(step_ms, 0.95, "o", color=color, markersize=8)
    axes.annotate(
        f"p95 {step_ms:.0f} ms",
        (step_ms, 0.95),
        (8, -18),
        textcoords="offset points",
        color=color,
        fontweight="bold",
    )


def _arrivals_title(run: Run, settings: Settings) -> str:
    if not run.backup_workers:
        return f"b = 0 waits for all {settings.ranks} gradients of a round: the k-th arrival"
    quorum = settings.quorum(run.backup_workers)
    return (
        f"b = {run.backup_workers} takes the first {quorum} of {settings.ranks}: the k-th arrival"
    )


def draw_loss(axes: Axes, runs: tuple[Run, Run]) -> None:
    """Training loss of the rounds, faint, and its moving average, against training time."""
    for run in runs:
        axes.plot(run.sealed_s, run.round_loss, color=_color(run), alpha=0.18, linewidth=0.8)
        smooth = moving_average(run.round_loss, SMOOTH_ROUNDS)
        time = run.sealed_s[-len(smooth) :]
        axes.plot(time, smooth, color=_color(run), linewidth=2, label=f"b = {run.backup_workers}")
    axes.set_yscale("log")
    plain_log_ticks(axes.yaxis)
    axes.set_xlabel("training time, s")
    axes.set_ylabel("training loss")
    axes.set_title(f"Training loss (mean of {SMOOTH_ROUNDS} rounds; faint: each round)")
    axes.legend(frameon=False)


def draw_accuracy(axes: Axes, runs: tuple[Run, Run], target: float) -> None:
    """Test accuracy against training time, and when each run meets the target."""
    axes.axhline(target, color=QUIET, linestyle="--", linewidth=1)
    top = max(run.test_accuracy.max() for run in runs)
    axes.set_ylim(max(0, target - 0.25), min(1, max(top, target) + 0.02))
    for run in runs:
        label = f"b = {run.backup_workers}"
        axes.plot(run.snapshot_s, run.test_accuracy, color=_color(run), linewidth=1.8, label=label)
    times = [(time_to_accuracy_s(run, target), _color(run)) for run in runs]
    reached = sorted((time, color) for time, color in times if time is not None)
    for (time, color), side in zip(reached, ("right", "left"), strict=False):
        axes.vlines(time, 0, target, color=color, linestyle=":", linewidth=1.4)
        axes.text(time, axes.get_ylim()[0], f" {time:.1f} s ", color=color, fontweight="bold",
                  ha=side, va="bottom")  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("training time, s")
    axes.set_ylabel("test accuracy")
    axes.set_title(f"Test accuracy, and the time until {target:.1%}")
    axes.legend(frameon=False, loc="lower right")


def plain_log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2, 5, 10, ... written as such."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _color(run: Run) -> str:
    return BACKUP if run.backup_workers else FULL


def _shade(k: int, ranks: int) -> str:
    """A gray, the darker the later; matplotlib takes 0 (black) to 1 (white) as text."""
    return f"{0.65 - 0.5 * k / ranks:.2f}"


def tidy(axes: Axes) -> None:
    """A light grid and no box."""
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11.5)
    axes.title.set_fontweight("bold")


def moving_average(values: Floats, width: int) -> Floats:
    """Means of `width` neighbors (fewer if there are not so many), without the ragged ends."""
    width = min(width, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid")


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label, text for b=0, text for b>0, of every line in the table."""
    target = summary["settings"]["target_accuracy"]
    cells = [_cells(summary[name], target) for name in run_names(summary)]
    return [(label, cells[0][label], cells[1][label]) for label in cells[0]]


def run_names(summary: dict[str, Any]) -> tuple[str, str]:
    """The keys of the two runs."""
    return "b0", f"b{summary['settings']['backup_workers']}"


def _cells(run: dict[str, Any], target: float) -> dict[str, str]:
    steps, time = run["step_ms"], run["time_to_accuracy_s"]
    reached = "never" if time is None else f"{time:.1f} s ({run['rounds_to_accuracy']} rounds)"
    return {
        **{f"step time {name}": f"{steps[name]:.1f} ms" for name in ("p50", "p95", "p99", "mean")},
        f"time to {target:.1%} test accuracy": reached,
        "final test accuracy": f"{run['final_accuracy']:.1%}",
        "training time": f"{run['training_s']:.1f} s",
        "gradients dropped, per rank": " ".join(map(str, run["dropped_per_rank"])),
        "of these not even computed": " ".join(map(str, run["skipped_per_rank"])),
        "replicas": "identical bits" if run["replicas_identical"] else "DIFFER",
    }


def table(summary: dict[str, Any]) -> Table:
    """The comparison for the console."""
    grid = Table(title="Backup workers against stragglers", title_justify="left")
    grid.add_column("")
    for name in run_names(summary):
        grid.add_column(f"b={name[1:]}", justify="right")
    for row in rows(summary):
        grid.add_row(*row)
    return grid


def conclusion(summary: dict[str, Any]) -> str:
    """A few sentences: was it worth it?"""
    settings = summary["settings"]
    steps = (
        f"The mean step time falls by a factor of {summary['step_time_ratio']['mean']:.2f}; "
        "counting only gradients that were used, the ranks get through "
        f"{summary['normalized_speedup']:.2f} times as many per second."
    )
    sentences = [_speedup(summary), steps]
    if settings["rounds"] < FEW_ROUNDS:
        sentences.append(SHORT.format(**settings))
    return " ".join(sentences)


def _speedup(summary: dict[str, Any]) -> str:
    if summary["speedup"] is None:
        return f"No speed-up to state: {summary['speedup_note']}."
    settings = summary["settings"]
    before, after = (summary[name]["time_to_accuracy_s"] for name in run_names(summary))
    return (
        f"With {settings['backup_workers']} of {settings['ranks']} ranks as backup, "
        f"{settings['target_accuracy']:.1%} test accuracy takes {after:.1f} s instead of "
        f"{before:.1f} s, a speed-up of {summary['speedup']:.2f}."
    )


def commands(settings: Settings) -> list[str]:
    """How to start a program of one's own with the same number of ranks and backup workers."""
    ranks, workers = settings.ranks, f"HVD_BACKUP_WORKERS={settings.backup_workers}"
    return [
        f"mpirun -np {ranks} -x {workers} python train.py",
        f"{workers} srun --mpi=pmix -n {ranks} python train.py",
    ]


def render(summary: dict[str, Any], settings: Settings, png: bytes) -> str:
    """The HTML page, the picture inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hvd_backup.study"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        summary=summary,
        settings=settings,
        names=run_names(summary),
        rows=rows(summary),
        conclusion=conclusion(summary),
        commands=commands(settings),
        picture=base64.b64encode(png).decode(),
    )
