"""What reports about a training never ends it."""

import pytest
from launching import run_ranks
from scenarios.told import PROGRAMS, told


@pytest.mark.parametrize(
    ("way", "words", "env"),
    [
        ("setting", "/dev/full ends here: [Errno 28]", {"HOROVOD_TIMELINE": "/dev/full"}),
        ("setting", "no timeline is written", {"HOROVOD_TIMELINE": "/no/such/folder/trace.json"}),
        ("call", "/dev/full ends here: [Errno 28]", {}),
        ("folder", "no timeline is written", {}),
    ],
)
def test_a_timeline_that_cannot_be_written_is_warned_of_once(tmp_path, way, words, env):
    run = run_ranks(3, PROGRAMS / "full_disk.py", tmp_path, way, env=env, timeout=60)
    assert run.returncode == 0, str(run)
    for rank, facts in enumerate(told(tmp_path, 3)):
        assert (facts[-1]["value"], facts[-1]["total"]) == ([1.0] * 3, [3.0] * 3)
        assert len(facts[-1]["warnings"]) == (rank == 0), facts
        assert rank > 0 or words in facts[-1]["warnings"][0]
