"""The demo's report: a table for the console and a self-contained HTML page with its pictures."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table

from hvd_backup.study.experiment import Settings
from hvd_backup.study.figures import Series
from hvd_backup.study.pictures import pictures, to_png

FEW_ROUNDS = 200
SHORT = "In a run as short as {rounds} rounds, much of this is chance."
ONE_SEED = "One seed does not show how much of this is chance: see --repeats."
# A rank that is late that much more often than by chance is slow: a factor, and percent.
SLOW_FACTOR, SLOW_PERCENT = 1.5, 5.0


def write(
    full: Series, backup: Series, settings: Settings, summary: dict[str, Any], out: Path
) -> None:
    """Write `report.html` and its pictures, as PNG, to the folder `out`."""
    drawn = {name: to_png(fig) for name, fig in pictures(full, backup, settings).items()}
    for name, png in drawn.items():
        (out / f"{name}.png").write_bytes(png)
    (out / "report.html").write_text(render(summary, settings, drawn))


def rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label, text for b=0, text for b>0, of every line in the table."""
    target = summary["settings"]["target_accuracy"]
    cells = [_cells(summary[name], target) for name in run_names(summary)]
    return [(label, cells[0][label], cells[1][label]) for label in cells[0]]


def run_names(summary: dict[str, Any]) -> tuple[str, str]:
    """The keys of b=0 and of b>0."""
    return "b0", f"b{summary['settings']['backup_workers']}"


def _cells(figures: dict[str, Any], target: float) -> dict[str, str]:
    steps = figures["step_ms"]
    return {
        **{f"step time {name}": f"{steps[name]:.1f} ms" for name in ("p50", "p95", "p99", "mean")},
        f"time to {target:.1%} test accuracy": _time(figures["time_to_accuracy_s"]),
        "of each seed": spread(figures["time_to_accuracy_by_seed_s"]),
        "rounds for it": _number(figures["rounds_to_accuracy"]),
        "final test accuracy": f"{figures['final_accuracy']:.1%}",
        "training time": f"{figures['training_s']:.1f} s",
        "late by rank, % of the rounds": " ".join(
            f"{percent:.0f}" for percent in figures["late_percent_per_rank"]
        ),
        "by chance (b/R)": f"{figures['late_percent_by_chance']:.0f} %",
        "replicas": "identical bits" if figures["replicas_identical"] else "DIFFER",
    }


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def spread(times: Sequence[float | None]) -> str:
    """The times of the seeds, from the shortest to the longest; `never` comes last."""
    reached = sorted(time for time in times if time is not None)
    never = ["never"] * (len(times) - len(reached))
    return " ".join([*(f"{time:.1f}" for time in reached), *never])


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
    if settings["repeats"] == 1:
        sentences.append(ONE_SEED)
    return " ".join(sentences)


def _speedup(summary: dict[str, Any]) -> str:
    if summary["speedup"] is None:
        return f"No speed-up to state: {summary['speedup_note']}."
    settings = summary["settings"]
    before, after = (summary[name]["time_to_accuracy_s"] for name in run_names(summary))
    ratios = summary["speedup_by_seed"]
    seeds = f" ({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} seeds)"
    return (
        f"With {settings['backup_workers']} of {settings['ranks']} ranks as backup, "
        f"{settings['target_accuracy']:.1%} test accuracy takes {after:.1f} s instead of "
        f"{before:.1f} s, a speed-up of {summary['speedup']:.2f}"
        f"{seeds if len(ratios) > 1 else ''}."
    )


def next_steps(summary: dict[str, Any]) -> str:
    """What to do with the result, as lines that begin with a dash."""
    steps = [_who_is_slow(summary), _how_many(summary), TRY_IT]
    return "\nWhat to do next:\n" + "\n".join(f"- {step}" for step in steps)


TRY_IT = (
    "Time your own script with b=0 and with b=1, by the commands at the end, and compare the time "
    "to an accuracy rather than the time of a step. optimizer.stats() says who was late."
)


def _who_is_slow(summary: dict[str, Any]) -> str:
    figures = summary[run_names(summary)[1]]
    chance = figures["late_percent_by_chance"]
    slow = slow_ranks(figures["late_percent_per_rank"], chance)
    if not slow:
        return (
            f"No rank is late much more often than chance would have it ({chance:.0f} %), so all "
            "data is seen about as often. Look at the same figures of your own training."
        )
    named = ", ".join(f"rank {rank} ({percent:.0f} %)" for rank, percent in slow)
    return (
        f"Late far more often than by chance ({chance:.0f} %): {named}. Such a rank is slow, and "
        "its share of the data counts less. Look for the cause on its host before you rely on "
        "backup workers."
    )


def slow_ranks(percents: Sequence[float], chance: float) -> list[tuple[int, float]]:
    """Ranks that are late far more often than by chance, and their percentages."""
    limit = max(SLOW_FACTOR * chance, chance + SLOW_PERCENT)
    return [(rank, percent) for rank, percent in enumerate(percents) if percent > limit]


def _how_many(summary: dict[str, Any]) -> str:
    settings = summary["settings"]
    pace = predicted_pace(summary)
    best = max(pace, key=lambda workers: pace[workers])
    used = settings["backup_workers"]
    forecast = (
        f"From the arrivals with b=0, b={best} would get most gradients through per second "
        f"({pace[best] / pace[0]:.2f} times as many as b=0)"
    )
    if best == used:
        return forecast + ", and that is what was used here."
    if best == 0:
        return forecast.partition(" (")[0] + ": these delays are not worth a backup worker."
    return f"{forecast}. Try it: hvd-backup demo -b {best}."


def predicted_pace(summary: dict[str, Any]) -> dict[int, float]:
    """Used gradients per second for each b, from the mean time of the (R - b)-th arrival at b=0."""
    ranks = summary["settings"]["ranks"]
    arrivals = summary["b0"]["kth_arrival_ms"]
    return {ranks - int(k): 1e3 * int(k) / max(arrivals[k]["mean"], 1e-3) for k in arrivals}


def commands(settings: Settings) -> list[str]:
    """How to start a program of one's own with the same number of ranks and backup workers."""
    ranks, workers = settings.ranks, f"HVD_BACKUP_WORKERS={settings.backup_workers}"
    return [
        f"mpirun -np {ranks} -x {workers} python train.py",
        f"{workers} srun --mpi=pmix -n {ranks} python train.py",
    ]


def render(summary: dict[str, Any], settings: Settings, drawn: dict[str, bytes]) -> str:
    """The HTML page, the pictures (PNG, by name) inside."""
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
        next_steps=[line[2:] for line in next_steps(summary).splitlines() if line[:2] == "- "],
        commands=commands(settings),
        pictures={name: base64.b64encode(png).decode() for name, png in drawn.items()},
    )
