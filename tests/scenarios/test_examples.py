"""The example, alone and on several ranks."""

import re
import subprocess
import sys

import numpy as np
from launching import ROOT, run_ranks

EXAMPLE = ROOT / "examples" / "torch_mnist.py"


def accuracies(printed: str) -> list[float]:
    """Test accuracy of each epoch, in percent."""
    return [float(text) for text in re.findall(r"test accuracy ([\d.]+)%", printed)]


def test_the_example_runs_alone():
    command = [sys.executable, str(EXAMPLE), "--epochs", "3"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(accuracies(run.stdout)) == 3
    assert accuracies(run.stdout)[-1] > 60
    assert "per rank: [0]" in run.stdout


def test_the_example_runs_on_three_ranks_with_a_backup_worker():
    run = run_ranks(3, EXAMPLE, "--epochs", 4, "--backup-workers", 1)
    assert run.returncode == 0, run
    assert len(accuracies(run.stdout)) == 4, run
    assert accuracies(run.stdout)[-1] > 50, run
    assert re.search(r"per rank: \[\d+, \d+, \d+\]", run.stdout), run


def test_the_example_reads_mnist_files(tmp_path):
    for part, count in (("train", 64), ("t10k", 16)):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())
    run = run_ranks(2, EXAMPLE, "--epochs", 1, "--data", tmp_path)
    assert run.returncode == 0, run
    assert len(accuracies(run.stdout)) == 1, run
