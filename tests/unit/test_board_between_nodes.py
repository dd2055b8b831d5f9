"""The notice boards of several nodes: what is told, when, and what follows from it however late."""

import os
import random

import pytest
from unit.boards import Nodes

from hvd_backup._core import Segment, StatusBoard
from hvd_backup.errors import Mismatch
from hvd_backup.world.board import TELL_AFTER_S, TELL_SETUP_AFTER_S, Board


def test_a_failure_and_a_leave_are_told_at_once(nodes):
    nodes.boards[0].fail(Mismatch("wrong"))
    assert nodes.rings == 1
    nodes.boards[1].leave()
    assert nodes.rings == 2
    nodes.pass_on()
    assert nodes.boards[2].left() == [1]
    with pytest.raises(Mismatch, match="rank 0 failed: wrong"):
        nodes.boards[3].check()


@pytest.mark.parametrize(
    ("wait", "after"),
    [
        (lambda board: board.check_same_call("round", 3), TELL_AFTER_S),
        (lambda board: board.still_waiting(), TELL_SETUP_AFTER_S),
    ],
)
def test_a_call_is_told_once_and_only_when_it_lasts(nodes, wait, after):
    board = nodes.boards[0]
    if after == TELL_SETUP_AFTER_S:
        board.enter_setup("a model", 3)
    wait(board)
    nodes.clock.now += 0.9 * after
    wait(board)
    assert nodes.rings == 0
    nodes.clock.now += 0.2 * after
    for _ in range(3):
        wait(board)
        nodes.clock.now += after
    assert nodes.rings == 1


def test_a_healthy_training_tells_nothing(nodes):
    for number in range(20):
        for board in nodes.boards:
            board.check_same_call("step", number)
            nodes.clock.now += 0.2
            board.check_same_call("step", number)
        if number % 5 == 0:
            for board in nodes.boards:
                board.enter_setup("barrier()", number + 1)
                nodes.clock.now += 0.01
                board.still_waiting()
            for board in nodes.boards:
                board.still_waiting()
                board.finish_setup()
            nodes.clock.now += 2.0
            for board in nodes.boards:
                board.still_waiting()
    assert nodes.rings == 0


def test_a_row_is_not_written_again_while_nothing_changes():
    segment = Segment.create(Board.bytes(2))
    board = Board(segment, 2, 0, [0])
    statuses = StatusBoard(segment, 2)
    board.check_same_call("round", 1)
    assert statuses.written() == [0]
    for _ in range(3):
        board.check_same_call("round", 1)
    assert statuses.written() == []
    board.check_same_call("round", 2)
    assert statuses.written() == [0]


def test_a_rank_of_another_node_is_dead_when_it_is_flagged_and_has_not_left():
    nodes = Nodes([0], [1], [2])
    nodes.statuses[0].set_dead(2)
    assert nodes.boards[0].dead() == [2]
    nodes.statuses[0].set_left(2)
    assert nodes.boards[0].dead() == []


def test_a_killed_rank_is_told_to_the_other_nodes_once():
    segment = Segment.create(Board.bytes(4))
    rings = []
    board = Board(segment, 4, 1, [1, 2], lambda: rings.append(1))
    path = segment.path  # a child has no descriptor of its parent's
    child = os.fork()
    if child == 0:
        Board(Segment.open(path, segment.size), 4, 2, [1, 2])
        os._exit(0)  # without leaving
    os.waitpid(child, 0)
    for _ in range(3):
        assert board.dead() == [2]
    statuses = StatusBoard(segment, 4)
    assert (statuses.dead(), len(rings), statuses.take_untold(2)) == ([2], 1, True)


def test_a_rank_that_has_left_before_it_ended_is_not_dead():
    segment = Segment.create(Board.bytes(2))
    board = Board(segment, 2, 0, [0, 1])
    path = segment.path
    child = os.fork()
    if child == 0:
        Board(Segment.open(path, segment.size), 2, 1, [0, 1]).leave()
        os._exit(0)
    os.waitpid(child, 0)
    assert (board.dead(), board.left()) == ([], [1])


def test_a_set_up_told_late_is_no_mismatch_to_those_who_have_been_through_it(nodes):
    boards = nodes.boards
    boards[2].enter_setup("a model", 0)
    nodes.clock.now += TELL_SETUP_AFTER_S
    boards[2].still_waiting()
    nodes.send()  # and is long under way
    for board in boards:
        board.enter_setup("a model", 0)
    for board in boards:
        board.finish_setup()
    nodes.pass_on()
    for _ in range(3):
        boards[0].check_same_call("round", 0)


def test_ranks_of_different_nodes_in_different_rounds_raise_mismatch_when_they_have_told(nodes):
    boards = nodes.boards
    for seconds in (0, TELL_AFTER_S):
        nodes.clock.now += seconds
        boards[2].check_same_call("collective 2", 5)
        boards[0].check_same_call("collective 1", 5)
        nodes.pass_on()
    for one, other in ((0, 2), (2, 0)):
        mine, theirs = f"collective {one // 2 + 1}", f"collective {other // 2 + 1}"
        with pytest.raises(Mismatch, match=f"rank {one} is in {mine}, rank {other} in {theirs}"):
            boards[one].check_same_call(mine, 5)


