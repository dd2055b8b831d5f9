"""Traces of what calls spend their time with."""

import json
import logging
import os

from hvd_backup.horovod.timeline import Timeline
from hvd_backup.world.table import Operation


def operation(name):
    return Operation("allreduce", f"allreduce of {name}", lambda _: None, name=name)


def test_a_trace_is_json_when_it_is_closed_and_lines_of_it_before(tmp_path):
    path = tmp_path / "trace.json"
    timeline = Timeline(str(path))
    for name in ("a", "b", "a"):
        timeline.record(operation(name), 1.0, 2.0)
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 2 + 3 * 2
    assert json.loads(path.read_text() + "]")
    timeline.close()
    events = json.loads(path.read_text())
    assert [event["pid"] for event in events if event["name"] == "ALLREDUCE"] == [1, 2, 1]


def test_an_empty_trace_is_json_too(tmp_path):
    timeline = Timeline(str(tmp_path / "trace.json"))
    timeline.close()
    timeline.close()  # nothing to do
    assert json.loads((tmp_path / "trace.json").read_text()) == []


def test_a_disk_that_is_full_ends_the_trace_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING, "hvd_backup"):
        timeline = Timeline("/dev/full")
        for _ in range(3):
            timeline.record(operation("a"), 1.0, 2.0)
        timeline.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the timeline /dev/full ends here: [Errno 28] No space left on device; the training goes on"
    ]


def test_a_forked_child_writes_nothing_to_its_parents_trace(tmp_path):
    timeline = Timeline(str(tmp_path / "trace.json"))
    timeline.record(operation("a"), 1.0, 2.0)
    before = (tmp_path / "trace.json").read_text()
    child = os.fork()
    if child == 0:
        del timeline  # as when its interpreter ends
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "trace.json").read_text() == before
    timeline.close()
