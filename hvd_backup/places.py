"""Who is where: the ranks of the world and the nodes that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvd_backup import _core, errors
from hvd_backup.local_comm import module_of

if TYPE_CHECKING:
    from mpi4py import MPI


class Places:
    """This process's place in the world of `comm`. All ranks make it together.

    A node is what shares memory; `node_size` splits it further, so that what goes on between nodes
    can be tried on one host.
    """

    def __init__(self, comm: MPI.Intracomm, node_size: int | None = None) -> None:
        MPI = module_of(comm)
        self.comm = comm
        self.rank, self.size = comm.rank, comm.size
        host = comm.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)
        self.host_size = host.size
        """Ranks of this host."""
        self.node = host
        """The communicator of this node's ranks, in the world's order."""
        if node_size is not None:
            self.node = host.Split(host.rank // node_size, key=self.rank)
        self.local_rank, self.local_size = self.node.rank, self.node.size
        first = comm.allgather(self.node.bcast(self.rank))
        self.hosts = len(set(comm.allgather(host.bcast(self.rank))))
        """The number of hosts that the world's nodes are on."""
        if node_size is not None:
            host.Free()
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
        made: _core.Segment | None = None
        path, problem = "", ""
        if self.local_rank == 0:
            try:
                made = _core.Segment.create(nbytes, own)
                path = made.path
            except errors.Error as error:
                problem = str(error)
        path, problem = self.node.bcast((path, problem))
        if not problem and made is None:
            try:
                made = _core.Segment.open(path, nbytes)
            except errors.Error as error:
                problem = str(error)
        self.raise_together(problem)
        assert made is not None
        return made

    def raise_together(self, problem: str, kind: type[errors.Error] = errors.Error) -> None:
        """Raise, on every rank, the first rank's problem that is not empty. A barrier, too."""
        for rank, text in enumerate(self.comm.allgather(problem)):
            if text:
                raise kind(f"rank {rank}: {text}")