def test_a_round_that_was_one_of_another_collective_here_is_a_mismatch_in_any_later_call(nodes):
    boards = nodes.boards
    for number, call in enumerate(["first", "second"]):
        for board in boards:
            board.changes_to(call, number)
    boards[0].changes_to("first", 2)
    boards[2].check_same_call("second", 2)
    nodes.clock.now += TELL_AFTER_S
    boards[2].check_same_call("second", 2)
    nodes.pass_on()
    boards[0].enter_setup("barrier()", 3)
    with pytest.raises(Mismatch, match=r"rank 0 is in barrier\(\) after first, rank 2 in second"):
        boards[0].check_same_rounds()
    boards[1].check_same_call("second", 2)  # is not there yet
    boards[1].changes_to("third", 3)
    boards[1].enter_setup("barrier()", 4)
    boards[1].check_same_rounds()  # rank 2 is only behind


def test_what_was_too_long_ago_is_no_mismatch(nodes):
    boards = nodes.boards
    for number in range(1000):
        boards[0].changes_to(f"collective {number}", number)
    boards[0].enter_setup("barrier()", 1000)
    boards[1].check_same_call("another", 5)
    boards[0].check_same_rounds()
    boards[1].check_same_call("another", 995)
    with pytest.raises(Mismatch, match=r"after collective 995, rank 1 in another"):
        boards[0].check_same_rounds()


# ---- random interleavings of lockstep programs --------------------------------------------------


class World:
    """Ranks that run programs (a list of calls each) in a random order, as the engine lets them.

    A call is "set-up" or the name of a collective. A round ends with `quorum` arrivals; who comes
    later goes through it, too. Between the nodes the boards' statuses are late at random.
    """

    def __init__(self, programs, quorum, seed):
        self.random = random.Random(seed)
        half = len(programs) // 2
        self.nodes = Nodes(range(half), range(half, len(programs)))
        self.programs = programs
        self.quorum = quorum
        self.done = [0] * len(programs)  # calls a rank has returned from
        self.inside = [False] * len(programs)
        self.must_return = [False] * len(programs)
        self.arrived = {}  # call, how many times it was made -> ranks

    def key(self, rank):
        calls = self.programs[rank]
        call = calls[self.done[rank]]
        return call, calls[: self.done[rank]].count(call)

    def rounds(self, rank):
        return sum(call != "set-up" for call in self.programs[rank][: self.done[rank]])

    def running(self):
        return [rank for rank, calls in enumerate(self.programs) if self.done[rank] < len(calls)]

    def run(self):
        """Until all programs have ended, or no rank can go on."""
        while (running := self.running()) and not all(self.stuck(rank) for rank in running):
            rank = self.random.choice(running)
            full_wires = [wire for wire, messages in self.nodes.wires.items() if messages]
            chance = self.random.random()
            if chance < 0.1:
                self.nodes.send()
            elif chance < 0.2 and full_wires:
                self.nodes.receive(self.random.choice(full_wires))
            elif chance < 0.35:
                self.nodes.clock.now += self.random.choice([0.01, 0.06, 0.5, 3.0])
            elif chance < 0.6 and self.inside[rank] and not self.must_return[rank]:
                self.look(rank)
                # It asked whether the wait was over before the look, and asks again before the
                # next one.
                self.must_return[rank] = self.is_over(self.key(rank))
            else:
                self.move(rank)

    def stuck(self, rank):
        return self.inside[rank] and not self.is_over(self.key(rank))

    def is_over(self, key):
        needed = len(self.programs) if key[0] == "set-up" else self.quorum
        return len(self.arrived[key]) >= needed

    def move(self, rank):
        """Into the next call, or out of it."""
        board, key = self.nodes.boards[rank], self.key(rank)
        if not self.inside[rank]:
            self.inside[rank] = True
            self.arrived.setdefault(key, set()).add(rank)
            if key[0] == "set-up":
                board.enter_setup("set-up", self.rounds(rank))
        elif self.is_over(key):
            self.inside[rank] = self.must_return[rank] = False
            if key[0] == "set-up":
                board.finish_setup()
            else:
                board.changes_to(key[0], self.rounds(rank))
            self.done[rank] += 1

    def look(self, rank):
        board, (call, _) = self.nodes.boards[rank], self.key(rank)
        if call == "set-up":
            board.still_waiting()
            board.check_same_rounds()
        else:
            board.check_same_call(call, self.rounds(rank))

    def run_and_wait(self):
        """Ranks that cannot go on wait for some seconds more, and all that is told arrives."""
        self.run()
        for _ in range(4):
            for rank in self.running():
                self.look(rank)
            self.nodes.clock.now += TELL_AFTER_S
            self.nodes.pass_on()


CALLS = ["set-up", "collective 1", "collective 1", "collective 2"]


@pytest.mark.parametrize("seed", range(150))
def test_ranks_that_make_the_same_calls_never_see_a_mismatch(seed):
    chance = random.Random(seed)
    program = chance.choices(CALLS, k=chance.randint(1, 12))
    size = chance.choice([2, 4, 6])
    world = World([program] * size, chance.randint(1, size), seed)
    world.run()
    assert world.running() == []


@pytest.mark.parametrize("seed", range(150))
def test_ranks_that_wait_in_different_calls_see_it_however_late_their_rows_come(seed):
    chance = random.Random(seed)
    program = chance.choices(CALLS, k=chance.randint(1, 12))
    at = chance.randrange(len(program))
    other = chance.choice([call for call in CALLS if call != program[at]])
    size = chance.choice([2, 4, 6])
    programs = [program] * size
    wrong = [*program[:at], other, *chance.choice([program[at:], program[at + 1 :]])]
    programs[chance.randrange(size)] = wrong
    world = World(programs, size, seed)
    with pytest.raises(Mismatch) as raised:
        world.run_and_wait()
    assert max(world.done) == at
    for call in (program[at], other):
        assert f"in {call}" in str(raised.value)
