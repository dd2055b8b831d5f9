"""A rank that is late in nearly every round is named to the user."""

import re

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told

pytestmark = pytest.mark.timed


def warnings(folder, way, b, **more):
    run = run_ranks(3, PROGRAMS / "late_for_ever.py", folder, way, b, timeout=90, **more)
    assert run.returncode == 0, str(run)
    return [
        [text for text in rank[-1]["warnings"] if "hardly takes part" in text]
        for rank in told(folder, 3)
    ]


@pytest.mark.parametrize(
    ("way", "env", "no_mpi"),
    [
        ("numpy", {}, False),
        ("numpy", {}, True),
        ("numpy", {"HVD_BACKUP_NODE_SIZE": "2"}, False),
        ("torch", {}, False),
        ("ddp", {}, False),
        ("keras", {}, False),
    ],
)
def test_rank_0_names_it_once_with_its_share_and_what_to_do(tmp_path, way, env, no_mpi):
    by_rank_0, *others = warnings(tmp_path, way, 1, env=env, no_mpi=no_mpi)
    assert others == [[], []]
    (text,) = by_rank_0
    found = re.match(r"rank 2 hardly takes part: its gradient is in (\d+) of the last (\d+) ", text)
    assert found, text
    assert int(found[1]) < int(found[2]) / 6
    assert "chance would give" in text
    assert "(backup_workers=1 of 3 ranks)" in text
    assert "attempt()" in text
    assert "late='carry'" in text
    assert len(text) < 600  # no list of parameters
    assert "0.weight" not in text


def test_nobody_is_named_if_all_are_late_in_turn(tmp_path):
    assert warnings(tmp_path, "in turn", 1) == [[], [], []]


def test_nobody_is_named_without_backups(tmp_path):
    assert warnings(tmp_path, "numpy", 0) == [[], [], []]


def test_the_warning_can_be_switched_off(tmp_path):
    env = {"HVD_BACKUP_LATE_WARNING": "0"}
    assert warnings(tmp_path, "numpy", 1, env=env) == [[], [], []]
