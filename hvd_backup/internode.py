"""What a world of several nodes needs besides shared memory: a service thread on each node.

The thread is in the process of the node's first rank. It never runs Python.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

from hvd_backup import _core, errors

if TYPE_CHECKING:
    from hvd_backup.config import Config, RoundOptions
    from hvd_backup.places import Places

log = logging.getLogger("hvd_backup")

# A process that holds a service and ends waits for ranks that need it still, and says so.
_SAY_AFTER_S = 10.0
# After a failure nobody needs it any more, but to hear of the failure.
AFTER_FAILURE_S = 2.0


class Internode:
    """One process's part in it. All ranks of the world make it together.

    Raises LaunchError, on every rank, when MPI cannot be used by a thread beside the caller's, and
    PeerFailed when the nodes cannot reach each other by TCP.
    """

    def __init__(self, places: Places, config: Config, board: _core.Segment) -> None:
        _check_thread_level(places)
        self._places = places
        word = places.shared_segment(_core.Doorbell.BYTES)
        is_first = places.local_rank == 0
        made = _core.Doorbell.create(word) if is_first else None
        path = places.node.bcast(made.path if made is not None else "")
        self.doorbell = made or _core.Doorbell.open(word, path)
        self.service = self._start(config, board)

    def _start(self, config: Config, board: _core.Segment) -> _core.NodeService | None:
        from mpi4py import MPI

        places = self._places
        token = places.comm.bcast(_core.make_token() if places.rank == 0 else b"")
        first = places.local_rank == 0
        leaders = places.comm.Split(0 if first else MPI.UNDEFINED, key=places.rank)
        data = None
        if first:
            from hvd_backup import _mpi

            data = _mpi.data_transport(MPI._handleof(leaders))  # noqa: SLF001

        def make(coordinator: tuple[list[str], int] | None) -> _core.NodeService:
            return _core.NodeService(
                node_of=places.node_of,
                rank=places.rank,
                token=token,
                data=data,
                doorbell=self.doorbell,
                board=board,
                coordinator=coordinator,
                timeout=min(config.timeout, 60.0),
            )

        service, problem, coordinator = None, "", None
        try:
            if places.rank == 0:
                addresses = [socket.gethostname()] if not config.interface else []
                addresses += _core.own_addresses(config.interface)
                service = make(None)
                coordinator = (addresses, service.port)
        except (errors.Error, ValueError) as error:
            problem = str(error)
        coordinator = places.comm.bcast(coordinator)
        try:
            if first and places.rank != 0 and coordinator is not None:
                service = make(coordinator)
        except errors.Error as error:
            problem = str(error)
        places.raise_together(problem, errors.LaunchError)
        return service

    def serve(
        self,
        channel: int,
        segment: _core.Segment,
        spec: _core.ArenaSpec,
        options: RoundOptions,
        *,
        add: bool = False,
    ) -> None:
        """Let the nodes serve a collective; all ranks call it together, before the first round.

        With `add` the result is the sum, not the mean.
        """
        problem = ""
        if self.service is not None:
            try:
                self.service.add(
                    channel,
                    segment,
                    spec,
                    backup_workers=options.backup_workers,
                    grace=options.grace,
                    sum=add,
                )
            except errors.Error as error:
                problem = str(error)
        self._places.raise_together(problem)


def is_over(service: _core.NodeService) -> bool:
    """Whether nobody needs it any more; it is ended then."""
    over = service.wait_until_over(0)
    if over:
        service.close()
    return over


def close(service: _core.NodeService, *, failed: bool) -> None:
    """End a node's service once no rank needs it: late ranks still load rounds through it."""
    start = time.monotonic()
    said = False
    while not service.wait_until_over(0.2) and not service.problem:
        waited = time.monotonic() - start
        if failed and waited > AFTER_FAILURE_S:
            break
        if waited > _SAY_AFTER_S and not said:
            said = True
            log.warning(
                "this process has ended its work and waits for ranks that have not: it passes "
                "on the results of its node"
            )
    service.close()


def _check_thread_level(places: Places) -> None:
    from mpi4py import MPI

    names = {
        MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
        MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
        MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
    }
    problem = ""
    if (level := MPI.Query_thread()) != MPI.THREAD_MULTIPLE:
        problem = (
            f"MPI was initialized with {names.get(level, level)}, but between "
            f"{places.cross_size} nodes a thread of hvd_backup uses it beside yours: initialize "
            "MPI with MPI_THREAD_MULTIPLE, as mpi4py does by default (mpi4py.rc.thread_level)"
        )
    places.raise_together(problem, errors.LaunchError)
