"""The demo's table, pictures and page."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from study_runs import backup_series, full_series, settings

from hvd_backup.study import pictures, report
from hvd_backup.study.figures import summarize

PICTURES = ["arrivals", "steps", "late", "accuracy"]


@pytest.fixture(scope="module")
def summary() -> dict:
    return summarize(full_series(), backup_series(), settings())


@pytest.fixture(scope="module")
def drawn() -> dict:
    return pictures.pictures(full_series(), backup_series(), settings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, summary):
    out = tmp_path_factory.mktemp("demo")
    report.write(full_series(), backup_series(), settings(), summary, out)
    return out


def test_the_page_needs_nothing_from_elsewhere(folder):
    page = (folder / "report.html").read_text()
    sources = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(PICTURES)
    text = page
    for source in sources:
        assert source.startswith("data:image/png;base64,iVBORw0K")
        text = text.replace(source, "")
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(", text)


def test_the_page_has_the_figures_and_the_commands(folder, summary):
    page = (folder / "report.html").read_text()
    assert "late by rank, % of the rounds" in page
    assert "0 25 75" in page
    assert "speed-up of 2.57 (1.71 to 3.43 over 2 seeds)" in page
    assert "mpirun -np 3 -x HVD_BACKUP_WORKERS=1 python train.py" in page
    assert "srun --mpi=pmix -n 3" in page
    assert "This is a bug" not in page


def test_the_page_warns_if_the_replicas_differ(summary):
    page = report.render(
        summary | {"replicas_identical": False}, settings(), dict.fromkeys(PICTURES, b"")
    )
    assert "This is a bug" in page


def test_the_four_pictures_are_png_files_of_some_size(folder):
    for name in PICTURES:
        content = (folder / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") == 920  # pixels wide


def test_the_letters_in_a_picture_are_ten_pixels_high_on_a_phone(drawn):
    width = 360 - 2 * 16  # CSS pixels between the margins of the page
    for figure in drawn.values():
        (axes,) = figure.axes
        texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
        texts += [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
        texts += axes.get_legend().get_texts()
        least = min(text.get_fontsize() for text in texts) / 72  # inches
        assert least * width / figure.get_figwidth() > 10


def test_the_arrivals_end_with_the_one_that_all_wait_for(drawn):
    (axes,) = drawn["arrivals"].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "1 gradient",
        "2",
        "all 3",
    ]


def test_who_is_late_is_drawn_beside_what_chance_gives(drawn):
    (axes,) = drawn["late"].axes
    assert [bar.get_height() for bar in axes.patches] == [0, 0.25, 0.75]
    assert axes.get_legend().get_texts()[0].get_text() == "by chance: b/R = 33 %"
    assert [text.get_text() for text in axes.texts] == ["0 %", "25 %", "75 %"]


def test_a_world_of_many_ranks_has_no_label_on_each_bar():
    many = settings(ranks=40)
    figure = pictures.Figure()
    axes = figure.subplots()
    shares = np.full(40, 1 / 40)
    wide = type("Wide", (), {"backup_workers": 1, "late_share": lambda self: shares})()
    pictures.draw_late(axes, wide, many)
    assert len(axes.patches) == 40
    assert not axes.texts


def test_the_table_compares_the_two_runs(summary):
    console = Console(file=io.StringIO(), width=100)
    console.print(report.table(summary))
    text = console.file.getvalue()
    for words in ("b=0", "b=1", "step time p99", "time to 90.0% test accuracy", "1.8 s", "1.2 2.4"):
        assert words in text


def test_a_target_never_reached_is_said_in_words(summary):
    missed = summary["b1"] | {
        "time_to_accuracy_s": None,
        "time_to_accuracy_by_seed_s": [None, 0.7],
        "rounds_to_accuracy": None,
    }
    altered = summary | {"b1": missed, "speedup": None, "speedup_note": "b1 never reached it"}
    cells = {label: (full, backup) for label, full, backup in report.rows(altered)}
    assert cells["time to 90.0% test accuracy"] == ("1.8 s", "never")
    assert cells["of each seed"] == ("1.2 2.4", "0.7 never")
    assert cells["rounds for it"] == ("4", "-")
    assert report.conclusion(altered).startswith("No speed-up to state: b1 never reached it.")


def test_the_report_names_a_rank_that_is_slow_rather_than_unlucky(summary):
    assert "Late far more often than by chance (33 %): rank 2 (75 %)." in report.next_steps(summary)
    alike = summary["b1"] | {"late_percent_per_rank": [30.0, 36.0, 34.0]}
    assert "No rank is late much more often than chance" in report.next_steps(
        summary | {"b1": alike}
    )


def test_the_report_says_which_b_to_try_next(summary):
    def arrivals(*means):
        kth = {str(k + 1): {"mean": mean} for k, mean in enumerate(means)}
        return report.next_steps(summary | {"b0": summary["b0"] | {"kth_arrival_ms": kth}})

    assert "b=2 would get most gradients through per second" in arrivals(10, 100, 200)
    assert "(6.67 times as many as b=0). Try it: hvd-backup demo -b 2." in arrivals(10, 100, 200)
    assert "and that is what was used here" in arrivals(90, 100, 400)
    assert "not worth a backup worker" in arrivals(98, 99, 100)


def test_a_short_run_is_called_short(summary):
    assert "much of this is chance" in report.conclusion(summary)
    long = summary | {"settings": summary["settings"] | {"rounds": 1000}}
    assert "chance" not in report.conclusion(long)


def test_one_seed_is_called_one_seed(summary):
    assert "--repeats" not in report.conclusion(summary)
    one = summary | {"settings": summary["settings"] | {"repeats": 1}}
    assert "One seed does not show" in report.conclusion(one)
