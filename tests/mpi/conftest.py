"""Under mpirun every rank runs the same tests, and the world passes or fails as one.

* A failure on one rank prints its report, with the rank, and ends the world: the other ranks are
  in a collective by then and would wait for ever.
* A test that exceeds its time limit (pytest-timeout's setting and marker) prints all ranks' Python
  stacks and ends the world.
* Only rank 0 shows progress.

Under ``hvd-backup run --no-mpi`` the tests run without pytest-mpi (``-p no:pytest_mpi``), and
nobody can import mpi4py.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hvd_backup.world import launch
from hvd_backup.world.joining import launched_world

WORLD = pytest.StashKey["World"]()
# How long a failed rank leaves the others to say that they failed too.
OTHERS_S = 1.0
# How long after a time limit a rank ends itself if nothing else has.
GIL_S = 8.0


class World:
    """This rank, what it needs to speak for all, and to end all."""

    def __init__(self) -> None:
        self.comm = launched_world()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.pids: list[int] = self.comm.allgather(os.getpid())
        self.folder = Path(self.comm.bcast(tempfile.mkdtemp() if self.rank == 0 else None))
        self.stderr = os.dup(2)  # pytest captures 2 during tests
        # Where this rank's stacks go when it is asked to show them, and where to read all ranks'.
        self.stacks = (self.folder / f"stacks-{self.rank}").open("w")
        faulthandler.register(signal.SIGUSR1, file=self.stacks, all_threads=True)
        os.mkfifo(self.folder / f"ask-{self.rank}")
        threading.Thread(target=self.show_stacks_when_asked, daemon=True).start()
        self.comm.Barrier()
        self.all_stacks = [(self.folder / f"stacks-{rank}").open() for rank in range(self.size)]
        self.timer: threading.Timer | None = None
        self.expired = False
        self.comm.Barrier()

    def say(self, text: str) -> None:
        """Write in one piece, so that mpirun does not mix the ranks' lines."""
        data = (text.rstrip() + "\n").encode()
        while data:
            data = data[os.write(self.stderr, data) :]

    def first_to(self, name: str) -> bool:
        """Whether no other rank has done `name` yet."""
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        except FileNotFoundError:  # the folder is gone: the world is ending
            return False
        return True

    def fail(self, headline: str, text: str) -> None:
        """Print the report of this rank's failure, then end the world."""
        heading = f"=== rank {self.rank} of {self.size}: {headline} "
        if self.first_to(hashlib.sha256(text.encode()).hexdigest()):
            self.say(f"\n{heading:=<100}\n{text}")
        else:
            self.say(f"{heading}(the same report as another rank's)")
        time.sleep(OTHERS_S)
        self.end()

    def end(self) -> None:
        """Abort. mpirun returns a non-zero exit status."""
        time.sleep(0.2)  # mpirun has to read what was said
        shutil.rmtree(self.folder, ignore_errors=True)
        self.comm.Abort(1)
        os._exit(1)

    def out_of_time(self, test: str, limit_s: float) -> None:
        """Show where all ranks are, then end the world. Runs in the timer's thread."""
        if not self.first_to("out-of-time"):
            return  # another rank does it
        self.expired = True
        try:
            stacks = self.ask_for_stacks()
            self.say(
                f"\n=== TIME LIMIT: rank {self.rank} of {self.size} is in {test} "
                f"since {limit_s:g} s; where the ranks are:\n"
                + "".join(
                    f"--- rank {rank} (pid {pid})\n{stack}"
                    for rank, (pid, stack) in enumerate(zip(self.pids, stacks, strict=True))
                )
            )
        finally:
            self.end()

    def show_stacks_when_asked(self) -> None:
        """Runs in a thread of its own, so that no thread moves while the stacks are walked."""
        with (self.folder / f"ask-{self.rank}").open():  # blocks until another opens it to write
            faulthandler.dump_traceback(self.stacks, all_threads=True)

    def ask_for_stacks(self) -> list[str]:
        """The stacks of every rank that still can show them."""
        for rank in range(self.size):
            with contextlib.suppress(OSError):  # nobody reads: that rank is gone
                os.close(os.open(self.folder / f"ask-{rank}", os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(1.0)
        stacks = [file.read() for file in self.all_stacks]
        silent = [rank for rank, stack in enumerate(stacks) if not stack]
        for rank in silent:  # its interpreter lock is held for good: a signal needs none
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], signal.SIGUSR1)
        time.sleep(1.0 if silent else 0.0)
        return [stack + file.read() for stack, file in zip(stacks, self.all_stacks, strict=True)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--staged", action="store_true", help="CPU gradients go the way of a GPU's, by the twins"
    )
    parser.addoption(
        "--mapped", action="store_true", help="and in memory that all ranks map, where that can be"
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    without_mpi = launch.detect(os.environ).launcher == launch.LOCAL
    if without_mpi:
        sys.modules["mpi4py"] = None  # type: ignore[assignment]  # an import of it fails
        config.addinivalue_line("markers", "mpi(min_size): as pytest-mpi's")
    elif not config.getoption("--with-mpi", default=False):
        return
    mapped = config.getoption("--mapped", default=False)  # mpi_tf has no such option
    if mapped:
        os.environ["HVD_BACKUP_DEVICE_PATH"] = "mapped"  # read by init()
    if mapped or config.getoption("--staged", default=False):
        from hvd_backup.torch import staging

        staging.STAGE_ON_CPU = True
    world = World()
    if without_mpi:
        config.pluginmanager.register(_MarksWithoutMPI(world))
    config.stash[WORLD] = world
    if world.rank != 0:
        progress = config.pluginmanager.get_plugin("terminalreporter")
        config.pluginmanager.unregister(progress)
        nowhere = Path(os.devnull).open("w")  # noqa: SIM115, as it stays open
        config.pluginmanager.register(pytest.TerminalReporter(config, nowhere), "terminalreporter")
    if world.size > 1:
        config.pluginmanager.register(_FailTogether(world))


def pytest_collection_finish() -> None:
    """Spares gc.collect() what was there before the tests: looking through it takes a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    world = config.stash.get(WORLD, None)
    if world is not None and world.rank == 0:
        shutil.rmtree(world.folder, ignore_errors=True)


class _MarksWithoutMPI:
    """What pytest-mpi makes of its marker."""

    def __init__(self, world: World) -> None:
        self.world = world

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        for mark in item.iter_markers(name="mpi"):
            if (least := mark.kwargs.get("min_size", 1)) > self.world.size:
                pytest.skip(f"needs {least} ranks, there are {self.world.size}")


class _FailTogether:
    """The hooks of a world of several ranks."""

    def __init__(self, world: World) -> None:
        self.world = world

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            output = "".join(f"\n--- {title}\n{text}" for title, text in report.sections)
            self.world.fail(f"{report.nodeid} failed ({report.when})", report.longreprtext + output)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.world.fail(f"{report.nodeid} cannot be collected", report.longreprtext)

    def pytest_internalerror(self, excrepr: object) -> None:
        self.world.fail("pytest failed", str(excrepr))

    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool:
        """Take the place of pytest-timeout's timer, which knows one process only."""
        limit_s = settings.timeout
        # In case the test holds the GIL, so that the timer's thread cannot run.
        faulthandler.dump_traceback_later(limit_s + GIL_S, exit=True, file=self.world.stderr)
        self.world.timer = threading.Timer(
            limit_s, self.world.out_of_time, (item.nodeid, float(limit_s))
        )
        self.world.timer.daemon = True
        self.world.timer.start()
        return True

    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> bool:
        faulthandler.cancel_dump_traceback_later()
        if self.world.timer is not None:
            self.world.timer.cancel()
            if self.world.expired:  # the signal may have ended what hung: too late all the same
                self.world.timer.join()
        return True


# `make test-launchers` sets it to horovod.torch: what these tests expect is then what that does.
MODULES = ["hvd_backup.torch", *filter(None, [os.environ.get("HVD_BACKUP_BESIDE")])]


@pytest.fixture(params=MODULES)
def hvd(request: pytest.FixtureRequest) -> Any:
    """The module under test, initialized."""
    module = importlib.import_module(request.param)
    if not module.is_initialized():
        module.init(process_sets="dynamic")
    return module
