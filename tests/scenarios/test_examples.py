"""The examples, alone and on several ranks."""

import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from launching import ROOT, run_ranks

EXAMPLE = ROOT / "examples" / "torch_mnist.py"
RESNET = ROOT / "examples" / "torch_resnet.py"
EMBEDDING = ROOT / "examples" / "torch_embedding_sparse.py"
KERAS_EXAMPLE = ROOT / "examples" / "keras_mnist.py"
CUSTOM_LOOP = ROOT / "examples" / "tensorflow_custom_loop.py"
TF_ENV = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


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
    assert run.returncode == 0, str(run)
    assert len(accuracies(run.stdout)) == 4, str(run)
    assert accuracies(run.stdout)[-1] > 50, str(run)
    assert re.search(r"per rank: \[\d+, \d+, \d+\]", run.stdout), str(run)


def test_the_example_follows_the_launcher_and_says_so_if_it_does_not():
    asked = {"HVD_BACKUP_WORKERS": "1"}
    run = run_ranks(2, EXAMPLE, "--epochs", 1, env=asked)
    assert run.returncode == 0, str(run)
    late = re.search(r"per rank: \[(\d+), (\d+)\]", run.stdout).groups()
    assert sum(map(int, late)) > 0, str(run)
    assert "overrides" not in run.stderr, str(run)
    run = run_ranks(2, EXAMPLE, "--epochs", 1, "--backup-workers", 0, env=asked)
    assert run.returncode == 0, str(run)
    assert "per rank: [0, 0]" in run.stdout, str(run)
    assert run.stderr.count("backup_workers=0 overrides HVD_BACKUP_WORKERS=1") == 1, str(run)


def test_the_example_reads_mnist_files(tmp_path):
    for part, count in (("train", 64), ("t10k", 16)):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())
    run = run_ranks(2, EXAMPLE, "--epochs", 1, "--data", tmp_path)
    assert run.returncode == 0, str(run)
    assert len(accuracies(run.stdout)) == 1, str(run)


def test_the_resnet_has_every_idiom_and_resumes_from_rank_0s_checkpoint(tmp_path):
    given = ("--checkpoints", tmp_path, "--batch-size", 16, "--batches-per-allreduce", 2, "--amp")
    run = run_ranks(2, RESNET, "--epochs", 1, *given, "--fp16-allreduce")
    assert run.returncode == 0, str(run)
    assert "epoch 1:" in run.stdout, str(run)
    run = run_ranks(2, RESNET, "--epochs", 2, *given, "--backup-workers", 1)
    assert run.returncode == 0, str(run)
    assert "epoch 1:" not in run.stdout, str(run)
    assert re.search(r"epoch 2: loss \d", run.stdout), str(run)
    assert accuracies(run.stdout)[0] > 40, str(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-1.pt",
        "checkpoint-2.pt",
    ]


def test_the_sparse_embedding_learns_on_three_ranks_with_a_backup_worker():
    run = run_ranks(3, EMBEDDING, "--epochs", 3, "--backup-workers", 1)
    assert run.returncode == 0, str(run)
    assert accuracies(run.stdout)[-1] > 75, str(run)
    rows, of = map(int, re.search(r"had (\d+) of (\d+) rows", run.stdout).groups())
    assert 0 < rows < of / 2, str(run)


def test_the_sparse_embedding_reads_reviews_packed_or_not(tmp_path):
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    packed.mkdir()
    with zipfile.ZipFile(packed / "movie_reviews.zip", "w") as archive:
        for i in range(40):
            name = f"{'pos' if i % 2 else 'neg'}/cv{i:03}.txt"
            archive.writestr(f"movie_reviews/{name}", f"a {'fine' if i % 2 else 'dull'} film {i}")
            (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
            (unpacked / name).write_text(f"a {'fine' if i % 2 else 'dull'} film {i}")
    for folder in (packed, unpacked):
        options = ["--epochs", "6", "--batch-size", "8", "--lr", "1"]
        command = [sys.executable, str(EMBEDDING), *options]
        run = subprocess.run(
            [*command, "--data", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert accuracies(run.stdout)[-1] > 90


@pytest.mark.timeout(180)
@pytest.mark.parametrize("b", [0, 1])
def test_the_keras_example_runs_on_two_ranks_with_and_without_a_backup_worker(b):
    run = run_ranks(2, KERAS_EXAMPLE, "--epochs", 4, "--backup-workers", b, env=TF_ENV)
    assert run.returncode == 0, str(run)
    assert len(accuracies(run.stdout)) == 4, str(run)
    assert accuracies(run.stdout)[-1] > 40, str(run)
    assert re.search(r"per rank: \[\d+, \d+\]", run.stdout), str(run)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("ranks", "options"), [(1, ["--tape"]), (2, ["--backup-workers", 1])])
def test_the_custom_loop_runs_with_a_tape_and_with_an_optimizer(ranks, options):
    run = run_ranks(ranks, CUSTOM_LOOP, *options, env=TF_ENV)
    assert run.returncode == 0, str(run)
    assert accuracies(run.stdout)[-1] > 70, str(run)


@pytest.mark.parametrize("library", ["accelerate", "lightning", "trainer"])
def test_libraries_on_ddp_train_on_two_ranks_with_a_backup_worker(library):
    program = ROOT / "examples" / f"torch_{library}.py"
    run = run_ranks(2, program, "--epochs", 2, "--backup-workers", 1)
    assert run.returncode == 0, str(run)
    assert accuracies(run.stdout)[-1] > 50, str(run)
    told = re.findall(r"\((\d+), (\d+)\)", run.stdout)
    rounds, late = zip(*(map(int, one) for one in told), strict=True)
    assert len(rounds) == 2, str(run)
    assert len(set(rounds)) == 1, str(run)
    assert sum(late) == rounds[0], str(run)  # one of two in every round
