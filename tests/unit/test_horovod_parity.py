"""docs/horovod.md is up to date, and true."""

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hvd_backup.torch as hvd
from hvd_backup.world import runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("horovod_table")


def test_the_page_is_what_the_table_says(table):
    assert table.PAGE.read_text() == table.page(), "run make docs-horovod"


def test_no_word_is_of_a_name_that_horovod_has_not(table):
    record = json.loads(table.RECORD.read_text())
    every = {name for names in record.values() for name in names}
    assert set(table.SAME_BUT) | set(table.DIFFERENCES) <= every
    assert set(table.TORCH_SAME_BUT) | set(table.TORCH_DIFFERENCES) <= set(record["torch"])
    assert all(name in record[module] for module, name in table.FORWARDS)


def test_what_is_the_same_is_called_as_in_horovod(table):
    """By the objects themselves, not by their sources."""
    record = json.loads(table.RECORD.read_text())["torch"]
    there = [n for n, v in table.verdicts()["torch"].items() if v.kind in ("same", "differs")]
    assert len(there) > 55
    for name in there:
        assert name in hvd.__all__
        signature = record[name]
        if isinstance(signature, str) or name == "DistributedOptimizer":
            continue
        call = inspect.signature(getattr(hvd, name))
        call.bind(*[None for _, optional in signature if not optional])
        call.bind(*[None for _ in signature])  # by position
        call.bind(**{argument: None for argument, _ in signature})  # and by name


def test_all_of_horovods_torch_but_what_is_said_is_there(table):
    verdicts = table.verdicts()["torch"]
    missing = {name for name, verdict in verdicts.items() if verdict.kind == table.MISSING}
    assert missing <= {"SyncBatchNorm"}


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ([["a", False]], [["a", False]], ""),
        ([["a", False], ["b", True]], [["a", False]], ""),
        ([["a", True]], [["a", False]], ""),
        ([["a", False], ["b", False]], [["a", False]], "needs b"),
        ([["a", False]], [["a", True]], "needs a"),
        ([["a", False]], [["a", False], ["b", True]], "without `b`"),
        ([["b", True], ["a", True]], [["a", True], ["b", True]], "another order"),
        ([["a", False], ["x", True], ["b", True]], [["a", False], ["b", True]], "by name: `b`"),
        ([["a", False], ["*", True], ["b", True]], [["a", False], ["b", True]], "by name: `b`"),
        ([["a", False], ["**k", True]], [["a", False], ["b", True]], ""),
        ([["a", False]], "value", "takes arguments"),
        ("value", "value", ""),
    ],
)
def test_signatures_are_compared_as_callers_see_them(table, ours, theirs, words):
    found = table.accepts(ours, theirs)
    assert words in found
    assert bool(found) == bool(words)


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50
    )


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("import hvd_backup.spark", "install horovod, or: start the ranks with mpirun"),
        ("from hvd_backup import ray", "install horovod, or: start the ranks with mpirun"),
        ("from hvd_backup import mxnet", "MXNet is retired"),
        ("from hvd_backup.torch import elastic", "restart from the last checkpoint"),
    ],
)
def test_what_is_horovods_own_is_refused_without_it_and_forwarded_with_it(
    statement, words, tmp_path
):
    without = "import sys; sys.modules['horovod'] = None\n"
    refused = run(without + statement)
    assert refused.returncode == 1
    assert "NotForwarded: hvd_backup." in refused.stderr
    assert words in refused.stderr
    # An installed one, as far as an import sees it.
    for name in ("spark", "ray", "mxnet", "torch/elastic"):
        package = tmp_path / "horovod" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("there = True\n")
    name = statement.split()[-1]
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    forwarded = run(f"{path}{statement}\nassert {name}.there")
    assert forwarded.returncode == 0, forwarded.stderr


def test_an_attribute_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = hvd.nothing


def test_adasum_is_refused_without_horovod(monkeypatch):
    import torch

    import hvd_backup as hb

    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    hb.init()
    try:
        with pytest.raises(
            NotImplementedError, match="op=Adasum is Horovod's own: install horovod"
        ):
            hvd.allreduce(torch.ones(2), op=hvd.Adasum)
    finally:
        hb.shutdown()


def test_a_call_before_init_is_horovods_value_error():
    with pytest.raises(ValueError, match="init"):
        hvd.rank()
    with pytest.raises(hvd.HorovodInternalError):
        hvd.mpi_threads_supported()


def test_what_the_build_has_is_answered_in_horovods_types(monkeypatch):
    import hvd_backup as hb

    hb.init()
    try:
        assert hvd.mpi_built() is True
        assert hvd.mpi_enabled() is True
        monkeypatch.setattr(runtime.current(), "mpi", object())
        assert hvd.mpi_enabled() is False
        with pytest.raises(ValueError, match="Horovod MPI is not enabled"):
            hvd.mpi_threads_supported()
        monkeypatch.undo()
        assert isinstance(hvd.mpi_threads_supported(), bool)
        assert hvd.nccl_built() == 0
        assert isinstance(hvd.cuda_built(), bool)
        asked = [hvd.gloo_built, hvd.gloo_enabled, hvd.ddl_built, hvd.ccl_built, hvd.rocm_built]
        assert [ask() for ask in asked] == [False] * 5
        assert hvd.is_homogeneous()
        hb.init([0])  # the same world, by its ranks
        hb.init([])
        with pytest.raises(ValueError, match=r"init\(\[1\]\) on rank 0 of 1"):
            hb.init([1])
        with pytest.raises(TypeError, match="or a list of ranks"):
            hb.init(["0"])
        with pytest.raises(ValueError, match="use a list of ProcessSet or 'dynamic'"):
            hb.init(process_sets="static")
        hb.init(process_sets="dynamic")
    finally:
        hb.shutdown()
