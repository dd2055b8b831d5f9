"""The demo: the same trainings without and with backup workers, and a report on both."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hvd_backup.study import report
from hvd_backup.study.data import recognize
from hvd_backup.study.experiment import PRESETS, Run, Settings, run_name
from hvd_backup.study.figures import Series, summarize
from hvd_backup.study.mpirun import run_ranks
from hvd_backup.world.mpirun import find_mpirun

ROUNDS, REPEATS = 200, 3
QUICK_ROUNDS, QUICK_REPEATS = 100, 1


def make_settings(
    *,
    ranks: int,
    backup_workers: int,
    rounds: int | None,
    seed: int,
    repeats: int | None,
    data: Path | None,
    target: float | None,
    quick: bool,
) -> Settings:
    """Settings for the data set at hand; None stands for a default.

    Raises ValueError, with what to change, and DataError (a ValueError) for a wrong folder.
    """
    dataset = recognize(data)[0].dataset if data else "digits"
    preset = PRESETS[dataset].quick() if quick else PRESETS[dataset]
    chosen = dataclasses.asdict(preset) | ({} if target is None else {"target_accuracy": target})
    return Settings(
        ranks=ranks,
        backup_workers=backup_workers,
        rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS),
        seed=seed,
        repeats=repeats or (QUICK_REPEATS if quick else REPEATS),
        data=str(data.resolve()) if data else None,
        dataset=dataset,
        **chosen,
    )


def run_demo(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    """Train, write summary.json, report.html and its pictures to `out`, return the summary.

    Raises LaunchError if there is no mpirun or a run fails.
    """
    find_mpirun()
    out.mkdir(parents=True, exist_ok=True)
    settings.save(out / "settings.json")
    console.print(introduction(settings), highlight=False)
    full, backup = (
        train(settings, backup_workers, out, console)
        for backup_workers in (0, settings.backup_workers)
    )
    summary = summarize(full, backup, settings)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report.write(full, backup, settings, summary, out)
    console.print(report.table(summary))
    console.print(report.conclusion(summary), highlight=False)
    console.print(report.next_steps(summary), highlight=False)
    console.print(farewell(settings, out), highlight=False, soft_wrap=True)
    return summary


def train(settings: Settings, backup_workers: int, out: Path, console: Console) -> Series:
    """The trainings with all seeds, in one mpirun, with their progress on the console."""
    module = ["hvd_backup.study.training", str(out / "settings.json"), "-b", str(backup_workers)]
    label = f"b={backup_workers}, {settings.quorum(backup_workers)} of {settings.ranks} ranks"
    rounds = settings.rounds * settings.repeats
    messages = run_ranks(settings.ranks, module, out / f"b{backup_workers}.log")
    with contextlib.closing(messages), display(label, rounds, console) as view:
        view.stage("starting")
        follow(messages, view)
    names = [run_name(backup_workers, seed) for seed in settings.seeds]
    return Series(tuple(Run.load(out / f"{name}.npz") for name in names))


class View(Protocol):
    """Shows how far a run is."""

    def stage(self, name: str) -> None:
        """What the ranks do now."""

    def progress(self, done: int, loss: float | None) -> None:
        """`done` rounds are over; `loss` is rank 0's own, None if it gave the last round up."""


class Bar:
    """On a terminal: a bar that moves."""

    def __init__(self, label: str, rounds: int, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task(label, total=rounds, stage="", loss="")

    def stage(self, name: str) -> None:
        self._bars.update(self._task, stage=name)

    def progress(self, done: int, loss: float | None) -> None:
        self._bars.update(self._task, completed=done)
        if loss is not None:
            self._bars.update(self._task, loss=f"loss {loss:.3f}")


class Lines:
    """Elsewhere: a plain line at every tenth of the way."""

    def __init__(self, label: str, rounds: int, console: Console) -> None:
        self._label, self._rounds, self._console = label, rounds, console
        self._next = 0.0

    def stage(self, name: str) -> None:
        self._console.print(f"{self._label}: {name}", highlight=False)

    def progress(self, done: int, loss: float | None) -> None:
        if done >= self._next:
            self._next = done - done % (self._rounds / 10) + self._rounds / 10
            line = f"{self._label}: round {done} of {self._rounds}"
            line += "" if loss is None else f", loss {loss:.3f}"
            self._console.print(line, highlight=False)


@contextlib.contextmanager
def display(label: str, rounds: int, console: Console) -> Iterator[View]:
    """A `View` that suits the console."""
    if not console.is_terminal:
        yield Lines(label, rounds, console)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[stage]} {task.fields[loss]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield Bar(label, rounds, bars)


def follow(messages: Iterable[dict[str, Any]], view: View) -> None:
    """Show what rank 0 prints: `{"stage": ...}` and `{"round": ..., "loss": ...}`."""
    for message in messages:
        if "stage" in message:
            view.stage(message["stage"])
        if "round" in message:
            view.progress(message["round"], message["loss"])


def introduction(settings: Settings) -> str:
    """What is about to happen."""
    return (
        f"{settings.ranks} ranks train a small CNN on {settings.dataset} for {settings.rounds} "
        f"rounds, {settings.repeats} time(s) without backup workers, then as often with "
        f"{settings.backup_workers}.\n"
        f"Each rank is delayed in every forward pass: {settings.delay}. "
        f"Seeds from {settings.seed} on, the same delays without and with backup workers.\n"
        f"Learning rate {settings.learning_rate:g} x the number of gradients in a round "
        "(linear scaling).\n"
    )


def farewell(settings: Settings, out: Path) -> str:
    """Where the results are, and how to start a program of one's own."""
    commands = "\n".join(f"  {line}" for line in report.commands(settings))
    return (
        f"\nReport: {out / 'report.html'}  pictures: {out / '*.png'}  "
        f"figures: {out / 'summary.json'}\n\nYour own script with backup workers:\n{commands}"
    )
