"""How a process comes to a world: the ranks of the launcher, or some, and their configuration."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvd_backup import _core, errors
from hvd_backup.config import Config
from hvd_backup.phrases import quote_groups
from hvd_backup.world import launch, local_comm, mpi_library, mpirun
from hvd_backup.world.together import Together

if TYPE_CHECKING:
    from mpi4py import MPI


def ranks_of(comm: Any) -> list[int] | None:
    """The ranks that were given instead of a communicator."""
    if not isinstance(comm, list | tuple):
        return None
    if any(isinstance(rank, bool) or not isinstance(rank, int) for rank in comm):
        raise TypeError(f"init() takes an mpi4py communicator, or a list of ranks, not {comm!r}")
    return list(comm) or None  # Horovod's way to say: all


def launched_world() -> Any:
    """The communicator of all processes that the launcher has started, mpi4py's or ours."""
    how = launch.detect(os.environ)
    loaded: Any = sys.modules.get("mpi4py.MPI")
    if loaded is None or not loaded.Is_initialized():  # else MPI has taken it for a rank
        launch.check_is_no_child(os.environ, os.getpid(), _parents())
    if how.launcher == launch.LOCAL:
        return local_comm.world(os.environ)
    world = load_mpi().COMM_WORLD
    launch.check(how, world.rank, world.size, way_to_start)
    return world


def _parents() -> Iterator[tuple[int, str]]:
    """This process's parent, its parent and so on: ids and names, as far as they can be read."""
    pid = os.getppid()
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        before, _, after = stat.rpartition(")")
        yield pid, before.partition("(")[2]
        pid = int(after.split()[1])


def sub_world(world: Any, ranks: list[int]) -> Any:
    """The communicator of these ranks of the launcher's, which make it together."""
    if (
        world.rank not in ranks
        or len(set(ranks)) < len(ranks)
        or not set(ranks) <= set(range(world.size))
    ):
        raise ValueError(
            f"init({ranks}) on rank {world.rank} of {world.size}: only those ranks call it that "
            "are in the list, each of which is there once"
        )
    return world.Create_group(world.group.Incl(ranks))


def is_local(comm: object) -> bool:
    return isinstance(comm, local_comm.Intracomm)


def check_one_node(config: Config, size: int) -> None:
    if config.node_size is not None and config.node_size < size:
        raise errors.LaunchError(
            f"HVD_BACKUP_NODE_SIZE={config.node_size} makes several nodes of {size} ranks, which "
            f"exchange by MPI: start them with mpirun, not with {launch.LOCAL}"
        )


def load_mpi() -> Any:
    how = launch.detect(os.environ)
    if how.launcher in launch.BY_OPEN_MPI and "mpi4py.MPI" not in sys.modules:
        launch.check_before_init(how, mpi_library.version(), way_to_start)
    MPI = mpi_library.load()
    if not MPI.Is_initialized():
        MPI.Init_thread()
    if MPI.Is_finalized():
        raise errors.LaunchError("MPI has been finalized; init() must come before MPI.Finalize()")
    mpi_library.check(MPI)
    return MPI


def way_to_start(size: int) -> str:
    """What to type to start `ranks` ranks of the MPI that mpi4py loads."""
    return mpirun.way_to_start(mpi_library.version(), size)


def agree_on_config(comm: MPI.Intracomm) -> Config:
    """This process's configuration, once every rank has come and none objects to its own."""
    config, problem = Config(), ""
    try:
        config = Config.from_env(os.environ)
    except ValueError as error:
        problem = str(error)
    _await_all(comm, config.timeout)
    _await_all(comm, config.timeout)  # a rank that gave up at the first has come, too: see gate.py
    together = Together(comm, config.timeout, "init()")
    everybody = together.allgather((problem, config.node_size))
    for other, (text, _) in enumerate(everybody):
        if text:
            raise ValueError(f"rank {other}: {text}")
    sizes = [f"HVD_BACKUP_NODE_SIZE={size or ''}" for _, size in everybody]
    if len(set(sizes)) > 1:
        raise errors.LaunchError(
            f"the ranks disagree: {quote_groups(sizes)}; mpirun hands a variable to other hosts "
            "with -x NAME, `hvd-backup run` hands on all HVD_BACKUP_*"
        )
    return config


def _await_all(comm: MPI.Intracomm, timeout: float) -> None:
    """Wait for every rank to call init(); the first wait must have an end, too."""
    request = comm.Ibarrier()
    deadline = time.monotonic() + timeout
    while not request.Test():
        if time.monotonic() > deadline:
            _core.exit_without_mpi(True)
            raise errors.RoundTimeout(
                f"init(): not all {comm.size} ranks called it within {timeout:g} s; call it on "
                "every rank, with the same communicator, or raise HVD_BACKUP_TIMEOUT"
            )
        time.sleep(1e-3)
