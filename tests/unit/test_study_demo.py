"""The demo's settings, its progress display, and how it starts the ranks."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from hvd_backup.errors import LaunchError
from hvd_backup.study import mpirun
from hvd_backup.study.demo import display, follow, make_settings


def settings(**changes):
    values = {
        "ranks": 5,
        "backup_workers": 1,
        "rounds": None,
        "seed": 0,
        "repeats": None,
        "data": None,
        "target": None,
        "quick": False,
    }
    return make_settings(**(values | changes))


def test_the_defaults_suit_the_data_set():
    plain, quick = settings(), settings(quick=True)
    assert (plain.dataset, plain.rounds, plain.target_accuracy) == ("digits", 200, 0.93)
    assert plain.repeats > quick.repeats == 1
    assert quick.rounds < plain.rounds
    assert quick.target_accuracy < plain.target_accuracy


def test_what_the_user_says_beats_the_defaults():
    made = settings(quick=True, rounds=7, target=0.33)
    assert (made.rounds, made.target_accuracy) == (7, 0.33)


def test_a_wrong_folder_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="no data set found"):
        settings(data=tmp_path)


def messages():
    yield {"stage": "training"}
    for done in range(1, 101):
        yield {"round": done, "loss": None if done == 50 else 1 / done}


def test_without_a_terminal_progress_is_a_line_at_every_tenth():
    console = Console(file=io.StringIO(), width=100)
    with display("b=1", 100, console) as view:
        follow(messages(), view)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "b=1: training"
    assert lines[2] == "b=1: round 10 of 100, loss 0.100"
    assert lines[6] == "b=1: round 50 of 100"
    assert len(lines) == 12  # the stage, round 1, and ten more


def test_on_a_terminal_progress_is_a_bar():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with display("b=1", 100, console) as view:
        follow(messages(), view)
    text = console.file.getvalue()
    assert "100/100" in text
    assert "━" in text


def test_the_environment_fits_the_cores_and_the_user():
    alone = mpirun.environment({"HOME": "/x"}, ranks=2, cores=4, root=False)
    assert alone == {"HOME": "/x", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    crowded = mpirun.environment({}, ranks=3, cores=4, root=False)  # maybe 2 cores, 2 threads each
    assert crowded["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in crowded
    assert mpirun.environment({}, ranks=1, cores=2, root=True)["OMPI_ALLOW_RUN_AS_ROOT"] == "1"


def fake_mpirun(tmp_path: Path, monkeypatch, script: str) -> None:
    path = tmp_path / "mpirun"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(mpirun, "find_mpirun", lambda: str(path))


def test_json_lines_are_messages_and_all_lines_are_logged(tmp_path, monkeypatch):
    fake_mpirun(tmp_path, monkeypatch, """echo 'hello'; echo '{"round": 1}'; echo '{broken'""")
    log = tmp_path / "log"
    assert list(mpirun.run_ranks(2, ["module"], log)) == [{"round": 1}]
    assert log.read_text().splitlines() == ["hello", '{"round": 1}', "{broken"]


def test_a_failed_run_is_an_error_with_the_end_of_its_output(tmp_path, monkeypatch):
    fake_mpirun(tmp_path, monkeypatch, "echo '{}'; echo 'ValueError: why' >&2; exit 3")
    with pytest.raises(LaunchError, match=r"exit status 3.*\n.*ValueError: why") as error:
        list(mpirun.run_ranks(2, ["module"], tmp_path / "log"))
    assert "{}" not in str(error.value)


def test_who_stops_reading_ends_the_run(tmp_path, monkeypatch):
    script = """trap 'touch "$0.ended"; exit' TERM; echo '{"round": 1}'; sleep 60 & wait"""
    fake_mpirun(tmp_path, monkeypatch, script)
    run = mpirun.run_ranks(2, ["module"], tmp_path / "log")
    assert next(run) == {"round": 1}
    run.close()
    assert (tmp_path / "mpirun.ended").exists()
