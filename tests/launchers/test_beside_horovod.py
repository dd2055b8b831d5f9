"""Tests of what Horovod does, run against Horovod itself: what they expect is what it does.

And the record of its names, held against the installed one.
"""

import json
import sys

import pytest
from launchers.told import run_command
from launching import ROOT

pytestmark = pytest.mark.timeout(400)

FILES = [f"tests/mpi/test_horovod_{what}.py" for what in ("collectives", "odd_inputs", "optimizer")]
SIGNATURES = """
import inspect, json, horovod.torch as hvd
print(json.dumps({
    name: [p.name for p in inspect.signature(value).parameters.values()]
    for name, value in vars(hvd).items()
    if callable(value) and not name.startswith("_") and not inspect.isclass(value)
}))
"""


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_horovod_does_what_the_tests_expect_of_ours(horovod, open_mpi, ranks, file):
    run_beside({**horovod, "HVD_BACKUP_BESIDE": "horovod.torch"}, open_mpi, ranks, file)


@pytest.mark.parametrize("ranks", [2, 3])
def test_horovods_tensorflow_does_what_the_tests_expect_of_ours(
    horovod_tensorflow, open_mpi, ranks
):
    beside = {**horovod_tensorflow, "HVD_BACKUP_BESIDE": "horovod.tensorflow"}
    run_beside(beside, open_mpi, ranks, "tests/mpi_tf/test_horovod_tensorflow.py")


def run_beside(env, open_mpi, ranks, file):
    pytest_words = ["--color=no", "--with-mpi", "-m", "mpi", "-q", file]
    run = run_command(
        *(open_mpi, "-n", ranks, sys.executable, "-m", "pytest", *pytest_words),
        env=env,
        timeout=360,
    )
    assert run.returncode == 0, run
    assert " passed" in run.stdout, run
    assert "skipped" not in run.stdout, run


def test_the_record_is_that_of_the_installed_horovod(horovod):
    run = run_command(sys.executable, "-c", SIGNATURES, env=horovod)
    assert run.returncode == 0, run
    installed = json.loads(run.stdout.splitlines()[-1])
    record = json.loads((ROOT / "tests/data/horovod_0_28_1.json").read_text())["torch"]
    functions = {name: args for name, args in record.items() if not isinstance(args, str)}
    classes = {"ProcessSet", "SyncBatchNorm"}
    handed_on = {"init", "shutdown"}  # *args, **kwargs: the record has what they are handed on to
    internal = {"check_extension"}
    assert set(functions) - classes == set(installed) - internal
    for name in set(installed) - handed_on - internal:
        assert [argument for argument, _ in functions[name]] == installed[name], name
