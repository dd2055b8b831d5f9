"""What a world of several nodes needs besides shared memory: a service thread on each node.

The thread is in the process of the node's first rank. It never runs Python.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

from hvd_backup import _core, errors
from hvd_backup.world import mpi_library

if TYPE_CHECKING:
    from hvd_backup.config import Config
    from hvd_backup.world.topology import Topology

log = logging.getLogger("hvd_backup")

# A process that holds a service and ends waits for ranks that need it still, and says so.
_SAY_AFTER_S = 10.0
# After a failure nobody needs it any more, but to hear of the failure.
AFTER_FAILURE_S = 2.0


class NodeService:
    """One process's part in it. All ranks of the world make it together.

    Raises LaunchError, on every rank, when MPI cannot be used by a thread beside the caller's, and
    PeerFailed when the nodes cannot reach each other by TCP.
    """

    def __init__(self, topology: Topology, config: Config, board: _core.Segment) -> None:
        _check_thread_level(topology)
        self._topology = topology
        word = topology.shared_segment(_core.Doorbell.BYTES)
        agree = topology.together.agree
        made = agree(lambda: _core.Doorbell.create(word) if topology.local_rank == 0 else None)
        path = topology.node.bcast(made.path if made is not None else "")
        self.doorbell = agree(lambda: made or _core.Doorbell.open(word, path))
        self.service = self._start(config, board)

    def _start(self, config: Config, board: _core.Segment) -> _core.NodeService | None:
        topology = self._topology
        together = topology.together
        first, hub = topology.local_rank == 0, topology.rank == 0
        data = self._data_transport()
        token = together.bcast(together.agree(lambda: _core.make_token() if hub else b""))

        def make(coordinator: tuple[list[str], int] | None) -> _core.NodeService:
            return _core.NodeService(
                node_of=topology.node_of,
                rank=topology.rank,
                token=token,
                data=data,
                doorbell=self.doorbell,
                board=board,
                coordinator=coordinator,
                timeout=min(config.timeout, 60.0),
                silence=config.host_timeout,
            )

        def make_hub() -> tuple[list[str], _core.NodeService]:
            addresses = [socket.gethostname()] if not config.interface else []
            return addresses + _core.own_addresses(config.interface), make(None)

        of_hub = together.agree(lambda: make_hub() if hub else None, errors.LaunchError)
        where = together.bcast((of_hub[0], of_hub[1].port) if of_hub is not None else None)
        service = together.agree(
            lambda: make(where) if first and not hub else None, errors.LaunchError
        )
        return of_hub[1] if of_hub is not None else service

    def _data_transport(self) -> _core.DataTransport | None:
        """Of the node's first rank, which is the only one that exchanges data with other nodes."""
        together = self._topology.together
        # Agreed on before the blocking call of MPI, which nothing would end.
        MPI = together.agree(mpi_library.load, errors.LaunchError)
        first = self._topology.local_rank == 0
        leaders = together.comm.Split(0 if first else MPI.UNDEFINED, key=self._topology.rank)
        return together.agree(
            lambda: mpi_library.data_transport(leaders) if first else None, errors.LaunchError
        )

    def serve(
        self,
        channel: int,
        segment: _core.Segment,
        spec: _core.ArenaSpec,
        policy: _core.Policy,
        *,
        add: bool = False,
    ) -> None:
        """Let the nodes serve a collective; all ranks call it together, before the first round.

        With `add` the result is the sum, not the mean.
        """

        def take_on() -> None:
            if self.service is not None:
                self.service.add(
                    channel,
                    segment,
                    spec,
                    policy=policy,
                    sum=add,
                )

        self._topology.together.agree(take_on)


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


def _check_thread_level(topology: Topology) -> None:
    from mpi4py import MPI

    names = {
        MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
        MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
        MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
    }

    def check() -> None:
        if (level := MPI.Query_thread()) == MPI.THREAD_MULTIPLE:
            return
        raise errors.LaunchError(
            f"MPI was initialized with {names.get(level, level)}, but between "
            f"{topology.cross_size} nodes a thread of hvd_backup uses it beside yours: initialize "
            "MPI with MPI_THREAD_MULTIPLE, as mpi4py does by default (mpi4py.rc.thread_level)"
        )

    topology.together.agree(check, errors.LaunchError)
