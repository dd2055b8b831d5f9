"""Boards of several nodes in one process, and the wires between them."""

from collections import deque

from hvd_backup._core import Segment, StatusBoard
from hvd_backup.world.board import Board


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Nodes:
    """Boards of several nodes, and the wires between them: what is told arrives when a test says.

    `ranks` lists the ranks of each node.
    """

    def __init__(self, *ranks):
        self.clock = Clock()
        self.rings = 0
        world = sum(map(len, ranks))
        segments = [Segment.create(Board.bytes(world)) for _ in ranks]
        self.statuses = [StatusBoard(segment, world) for segment in segments]
        nodes = range(len(ranks))
        self.wires = {(a, b): deque() for a in nodes for b in nodes if a != b}
        self.boards = [None] * world
        for segment, local in zip(segments, ranks, strict=True):
            for rank in local:
                self.boards[rank] = Board(segment, world, rank, local, self._ring, clock=self.clock)

    def _ring(self):
        self.rings += 1

    def send(self):
        """What every node's service does when it is rung for."""
        for node, statuses in enumerate(self.statuses):
            for rank in range(len(self.boards)):
                if statuses.take_untold(rank):
                    flags = (rank in statuses.left(), rank in statuses.dead())
                    for (sender, _), wire in self.wires.items():
                        if sender == node:
                            wire.append((rank, *flags, statuses.read(rank)))

    def receive(self, wire):
        """The oldest message of a wire."""
        rank, left, dead, payload = self.wires[wire].popleft()
        statuses = self.statuses[wire[1]]
        statuses.write(rank, payload)
        if left:
            statuses.set_left(rank)
        if dead:
            statuses.set_dead(rank)

    def pass_on(self):
        """All that was told arrives."""
        self.send()
        for wire, messages in self.wires.items():
            while messages:
                self.receive(wire)
