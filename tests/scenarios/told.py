"""Reads what the ranks of a scenario told (programs/facts.py)."""

import json
import re
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"


def told(folder, ranks):
    """For every rank, the list of what it told."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for path in (folder / f"rank-{rank}.jsonl" for rank in range(ranks))
    ]


def assert_waited(text, words, timeout, most):
    """The text has these words, and in the place of `{}` how long was waited, in seconds."""
    before, after = map(re.escape, words.split("{}"))
    found = re.search(rf"{before}(\d+\.\d){after}", text)
    assert found, text
    assert timeout <= float(found[1]) <= most, text


def shared_memory():
    """Names in /dev/shm that have to do with us."""
    return {path.name for path in Path("/dev/shm").iterdir() if "hvd" in path.name}


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
