"""TensorFlow and Keras: errors of a graph's exchange, and the import under another backend."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, run_ranks

PROGRAM = Path(__file__).parent / "programs" / "tf_late_error.py"


@pytest.mark.timeout(180)
def test_an_error_of_a_round_in_a_graph_has_its_text_and_can_have_its_type():
    run = run_ranks(2, PROGRAM, timeout=150)
    words = r"round 1, rank 0: 1 of 2 contributions .* missing rank 1"
    assert re.search(rf"^fit: .*{words}", run.stdout, re.MULTILINE), str(run)
    text = run.stdout.partition("TensorFlow: ")[2]
    assert re.search(rf"RoundTimeout: .*{words}", text), str(run)
    assert run.stdout.count("done") == 2, str(run)


def test_another_backend_of_keras_is_refused_in_words():
    run = subprocess.run(
        [sys.executable, "-c", "import hvd_backup.keras"],
        env={**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "needs Keras' TensorFlow backend, not jax: set KERAS_BACKEND=tensorflow" in run.stderr
