"""The notice board, with the ranks of one process: of one node, and of two."""

import os
import random
import re
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest

from hvd_backup._core import Segment, StatusBoard
from hvd_backup.errors import Error, Mismatch, PeerFailed, RoundTimeout
from hvd_backup.world.board import TELL_AFTER_S, TELL_SETUP_AFTER_S, Board


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


@pytest.fixture
def boards():
    return Nodes(range(3)).boards


@pytest.fixture
def nodes():
    """Ranks 0 and 1 on one node, 2 and 3 on another."""
    return Nodes([0, 1], [2, 3])


def test_an_empty_board_says_nothing(boards):
    for board in boards:
        board.check()
        board.check_same_call("mine", 0)
        assert board.left() == []


def test_a_failure_is_raised_by_all_in_its_kind(boards):
    boards[1].fail(RoundTimeout("round 3: missing rank 0"))
    for rank in (0, 2):
        with pytest.raises(RoundTimeout, match="rank 1 failed: round 3: missing rank 0"):
            boards[rank].check()
    with pytest.raises(RoundTimeout, match=r"^round 3"):
        boards[1].check()


def test_an_error_of_the_user_is_raised_as_a_failed_peer(boards):
    boards[2].fail(KeyError("no such key"))
    with pytest.raises(PeerFailed, match="rank 2 failed with KeyError: 'no such key'"):
        boards[0].check()


@pytest.mark.parametrize("kind", [RoundTimeout, PeerFailed])
def test_a_failure_that_a_rank_has_only_passed_on_is_told_as_that_of_the_first(boards, kind):
    boards[0].fail(kind("rank 1 failed: round 3: missing rank 7"))
    with pytest.raises(kind, match=r"^rank 1 failed: round 3: missing rank 7$"):
        boards[2].check()


def test_a_death_is_told_in_the_same_words_by_all(boards):
    boards[0].fail(PeerFailed("rank 1 has died, seen by rank 0"))
    for rank in (1, 2):
        with pytest.raises(PeerFailed, match=r"^rank 1 has died, seen by rank 0$"):
            boards[rank].check()


def deaths_told_by(boards, dead, meanwhile=lambda: None):
    """The texts of boards that see a death at the same time. To word one takes a while."""

    def see(board):
        def text():
            time.sleep(0.05)
            return f"rank {dead} has died, seen by rank {board.rank}"

        start.wait()
        return str(board.death([dead], text))

    start = threading.Barrier(len(boards) + 1)
    with ThreadPoolExecutor(len(boards)) as pool:
        seen = [pool.submit(see, board) for board in boards]
        start.wait()
        meanwhile()
        return [one.result() for one in seen]


def test_ranks_that_see_a_death_at_the_same_time_raise_the_same_text():
    boards = Nodes(range(5)).boards
    texts = deaths_told_by(boards[:4], 4)
    assert len(set(texts)) == 1, texts
    assert re.fullmatch(r"rank 4 has died, seen by rank [0-3]", texts[0])
    for board in boards[:4]:
        with pytest.raises(PeerFailed, match="was told before"):
            board.check()


@pytest.mark.parametrize("dead", [1, 3])
def test_ranks_of_two_nodes_raise_the_text_of_the_node_that_a_rank_died_on(nodes, dead):
    def passes_on():
        time.sleep(0.15)
        nodes.pass_on()

    living = [board for board in nodes.boards if board.rank != dead]
    texts = deaths_told_by(living, dead, passes_on)
    assert set(texts) == {f"rank {dead} has died, seen by rank {dead - 1}"}


def test_a_death_is_told_though_the_rank_that_was_to_tell_it_died_then(boards, monkeypatch):
    monkeypatch.setattr("hvd_backup.world.board._WRITING_S", 0.05)
    monkeypatch.setattr(boards[1], "_write_failure", lambda *_: None)
    boards[1].death([2], lambda: "never written")
    told = boards[0].death([1, 2], lambda: "ranks 1, 2 have died, seen by rank 0")
    assert str(told) == "ranks 1, 2 have died, seen by rank 0"


