"""An argument that contradicts the launcher's HVD_BACKUP_WORKERS."""

import dataclasses

import numpy as np
import pytest
from mpi.helpers import RANK, SIZE

import hvd_backup as hb
from hvd_backup.world import runtime

pytestmark = pytest.mark.mpi


@pytest.fixture
def told_by_launcher(monkeypatch):
    """The world as if the launcher had said so many."""
    hb.init()
    world = runtime.current()
    monkeypatch.setattr(world, "_contradicted", False)

    def tell(workers):
        config = dataclasses.replace(world.config, backup_workers=workers)
        monkeypatch.setattr(world, "config", config)

    return tell


@pytest.mark.skipif(SIZE == 1, reason="a rank alone has no backup workers")
def test_a_contradiction_is_told_once_by_rank_0_and_the_argument_wins(told_by_launcher, caplog):
    told_by_launcher(1)
    for name in ("first", "second"):
        _, round_ = hb.partial_allreduce(np.full(4, RANK, "float32"), backup_workers=0, name=name)
        assert len(round_.contributors) == SIZE
    warned = caplog.text.count("backup_workers=0 overrides HVD_BACKUP_WORKERS=1")
    assert warned == (RANK == 0)


@pytest.mark.parametrize(("launcher", "argument"), [(None, 0), (0, None), (0, 0)])
def test_what_does_not_contradict_is_not_told(told_by_launcher, caplog, launcher, argument):
    told_by_launcher(launcher)
    options = {"backup_workers": argument, "name": f"{launcher} {argument}"}
    hb.partial_allreduce(np.full(4, RANK, "float32"), **options)
    assert "HVD_BACKUP_WORKERS" not in caplog.text
