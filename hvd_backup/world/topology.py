"""Who is where: the ranks of the world and the nodes that they share."""

from __future__ import annotations

import ctypes
import os
import socket
from typing import TYPE_CHECKING

from hvd_backup import _core
from hvd_backup.world.local_comm import module_of

if TYPE_CHECKING:
    from hvd_backup.world.together import Together


class Topology:
    """This process's place in the world of `together`. All ranks make it together.

    A node is what shares memory; `node_size` splits it further, so that what goes on between nodes
    can be tried on one host.
    """

    def __init__(self, together: Together, node_size: int | None = None) -> None:
        self.together = together
        comm = together.comm
        MPI = module_of(comm)
        self.rank, self.size = comm.rank, comm.size
        host = comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)
        self.host_size = host.size
        """Ranks of this host."""
        node = host
        if node_size is not None:
            node = host.Split(host.rank // node_size, key=self.rank)
        self.node = together.of(node)
        """This node's ranks, in the world's order."""
        self.local_rank, self.local_size = node.rank, node.size
        of_host = together.of(host).bcast(self.rank)
        told = together.allgather((self.node.bcast(self.rank), of_host, socket.gethostname()))
        if node_size is not None:
            host.Free()
        self.hosts = len({first for _, first, _ in told})
        """The number of hosts that the world's nodes are on."""
        self.host_names = [name for _, _, name in told]
        """Of every rank: the name of the host that it is on."""
        first = [of_node for of_node, _, _ in told]
        nodes = {rank: node for node, rank in enumerate(sorted(set(first)))}
        self.node_of = [nodes[rank] for rank in first]
        """The node of every rank; nodes are numbered in the order of their first ranks."""
        self.cross_rank, self.cross_size = self.node_of[self.rank], len(nodes)
        self.local_ranks = [r for r, node in enumerate(self.node_of) if node == self.cross_rank]
        """This node's ranks, ascending."""

    @property
    def is_split(self) -> bool:
        """Whether there are several nodes."""
        return self.cross_size > 1

    def shared_segment(self, nbytes: int, own: tuple[int, int] = (0, 0)) -> _core.Segment:
        """Memory shared by the ranks of this node, zeroed. Raises on all ranks if on one.

        `own` is the part, from one byte to before another, that only this rank uses.
        """
        made = self.together.agree(
            lambda: _core.Segment.create(nbytes, own) if self.local_rank == 0 else None
        )
        path = self.node.bcast(made.path if made is not None else "")
        return self.together.agree(lambda: made or _core.Segment.open(path, nbytes))

    def can_read_remote(self) -> bool:
        """Whether every rank may read the memory of the others of its node. All ranks ask."""
        probe = ctypes.create_string_buffer(8)
        where = self.node.allgather((os.getpid(), ctypes.addressof(probe)))
        able = all(_core.can_read_remote(pid, address) for pid, address in where)
        return all(self.together.allgather(able))

    def choose_spin_limits(self) -> tuple[int, int]:
        """See ``spin_limits()``. The ranks of a node ask together."""
        cores: set[int] = set().union(*self.node.allgather(os.sched_getaffinity(0)))
        # Nodes that are parts of one host share its cores.
        return spin_limits(len(cores), self.host_size)


def spin_limits(cores: int, ranks: int) -> tuple[int, int]:
    """How often a waiting rank looks, and looks with sched_yield, before it sleeps.

    With a core of its own a rank may look for some microseconds; otherwise it would only keep the
    rank it waits for from running (measured: docs/measurements.md).
    """
    return (2000, 50) if cores >= ranks else (20, 100)
