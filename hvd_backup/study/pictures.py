"""The four pictures of the demo's report, each one panel that can be read on a phone."""

import io
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from hvd_backup.study.experiment import Run, Settings
from hvd_backup.study.figures import Series, middle, smooth_accuracy, time_to_accuracy_s

FULL, BACKUP, QUIET, GRID = "#c8553d", "#1f6f8b", "#6b7078", "#e6e8eb"
# A phone shows 320 to 370 CSS pixels: a letter of 12 points is then 11 pixels high or more.
INCHES, POINTS, DPI = (4.6, 3.7), 12, 200


def pictures(full: Series, backup: Series, settings: Settings) -> dict[str, Figure]:
    """The pictures by name, in the order of reading."""
    return {
        "arrivals": _single(lambda axes: draw_arrivals(axes, full, settings)),
        "steps": _single(lambda axes: draw_steps(axes, (full, backup))),
        "late": _single(lambda axes: draw_late(axes, backup, settings)),
        "accuracy": _single(lambda axes: draw_accuracy(axes, (full, backup), settings)),
    }


def _single(draw: Callable[[Axes], None]) -> Figure:
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes)
    _tidy(axes)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def draw_arrivals(axes: Axes, full: Series, settings: Settings) -> None:
    """ECDF of the k-th arrival for each k, where all gradients are waited for."""
    kth = 1e3 * full.kth_arrival_s()
    for k in range(1, settings.ranks + 1):
        last = k == settings.ranks
        axes.ecdf(
            kth[:, k - 1],
            color=FULL if last else _shade(k, settings.ranks),
            linewidth=2.4 if last else 1.4,
            label=f"all {k}" if last else f"{k}" + (" gradient" if k == 1 else ""),
        )
    _durations(axes, "rounds with so many gradients")
    axes.set_title("Waiting for the k-th gradient, b = 0")
    axes.legend(loc="lower right", frameon=False, fontsize=POINTS - 1, handlelength=1.2)


def draw_steps(axes: Axes, both: tuple[Series, Series]) -> None:
    """ECDF of the step times, with their 95th percentiles."""
    for series in both:
        steps = 1e3 * series.step_s
        p95 = float(np.percentile(steps, 95))
        label = f"b = {series.backup_workers}: p95 {p95:.0f} ms"
        axes.ecdf(steps, color=_color(series), linewidth=2.4, label=label)
        axes.plot(p95, 0.95, "o", color=_color(series), markersize=8)
    _durations(axes, "rounds that take less")
    axes.set_title("Step times")
    axes.legend(loc="lower right", frameon=False, fontsize=POINTS - 1, handlelength=1.2)


def draw_late(axes: Axes, backup: Series, settings: Settings) -> None:
    """Share of the rounds that each rank is late in, beside b / R."""
    share = backup.late_share()
    bars = axes.bar(np.arange(settings.ranks), share, color=BACKUP, width=0.7)
    if settings.ranks <= 8:
        texts = [f"{round(100 * x, 1):.0f} %" for x in share]
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the line may run there
        axes.bar_label(bars, texts, padding=3, fontsize=POINTS, bbox=paper, zorder=3)
    chance = settings.chance_of_being_late(backup.backup_workers)
    line = f"by chance: b/R = {100 * chance:.0f} %"
    axes.axhline(chance, color=FULL, linestyle="--", linewidth=1.8, label=line)
    axes.set_ylim(0, 1.45 * max(chance, share.max()))
    if settings.ranks <= 16:
        axes.set_xticks(np.arange(settings.ranks))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("rank")
    axes.set_ylabel("rounds it is late in")
    axes.set_title(f"Who is late, b = {backup.backup_workers}")
    axes.legend(loc="upper right", frameon=False, fontsize=POINTS)


def draw_accuracy(axes: Axes, both: tuple[Series, Series], settings: Settings) -> None:
    """Smoothed test accuracy of each seed against training time, and the time to the target."""
    target = settings.target_accuracy
    axes.axhline(target, color=QUIET, linestyle="--", linewidth=1.2)
    top = max(float(run.test_accuracy.max()) for series in both for run in series.runs)
    axes.set_ylim(max(0, target - 0.25), min(1, max(top, target) + 0.02))
    for series in both:
        for run in series.runs:
            _draw_run(axes, run, _color(series))
        times = [time_to_accuracy_s(run, target) for run in series.runs]
        time = middle(times)
        text = f"b = {series.backup_workers}: " + ("never" if time is None else f"{time:.1f} s")
        axes.plot([], [], color=_color(series), linewidth=2.4, label=text)
        if time is not None:
            axes.vlines(time, 0, target, color=_color(series), linestyle=":", linewidth=2.2)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("training time, s")
    axes.set_ylabel("test accuracy")
    axes.set_title(f"Time to {target:.1%}")
    axes.legend(frameon=False, loc="lower right", fontsize=POINTS, handlelength=1.2)


def _draw_run(axes: Axes, run: Run, color: str) -> None:
    smooth, centers = smooth_accuracy(run)
    axes.plot(run.snapshot_s, run.test_accuracy, color=color, alpha=0.15, linewidth=0.8)
    axes.plot(run.snapshot_s[centers], smooth, color=color, linewidth=1.7)


def _durations(axes: Axes, what: str) -> None:
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("ms since the round opened")
    axes.set_ylabel(what)


def plain_log_ticks(axis: Axis) -> None:
    """Ticks at 1, 3, 10, 30, ... written as such: more would run into each other."""
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _color(series: Series) -> str:
    return BACKUP if series.backup_workers else FULL


def _shade(k: int, ranks: int) -> str:
    """A gray, the darker the later; matplotlib takes 0 (black) to 1 (white) as text."""
    return f"{0.7 - 0.5 * k / ranks:.2f}"


def _tidy(axes: Axes) -> None:
    """A light grid, no box, and letters that a phone shows large enough."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=POINTS - 1)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(POINTS)
    axes.title.set_fontsize(POINTS + 1)
    axes.title.set_fontweight("bold")
