"""`make bench` in its quick form: runs, and writes rows that make sense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = {"in_place", "end_to_end", "mpi_allreduce", "gloo", "memory_limit"}


def run(program: str, *args: str | Path) -> str:
    command = [sys.executable, ROOT / "benchmarks" / program, *args]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(180)
def test_the_quick_benchmark_writes_a_row_for_every_path_size_and_number_of_late_ranks(tmp_path):
    printed = run(
        "partial_allreduce.py", "--out", tmp_path, "--quick", "--ranks", "2", "--sizes", "4K,1M,16M"
    )
    result = json.loads((tmp_path / "partial_allreduce.json").read_text())
    found = {(row["ranks"], row["bytes"], row["late"], row["path"]) for row in result["rows"]}
    sizes = (4 << 10, 1 << 20, 16 << 20)
    assert found == {(2, size, late, path) for size in sizes for late in (0, 1) for path in PATHS}
    assert len(result["rows"]) == len(found)
    assert all(row["median_us"] > 0 for row in result["rows"])
    assert {"command", "date", "cpu", "cores", "versions"} <= set(result["meta"])
    assert (tmp_path / "partial_allreduce.png").stat().st_size > 10_000
    for path in PATHS:
        assert path in printed
    limits = [line.split() for line in printed.splitlines() if " memory_limit " in line]
    assert all(float(line[3]) > 0 for line in limits)
    assert printed.count("In a sentence: ") == 1
    assert "than MPI       median beside that of MPI_Allreduce" in printed
    assert "Do not quote it: --quick" in printed
    assert (
        run("partial_allreduce.py", "--out", tmp_path, "--show").splitlines()[:3]
        == printed.splitlines()[:3]
    )


def test_without_results_to_show_it_says_how_to_get_some(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "partial_allreduce.py", "--show"]
    done = subprocess.run(
        [*command, "--out", tmp_path],
        env={**os.environ, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "run `make bench`" in done.stderr


def save(fresh: Path, saved: Path, *names: str) -> subprocess.CompletedProcess[str]:
    folders = ["--source", str(fresh), "--target", str(saved)]
    command = [sys.executable, str(ROOT / "benchmarks" / "save.py"), *folders, *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_results_are_copied_to_where_they_are_committed_in_a_step_of_its_own(tmp_path):
    fresh, saved = tmp_path / "fresh", tmp_path / "saved"
    assert "run make bench first" in save(fresh, saved).stderr
    fresh.mkdir()
    for name, command in (("nodes", "python nodes.py"), ("keras_step", "python k.py --quick")):
        (fresh / f"{name}.json").write_text(json.dumps({"meta": {"command": command}}))
    (fresh / "nodes.png").write_bytes(b"picture")
    refused = save(fresh, saved)
    assert refused.returncode == 1
    assert "measured with --quick, which is not worth keeping: keras_step." in refused.stderr
    assert not saved.exists()
    done = save(fresh, saved, "nodes")
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in saved.iterdir()) == ["nodes.json", "nodes.png"]
    assert "there is no" in save(fresh, saved, "nods").stderr


def test_no_benchmark_writes_where_results_are_kept_unless_told_to():
    for program in ("partial_allreduce", "nodes", "training_step", "keras_step", "control_traffic"):
        code = f"import inspect, {program} as p; print(inspect.signature(p.main).parameters['out'])"
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
        )
        assert str(ROOT / "build" / "bench") in done.stdout


def test_a_size_that_is_no_size_is_refused_with_an_example(tmp_path):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "partial_allreduce.py",
        "--sizes",
        "4 potatoes",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "4K" in done.stderr


@pytest.mark.timeout(180)
def test_the_training_benchmark_measures_every_way_to_train(tmp_path):
    printed = run(
        "training_step.py", "--out", tmp_path, "--quick", "--ranks", "2", "--models", "mlp"
    )
    rows = json.loads((tmp_path / "training_step.json").read_text())["rows"]
    ours = {"hvd_backup", "hvd_backup_view"}
    ways = {"single_process", "no_exchange", *ours, "ddp_gloo", "mpi_allreduce"}
    find = [ROOT / "tests" / "launchers" / "build_horovod.sh", "--find"]
    if subprocess.run(find, capture_output=True, check=False).returncode == 0:
        ways.add("horovod")
    assert {row["way"] for row in rows} == ways
    assert all(row["step_ms"] > 0 for row in rows)
    assert all(way in printed for way in ways)


@pytest.mark.timeout(180)
def test_the_keras_benchmark_measures_every_way_to_step(tmp_path):
    options = ("--ranks", "1", "--models", "small", "--seconds", "0.3")
    printed = run("keras_step.py", "--out", tmp_path, *options)
    rows = json.loads((tmp_path / "keras_step.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["no_exchange", "py_function", "hvd_backup"]
    assert all(row["step_ms"] > 0 and row["way"] in printed for row in rows)


@pytest.mark.timeout(180)
def test_the_choices_of_the_core_are_measured_side_by_side():
    lines = run("choices.py", "--megabytes", "16").splitlines()
    # A heading; means, copies, receives and results.
    assert len(lines) == 1 + 2 + 3 + 2 + 1
    for line in lines[1:]:
        chosen, other, faster = map(float, line.split()[-3:])
        assert chosen > 0
        assert abs(other / chosen - faster) < 0.1 * faster + 0.1


@pytest.mark.timeout(180)
def test_control_traffic_grows_linearly_in_ranks(tmp_path):
    run("control_traffic.py", "--out", tmp_path, "--ranks", "100,1000", "--rounds", "10")
    rows = json.loads((tmp_path / "control_traffic.json").read_text())["rows"]
    messages = {(r["ranks"], r["ranks_per_node"]): r["reports"] + r["seals"] for r in rows}
    for per_node in (1, 8):
        assert 8 < messages[1000, per_node] / messages[100, per_node] < 12
    assert messages[1000, 8] < messages[1000, 1]
    assert all(row["coordinator_us"] > 0 for row in rows)


@pytest.mark.timeout(180)
def test_the_benchmark_of_nodes_measures_every_path_the_seal_and_the_service(tmp_path):
    printed = run("nodes.py", "--out", tmp_path, "--quick", "--sizes", "4K,1M", "--no-hosts")
    rows = json.loads((tmp_path / "nodes.json").read_text())["rows"]
    paths = ("in_place", "end_to_end", "mpi_allreduce")
    found = {(row["bytes"], row["late"], row["path"]) for row in rows if "path" in row}
    assert found == {
        (n, late, path) for n in (4 << 10, 1 << 20) for late in (0, 1) for path in paths
    }
    (seal,) = [row for row in rows if row.get("kind") == "seal"]
    assert 0 < seal["sealed_us"] <= seal["result_us"]
    (service,) = [row for row in rows if row.get("kind") == "service"]
    assert 0.2 < service["idle_ratio"] < 5
    assert "the seal known on every node" in printed
