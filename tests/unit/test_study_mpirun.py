"""Reading what ranks print."""

import signal
import threading
import time

import pytest

from hvd_backup.study import mpirun


@pytest.fixture
def silent(tmp_path, monkeypatch):
    """An mpirun that prints two lines, the second in pieces, and then nothing for long."""
    script = tmp_path / "mpirun"
    script.write_text(
        '#!/bin/sh\necho \'{"a": 1}\'\nprintf \'{"b"\'\nsleep 0.1\necho ": 2}"\nsleep 30\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(mpirun, "find_mpirun", lambda: str(script))


@pytest.mark.timeout(20)
def test_ctrl_c_is_answered_though_it_came_just_before_a_wait_for_the_next_line(silent, tmp_path):
    def interrupt():
        time.sleep(0.3)
        # The handler runs in this thread: nothing wakes the one that reads.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    messages = mpirun.run_ranks(2, ["none"], tmp_path / "log")
    assert [next(messages), next(messages)] == [{"a": 1}, {"b": 2}]
    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(messages)
    assert time.monotonic() - began < 10
    thread.join()


def test_a_last_line_without_an_end_is_read(tmp_path, monkeypatch):
    script = tmp_path / "mpirun"
    script.write_text("#!/bin/sh\nprintf '{\"a\": 1}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(mpirun, "find_mpirun", lambda: str(script))
    assert list(mpirun.run_ranks(1, ["none"], tmp_path / "log")) == [{"a": 1}]
    assert (tmp_path / "log").read_text() == '{"a": 1}'
