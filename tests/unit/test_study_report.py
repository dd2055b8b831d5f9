"""The demo's table, picture and page."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from study_runs import run_backup, run_full, settings

from hvd_backup.study import report
from hvd_backup.study.experiment import summarize


@pytest.fixture(scope="module")
def summary() -> dict:
    return summarize(run_full(), run_backup(), settings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, summary):
    out = tmp_path_factory.mktemp("demo")
    report.write(run_full(), run_backup(), settings(), summary, out)
    return out


def test_the_page_needs_nothing_from_elsewhere(folder):
    page = (folder / "report.html").read_text()
    sources = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,iVBORw0K")
    text = page.replace(sources[0], "")
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(", text)


def test_the_page_has_the_figures_and_the_commands(folder, summary):
    page = (folder / "report.html").read_text()
    assert "dropped, per rank" in page
    assert "0 1 3" in page
    assert "speed-up of 1.71" in page
    assert "mpirun -np 3 -x HVD_BACKUP_WORKERS=1 python train.py" in page
    assert "srun --mpi=pmix -n 3" in page
    assert "bug" not in page


def test_the_page_warns_if_the_replicas_differ(summary):
    page = report.render(summary | {"replicas_identical": False}, settings(), b"")
    assert "This is a bug" in page


def test_the_picture_is_a_png_of_some_size(folder):
    content = (folder / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") == 1800  # pixels wide


def test_only_observed_arrivals_are_drawn():
    left, right, *_ = report.draw(run_full(), run_backup(), settings()).axes
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (left, right)]
    assert labels[0] == ["k = 1", "k = 2", "k = 3 (seals the round)"]
    assert labels[1] == ["k = 1", "k = 2 (seals the round)"]
    assert any("not observed" in text.get_text() for text in right.texts)
    assert not any("not observed" in text.get_text() for text in left.texts)


def test_the_table_compares_the_two_runs(summary):
    console = Console(file=io.StringIO(), width=100)
    console.print(report.table(summary))
    text = console.file.getvalue()
    for words in ("b=0", "b=1", "step time p99", "time to 90.0% test accuracy", "1.2 s (4 rounds)"):
        assert words in text


def test_a_target_never_reached_is_said_in_words(summary):
    missed = summary["b1"] | {"time_to_accuracy_s": None, "rounds_to_accuracy": None}
    altered = summary | {"b1": missed, "speedup": None, "speedup_note": "b1 never reached it"}
    reached = {label: (full, backup) for label, full, backup in report.rows(altered)}
    assert reached["time to 90.0% test accuracy"] == ("1.2 s (4 rounds)", "never")
    assert report.conclusion(altered).startswith("No speed-up to state: b1 never reached it.")


def test_a_short_run_is_called_short(summary):
    assert "much of this is chance" in report.conclusion(summary)
    long = summary | {"settings": summary["settings"] | {"rounds": 1000}}
    assert "chance" not in report.conclusion(long)


def test_the_moving_average_has_no_ragged_ends():
    values = report.moving_average(np.arange(10.0), 4)
    assert values.tolist() == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
    assert report.moving_average(np.ones(3), 25).tolist() == pytest.approx([1.0])