def test_a_failure_says_when_it_was_and_what_to_do(boards):
    boards[1].last_round = lambda: "the last round of g that all have completed is round 7"
    boards[1].fail(KeyError("boom"), "round 9 of g")
    with pytest.raises(PeerFailed) as told:
        boards[0].check()
    assert re.fullmatch(
        r"rank 1 failed with KeyError: 'boom', in round 9 of g \(at \d\d:\d\d:\d\d; the last round "
        r"of g that all have completed is round 7\); what rank 1 printed says why; then start "
        r"again from the last checkpoint",
        str(told.value),
    )


def test_a_long_text_leaves_room_for_the_moment(boards):
    boards[1].last_round = lambda: "round 7"
    boards[1].fail(KeyError("\0" * 2000))
    with pytest.raises(PeerFailed, match=r" \(at [\d:]+; round 7\); what rank 1 printed"):
        boards[0].check()


def test_a_rank_is_told_that_its_own_interrupted_call_is_over(boards):
    boards[0].fail(ValueError("too slow"), "round 3 of g")
    with pytest.raises(
        Error, match=r"ended by ValueError: too slow, in round 3 of g \(at .*\); it "
    ):
        boards[0].check()
    with pytest.raises(PeerFailed, match=r"^rank 0 failed with ValueError: too slow, in round 3"):
        boards[1].check()


def test_the_first_failure_stays(boards):
    boards[0].fail(Mismatch("first"))
    boards[1].fail(PeerFailed("second"))
    with pytest.raises(Mismatch, match="first"):
        boards[2].check()


def test_a_failure_outlives_the_calls_that_follow_it(boards):
    boards[0].fail(Mismatch("first"))
    boards[0].enter_setup("again", 0)
    boards[0].finish_setup()
    boards[0].check_same_call("round", 0)
    with pytest.raises(Mismatch, match="rank 0 failed: first"):
        boards[1].check()
    with pytest.raises(Mismatch, match=r"first \(this failure was told before"):
        boards[1].check()


def test_of_failures_at_the_same_time_all_raise_that_of_the_lowest_rank(nodes):
    boards = nodes.boards
    boards[2].fail(Mismatch("of rank 2"))
    boards[1].fail(RoundTimeout("of rank 1"))  # knows nothing of the other node's yet
    nodes.pass_on()
    for rank in (0, 3):
        with pytest.raises(RoundTimeout, match="rank 1 failed: of rank 1"):
            boards[rank].check()


@pytest.mark.parametrize(
    "text", ["é" * 2000, "\0" * 2000, '"\\' * 2000, "a\n" * 2000, "😀" * 999, "x" * 959 + "é\ud800"]
)
def test_texts_of_any_length_and_alphabet_fit(boards, text):
    for board in boards[:2]:
        board.enter_setup(text, 10**18)
    boards[0].fail(type("Kind" * 99, (Exception,), {})(text))
    start = text[:100].encode(errors="replace").decode()
    with pytest.raises(PeerFailed) as raised:
        boards[1].check()
    assert start in str(raised.value)
    assert boards[2].not_here() == [2]


def test_who_has_left_is_listed(boards):
    boards[2].leave()
    assert boards[0].left() == [2]


def test_who_has_not_come_is_listed(boards):
    boards[0].enter_setup("a model", 0)
    assert boards[0].not_here() == [1, 2]
    boards[2].enter_setup("a model", 0)
    assert boards[0].not_here() == [1]
    boards[2].finish_setup()  # it has been there, and has gone on
    assert boards[0].not_here() == [1]


def test_a_rank_that_has_not_left_an_earlier_set_up_has_not_come_to_this_one(nodes):
    boards = nodes.boards
    for board in boards:
        board.enter_setup("one", 0)
        board.still_waiting()
    nodes.clock.now += TELL_SETUP_AFTER_S
    boards[3].still_waiting()
    nodes.pass_on()
    for board in boards[:2]:
        board.finish_setup()
        board.enter_setup("two", 0)
    assert boards[0].not_here() == [2, 3]


