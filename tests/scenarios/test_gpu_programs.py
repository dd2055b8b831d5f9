"""What runs on a GPU machine runs here on the CPU; and without a GPU it says what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "tests" / "gpu" / "run.py"


def run(*arguments, **env):
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def test_the_properties_that_are_to_hold_on_a_gpu_hold_for_the_twins():
    done = run("test", "--device", "cpu", "--no-build", "--ranks", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    properties = done.stdout.partition("== properties")[2]
    assert properties.count("\npass  ") == 17 + 15  # staged and mapped
    assert "the mean of all has the bits of a sum in ascending order" in done.stdout


def test_a_property_that_fails_fails_the_run(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import torch, os\ntorch.equal = lambda *_: os.environ['HVD_BACKUP_LAUNCH_RANK'] != '1'\n"
    )
    program = [str(ROOT / "tests" / "gpu" / "properties.py"), "--device", "cpu"]
    launcher = [sys.executable, "-m", "hvd_backup.cluster.local_run", "2"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*launcher, sys.executable, *program],
        cwd=ROOT,
        env={k: v for k, v in env.items() if v},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL  collectives take tensors of the device" in done.stderr


@pytest.mark.parametrize("what", ["test", "sanitize", "bench"])
def test_without_a_gpu_it_is_said_what_is_missing(what, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run(what, PATH=str(tmp_path))
    assert done.returncode == 2
    assert f"{what}: cannot run here; missing:" in done.stderr
    assert "  - nvcc: put the CUDA toolkit's bin folder on PATH" in done.stderr
    assert "  - a C++ compiler" in done.stderr
    assert "torch" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("sizes", ["0", "-1", "x", "2,,3", ""])
def test_sizes_that_are_none_are_refused(sizes):
    done = run("test", f"--ranks={sizes}")
    assert done.returncode == 2
    assert f"{sizes!r}: use numbers of ranks, as in 2,3,4" in done.stderr


ROW = {"what": "pack", "dtype": "float32", "mib": 1, "ms": 1.0, "gb_s": 2.0, "of_copy": 0.5}


def benchmark(folder, ranks, status=0):
    """How benchmarks/gpu.py ended, and what it wrote.

    With a program in the place of device_speed, which takes a compiler to build.
    """
    speed = folder / "device_speed"
    speed.write_text(f"#!/bin/sh\necho '{json.dumps(ROW)}'\nexit {status}\n")
    speed.chmod(0o755)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick"]
    command += ["--program", str(speed), "--ranks", str(ranks), "--out", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done, json.loads((folder / "gpu_cpu.json").read_text())


def test_the_benchmark_writes_what_it_prints(tmp_path):
    done, results = benchmark(tmp_path, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results["kernels"] == [ROW]
    rows = [(step["path"], step["ranks"], step["mib"]) for step in results["steps"]]
    assert rows == [("staged", 2, 1), ("staged", 2, 4), ("mapped", 2, 1), ("mapped", 2, 4)]
    assert all(step["library"] == "gloo" and step["library_ms"] > 0 for step in results["steps"])
    assert all(step["copies_ms"] > 0 and step["step_ms"] > 0 for step in results["steps"])
    assert "benchmarks/gpu.py --device cpu --quick" in results["meta"]["command"]
    assert "of a copy" in done.stdout


def test_what_was_measured_before_a_failure_is_kept(tmp_path):
    done, results = benchmark(tmp_path, ranks=1, status=3)
    assert done.returncode == 1, done.stdout + done.stderr
    assert results["kernels"] == [ROW]
    assert [failed["exit_status"] for failed in results["failed"]] == [3]
    assert len(results["steps"]) == 4
    assert "failed with exit status 3: " in done.stdout
