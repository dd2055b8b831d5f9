"""`hvd-backup demo`, as a user runs it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, Ranks

pytestmark = pytest.mark.timed

DEMO = [sys.executable, "-m", "hvd_backup.cli", "demo", "--quick", "--ranks", "3", "--repeats", "2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The folder of the results, and what was printed."""
    out = tmp_path_factory.mktemp("demo")
    command = [*DEMO, "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return out, run.stdout


@pytest.fixture(scope="module")
def summary(demo) -> dict:
    return json.loads((demo[0] / "summary.json").read_text())


def test_the_replicas_end_with_the_same_bits(summary):
    assert summary["replicas_identical"] is True


def test_nothing_is_dropped_without_backup_workers(summary):
    assert summary["b0"]["dropped_per_rank"] == [0, 0, 0]
    assert summary["b0"]["skipped_per_rank"] == [0, 0, 0]


def test_at_most_one_gradient_per_round_is_dropped_with_one_backup_worker(summary):
    rounds = summary["settings"]["rounds"] * summary["settings"]["repeats"]
    assert 0 < sum(summary["b1"]["dropped_per_rank"]) <= rounds
    assert all(dropped < rounds for dropped in summary["b1"]["dropped_per_rank"])


@pytest.mark.parametrize("name", ["b0", "b1"])
def test_the_summary_of_a_run_is_complete_and_plausible(summary, name):
    run = summary[name]
    steps = run["step_ms"]
    assert 0 < steps["p50"] <= steps["p95"] <= steps["p99"]
    assert 0.3 < run["final_accuracy"] <= 1
    assert run["training_s"] > 0
    if run["time_to_accuracy_s"] is not None:
        assert 0 < run["time_to_accuracy_s"] <= run["training_s"]


def test_the_speedup_is_there_or_its_absence_explained(summary):
    if summary["speedup"] is None:
        assert "never reached" in summary["speedup_note"]
    else:
        times = [summary[name]["time_to_accuracy_by_seed_s"] for name in ("b0", "b1")]
        ratios = [before / after for before, after in zip(*times, strict=True)]
        assert summary["speedup_by_seed"] == pytest.approx(ratios, rel=0.01)
        assert summary["speedup"] == pytest.approx(sum(ratios) / 2, rel=0.01)


def test_the_seeds_differ_and_each_has_its_time(summary):
    assert summary["settings"]["repeats"] == 2
    for name in ("b0", "b1"):
        assert len(summary[name]["time_to_accuracy_by_seed_s"]) == 2


def test_who_is_late_adds_up_to_the_backup_workers(summary):
    percents = summary["b1"]["late_percent_per_rank"]
    assert 0 < sum(percents) <= 100.2  # one rank of three at most, in each round
    assert summary["b1"]["late_percent_by_chance"] == 33.3


def test_the_last_gradient_is_what_a_round_waits_for(summary):
    assert summary["b0"]["kth_arrival_ms"]["3"] == pytest.approx(
        summary["b0"]["step_ms"], rel=0.05, abs=1
    )
    assert list(summary["b1"]["kth_arrival_ms"]) == ["1", "2"]


def test_the_report_and_its_pictures_are_there(demo):
    out, _ = demo
    for name in ("arrivals", "steps", "late", "accuracy"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (out / "report.html").read_text()


def test_it_prints_progress_a_table_and_the_commands_for_a_script_of_ones_own(demo):
    _, printed = demo
    for words in (
        "b=0, 3 of 3 ranks: round 200 of 200",
        "b=1, 2 of 3 ranks: round 200 of 200",
        "step time p99",
        "What to do next:",
        "mpirun -np 3 -x HVD_BACKUP_WORKERS=1 python train.py",
        "srun --mpi=pmix -n 3 python train.py",
    ):
        assert words in printed


def test_ctrl_c_ends_the_demo_and_its_ranks(tmp_path):
    command = [*DEMO, "--rounds", "100000", "--out", str(tmp_path)]
    with Ranks(3, command, {}) as started:
        started.wait_for("training", timeout=120)
        started.process.send_signal(signal.SIGINT)
        run = started.wait(timeout=30)
        assert run.returncode != 0
        assert "Traceback" not in run.stderr, str(run)
        assert started.survivors() == []


def test_a_rank_that_fails_ends_the_demo_with_its_message(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):  # two images, too few for three ranks
        (folder / name).write_bytes(bytes(2 * 3073))
    command = [*DEMO, "--data", str(folder), "--out", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "2 images are too few for 3 ranks" in run.stderr
    assert "hvd_backup/cli.py" not in run.stderr  # no traceback of the demo itself