# ---- ranks in different calls -------------------------------------------------------------------


def test_a_rank_in_a_set_up_before_the_round_of_another_is_a_mismatch_if_the_round_stays(boards):
    boards[1].enter_setup("another model", 0)
    boards[0].check_same_call("the first model", 0)  # it may need no more than the others
    with pytest.raises(Mismatch) as raised:
        boards[0].check_same_call("the first model", 0)
    assert "rank 0 is in the first model, rank 1 in another model" in str(raised.value)
    assert "every rank must make the same calls" in str(raised.value)


def test_a_rank_of_another_node_that_has_been_through_the_round_is_only_ahead(nodes):
    boards = nodes.boards
    boards[0].check_same_call("round", 7)
    boards[2].check_same_call("round", 7)
    boards[2].enter_setup("a model", 8)
    nodes.clock.now += TELL_SETUP_AFTER_S
    boards[2].still_waiting()
    nodes.pass_on()
    for _ in range(3):
        boards[0].check_same_call("round", 7)


def test_a_rank_of_this_node_that_has_been_through_the_round_is_ahead_when_first_seen(boards):
    boards[0].check_same_call("round", 7)
    boards[1].check_same_call("round", 7)
    boards[1].enter_setup("a model", 8)
    boards[0].check_same_call("round", 7)  # the next look of the wait finds the result


def test_a_rank_of_this_node_that_stays_in_a_set_up_has_been_through_other_rounds(boards):
    boards[1].enter_setup("barrier()", 8)
    boards[0].check_same_call("collective 2", 7)
    with pytest.raises(Mismatch, match=r"rank 0 is in collective 2, rank 1 in barrier\(\)"):
        boards[0].check_same_call("collective 2", 7)


def test_a_rank_that_is_seen_ahead_in_two_different_set_ups_is_none(boards):
    boards[1].enter_setup("one", 1)
    boards[0].check_same_call("round", 0)
    for board in boards[:2]:
        board.enter_setup("one", 1)
        board.finish_setup()
    boards[1].enter_setup("two", 2)
    boards[0].check_same_call("round", 1)


def test_a_rank_that_ends_a_set_up_is_never_seen_ahead(boards):
    for board in boards:
        board.enter_setup("a model", 0)
    for board in boards:
        board.finish_setup()
        for other in boards:
            other.check_same_call("a model", 0)
            other.check_same_call("a model", 0)


def test_ranks_that_wait_in_the_same_round_of_different_collectives_are_a_mismatch(boards):
    boards[0].check_same_call("collective 1", 5)
    boards[2].check_same_call("collective 1", 5)
    with pytest.raises(Mismatch, match="rank 1 is in collective 2, rank 0 in collective 1"):
        boards[1].check_same_call("collective 2", 5)


def test_a_mismatch_says_who_has_joined(boards):
    boards[2].be_absent(absent=True)
    boards[2].enter_setup("join()", 5)
    boards[0].check_same_call("collective 1", 5)
    with pytest.raises(Mismatch, match=r"options; rank 2 has called join\(\)$"):
        boards[1].check_same_call("collective 2", 5)


def test_ranks_that_wait_in_different_rounds_are_none(boards):
    boards[0].check_same_call("collective 1", 5)
    boards[1].check_same_call("collective 2", 6)
    boards[0].check_same_call("collective 2", 6)


# ---- between nodes ------------------------------------------------------------------------------


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


def test_what_ended_no_call_is_told_as_new_by_the_next(boards):
    boards[1].fail(KeyError("x"))
    with pytest.raises(PeerFailed) as first:
        boards[0].check()
    boards[0].not_told(first.value)
    with pytest.raises(PeerFailed, match=r"KeyError: 'x' \(at [\d:]+\); .* checkpoint$"):
        boards[0].check()
    with pytest.raises(PeerFailed, match="was told before"):
        boards[0].check()
