"""A host that is down sends nothing: no end of a connection, no reset."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
from hosts.network import Hosts

pytestmark = pytest.mark.usefixtures("hosts_possible")

ROUNDS = Path(__file__).parent / "programs" / "rounds.py"
SILENCE_S = 3


def said(ranks):
    found = re.findall(r"^\{.*\}$", ranks.stdout, re.MULTILINE)
    return {fact["rank"]: fact for fact in map(json.loads, found)}


def test_a_host_that_does_not_answer_is_named_long_before_the_time_out():
    env = {"HVD_BACKUP_HOST_TIMEOUT": str(SILENCE_S)}
    with (
        Hosts(3) as hosts,
        hosts.start([sys.executable, ROUNDS], ranks_per_host=1, env=env) as ranks,
    ):
        ranks.wait_for("ten rounds done", timeout=60, times=3)
        hosts.cut(2)
        began = time.monotonic()
        # mpirun hears nothing of host 2, and does not end by itself.
        while len(said(ranks)) < 2 and time.monotonic() - began < 30:
            time.sleep(0.1)
        facts = said(ranks)
        assert time.monotonic() - began < 6 * SILENCE_S, facts
    for rank in (0, 1):
        assert facts[rank]["error"] == "PeerFailed"
        assert f"{hosts.names[2]}, with rank 2, did not answer for 3 s" in facts[rank]["text"]
        assert "HVD_BACKUP_HOST_TIMEOUT" in facts[rank]["text"]
