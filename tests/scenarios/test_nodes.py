"""What goes wrong between nodes. HVD_BACKUP_NODE_SIZE makes them of one host's ranks."""

import contextlib
import os
import re
import signal
import socket
import time
from functools import reduce
from operator import or_
from pathlib import Path

import pytest
from launching import run_ranks, start_ranks
from scenarios.told import PROGRAMS, assert_waited, shared_memory, told

pytestmark = pytest.mark.timed

END = PROGRAMS / "end_of_a_rank.py"
IN_PAIRS = {"HVD_BACKUP_NODE_SIZE": "2"}
WORLD = range(4)


# ---- a rank ends --------------------------------------------------------------------------------


class End:
    """How a world ended in which one rank did: what each rank told last, and mpirun's status."""

    def __init__(self, folder, way, b, who, then=lambda *_: None, **env):
        before = shared_memory()
        env = {**IN_PAIRS, "PRTE_MCA_odls_base_sigkill_timeout": "4", **env}
        with start_ranks(4, END, folder, way, b, who, env=env) as ranks:
            self.pids = ranks.pids()
            while not all(told(folder, 4)):
                time.sleep(0.01)
            self.began = time.monotonic()
            then(self, ranks)
            self.run = ranks.wait(timeout=30)
            self.seconds = time.monotonic() - self.began
            deadline = time.monotonic() + 5
            while ranks.survivors() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert ranks.survivors() == []
        assert shared_memory() <= before
        # What a rank told first counts: when it raised, not when it came through its exit.
        self.facts = [reduce(or_, reversed(rank), {}) for rank in told(folder, 4)]
        self.raised_at = [
            next((facts["at"] for facts in rank if "error" in facts), None)
            for rank in told(folder, 4)
        ]
        self.survivors = [rank for rank in WORLD if rank != who]


def assert_survivors_raise(end, *words, within=5):
    assert end.run.returncode != 0, str(end.run)
    assert end.seconds < 15, str(end.run)
    for rank in end.survivors:
        assert end.facts[rank].get("error") == "PeerFailed", str(end.run)
        for word in words:
            assert re.search(word, end.facts[rank]["text"])
        assert end.raised_at[rank] - end.began < within
        assert end.facts[rank].get("at_exit"), str(end.run)


# Rank 0's process has the coordinator, rank 2's its node's service; rank 3's neither.
@pytest.mark.parametrize("b", [0, 1])
@pytest.mark.parametrize("who", [0, 2, 3])
def test_kill_9_makes_the_ranks_of_all_nodes_raise(tmp_path, who, b):
    def kill(end, _):
        os.kill(end.pids[who], signal.SIGKILL)

    # Else mpirun, too, kills: the ranks that have not yet seen what happened after 0.1 s.
    end = End(tmp_path, "signal", b, who, kill, PRTE_MCA_state_base_recoverable="1")
    # With the process of its service a whole node is gone.
    dead = rf"ranks? [\d, ]*{who}[\d, ]* ha|the process of rank {who}"
    assert_survivors_raise(end, dead, "start again from the last checkpoint")


@pytest.mark.parametrize("who", [0, 2, 3])
def test_an_exception_reaches_the_other_nodes_with_its_text(tmp_path, who):
    end = End(tmp_path, "raise", 1, who)
    assert end.facts[who]["error"] == "KeyError"
    assert_survivors_raise(end, f"rank {who} failed with KeyError", "a bug in the user's code")


@pytest.mark.parametrize("who", [0, 2, 3])
def test_sys_exit_reaches_the_other_nodes(tmp_path, who):
    end = End(tmp_path, "sys.exit", 0, who)
    assert end.facts[who]["error"] == "SystemExit"
    assert_survivors_raise(end, f"rank {who} has left", "same number of steps")


@pytest.mark.parametrize("who", [0, 2, 3])
def test_a_rank_that_ends_early_in_good_order_fails_the_others_without_backups(tmp_path, who):
    assert_survivors_raise(End(tmp_path, "return", 0, who), f"rank {who} has left")


@pytest.mark.parametrize("who", [0, 2, 3])
def test_a_rank_that_ends_early_in_good_order_is_not_missed_with_a_backup(tmp_path, who):
    end = End(tmp_path, "return", 1, who)
    assert end.run.returncode == 0, str(end.run)
    assert [facts["rounds"] for facts in end.facts] == [301 if r == who else 500 for r in WORLD]
    assert end.seconds < 15


@pytest.mark.parametrize("way", ["signal", "pause"])
def test_ctrl_c_on_mpirun_ends_all_nodes(tmp_path, way):
    end = End(tmp_path, way, 1, 3, lambda _, ranks: ranks.process.send_signal(signal.SIGINT))
    assert end.run.returncode != 0, str(end.run)
    assert end.seconds < 10


def test_ctrl_c_on_every_rank_ends_all_nodes(tmp_path):
    def interrupt(end, _):
        for pid in end.pids:
            os.kill(pid, signal.SIGINT)

    end = End(tmp_path, "signal", 0, 3, interrupt)
    assert end.run.returncode != 0, str(end.run)
    assert end.seconds < 10
    for facts in end.facts:
        assert facts["error"] == "KeyboardInterrupt" or "KeyboardInterrupt" in facts["text"]


# ---- late and stopped ranks, options, worlds ----------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Case -> what the ranks got; see programs/nodes.py."""
    return {
        **run_cases(tmp_path_factory.mktemp("alone"), 3, *ALONE),
        **run_cases(tmp_path_factory.mktemp("pairs"), 2, *PAIRS),
    }


# Rank 3 alone on its node, and beside rank 2.
ALONE = [
    "late_rank_with_room",
    "late_rank_and_little_room",
    "window_stays_full",
    "window_of_small_results_stays_full",
]
PAIRS = [
    "quorum_never_comes",
    "stopped_rank_with_room",
    "stopped_first_rank_of_a_node",
    "stopped_coordinator",
    "two_exchanges",
    "closed_while_a_late_rank_loads",
    "more_plans_than_are_kept",
    "worlds_one_after_another",
    "slow_to_join",
]


def run_cases(folder, node_size, *names):
    env = {"HVD_BACKUP_NODE_SIZE": str(node_size)}
    run = run_ranks(4, PROGRAMS / "nodes.py", folder, *names, env=env, timeout=90)
    assert run.returncode == 0, str(run)
    by_rank = [{facts["case"]: facts for facts in rank} for rank in told(folder, 4)]
    return {case: [rank[case] for rank in by_rank] for case in names}


@pytest.mark.parametrize(
    "case",
    [
        "late_rank_with_room",
        "late_rank_and_little_room",
        "stopped_rank_with_room",
        "stopped_first_rank_of_a_node",
        "stopped_coordinator",
        "two_exchanges",
        "more_plans_than_are_kept",
        "closed_while_a_late_rank_loads",
        "slow_to_join",
    ],
)
def test_all_ranks_end_with_the_same_bits(cases, case):
    assert {facts["error"] for facts in cases[case]} == {"NoneType"}, cases[case]
    assert len({facts["digest"] for facts in cases[case]}) == 1


@pytest.mark.parametrize("case", ["late_rank_with_room", "stopped_rank_with_room"])
def test_with_a_backup_and_room_nobody_waits_for_a_rank_that_is_not_there(cases, case):
    assert max(facts["longest"] for facts in cases[case][:3]) < 0.8
    assert cases[case][3]["late"] > 50


def test_when_the_window_is_full_the_other_nodes_wait_too(cases):
    for facts in cases["late_rank_and_little_room"][:2]:
        assert 0.7 < facts["longest"] < 3


@pytest.mark.parametrize("rank", WORLD)
def test_a_time_out_names_the_rank_of_another_node_that_is_missing(cases, rank):
    facts = cases["quorum_never_comes"][rank]
    assert facts["error"] == "RoundTimeout"
    words = "3 of 4 contributions after {} s; missing rank 3"
    assert_waited(facts["text"], words, 0.7, facts["seconds"])


@pytest.mark.parametrize("rank", WORLD)
@pytest.mark.parametrize("case", ["window_stays_full", "window_of_small_results_stays_full"])
def test_a_time_out_names_the_rank_of_another_node_that_fills_the_window(cases, case, rank):
    facts = cases[case][rank]
    assert facts["error"] == "RoundTimeout"
    words = "window of 10 results is full after {} s; rank 3 has yet to"
    assert_waited(facts["text"], words, 1.0, facts["seconds"])


def test_closing_disturbs_no_rank_that_is_behind(cases):
    assert cases["closed_while_a_late_rank_loads"][3]["late"] > 30


def test_worlds_that_were_left_leave_no_threads(cases):
    for facts in cases["worlds_one_after_another"]:
        after_three, after_six = facts["threads"]
        assert after_six < after_three + 2


def test_a_node_that_stands_still_for_a_second_changes_no_bits(tmp_path):
    with start_ranks(3, PROGRAMS / "tight_loop.py", tmp_path, 4, env=IN_PAIRS) as ranks:
        pids = ranks.pids()
        while not all(told(tmp_path, 3)):
            time.sleep(0.05)
        for node in (pids[2:], pids[:2]):
            for pid in node:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(1)
            for pid in node:
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.3)
        run = ranks.wait(60)
    assert run.returncode == 0, str(run)
    assert_right(tmp_path)


def assert_right(folder):
    """What the ranks of tight_loop.py told."""
    facts = [rank[-1] for rank in told(folder, 3)]
    assert [rank["wrong"] for rank in facts] == [0, 0, 0]
    assert len({(rank["rounds"], rank["digest"]) for rank in facts}) == 1
    return facts


# ---- strangers, settings, forks -----------------------------------------------------------------


def listening_ports(pid):
    """TCP ports, chosen by the system, at which a process listens at every address."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(str(path.readlink()))
    inodes = set(re.findall(r"socket:\[(\d+)\]", "\n".join(links)))
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and fields[9] in inodes and not address.strip("0"):
                ports.add(int(port, 16))
    return {port for port in ports if port >= first}  # MPI's own have other numbers


def test_strangers_at_the_coordinators_port_change_nothing(tmp_path):
    rubbish = [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b"\0" * 12, os.urandom(5000)]
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(
            start_ranks(3, PROGRAMS / "tight_loop.py", tmp_path, 3, env=IN_PAIRS)
        )
        pids = ranks.pids()
        while not all(told(tmp_path, 3)):
            time.sleep(0.05)
        (port,) = listening_ports(pids[0])
        for data in rubbish * 30:
            stranger = stack.enter_context(socket.create_connection(("localhost", port), 5))
            with contextlib.suppress(ConnectionError):
                stranger.sendall(data)
        run = ranks.wait(60)
    assert run.returncode == 0, str(run)
    assert min(facts["rounds"] for facts in assert_right(tmp_path)) > 50


def start_somehow(folder, thread_level="multiple", **env):
    """What init() told every rank."""
    run = run_ranks(3, PROGRAMS / "start_somehow.py", folder, thread_level, env=env, timeout=60)
    assert run.returncode == 0, str(run)
    return [rank[-1] for rank in told(folder, 3)]


def test_without_thread_multiple_several_nodes_are_refused_with_the_way_out(tmp_path):
    for facts in start_somehow(tmp_path, "funneled", HVD_BACKUP_NODE_SIZE="2"):
        assert facts["error"] == "LaunchError"
        assert "MPI_THREAD_FUNNELED" in facts["text"]
        assert "initialize MPI with MPI_THREAD_MULTIPLE" in facts["text"]
        assert "mpi4py.rc.thread_level" in facts["text"]


def test_without_thread_multiple_one_node_works(tmp_path):
    for facts in start_somehow(tmp_path, "funneled"):
        assert (facts["error"], facts.get("value"), facts["nodes"]) == ("none", [1.0] * 3, 1)


def test_a_node_size_that_is_none_is_refused(tmp_path):
    for facts in start_somehow(tmp_path, HVD_BACKUP_NODE_SIZE="0"):
        assert facts["error"] == "ValueError"
        assert "HVD_BACKUP_NODE_SIZE='0' is not a whole number, 1 or more" in facts["text"]


def test_an_interface_that_is_none_is_an_error_on_every_rank(tmp_path):
    for facts in start_somehow(tmp_path, HVD_BACKUP_NODE_SIZE="2", HVD_BACKUP_INTERFACE="nonsense"):
        assert facts["error"] == "LaunchError"
        assert "rank 0: " in facts["text"]
        assert "HVD_BACKUP_INTERFACE" in facts["text"]
        assert "nonsense" in facts["text"]


@pytest.mark.parametrize("node_size", [1, 2])
def test_processes_that_ranks_fork_come_and_go(tmp_path, node_size):
    env = {"HVD_BACKUP_NODE_SIZE": str(node_size)}
    run = run_ranks(3, PROGRAMS / "forks.py", tmp_path, env=env, timeout=90)
    assert run.returncode == 0, str(run)
    facts = [rank[-1] for rank in told(tmp_path, 3)]
    assert [rank["statuses"] for rank in facts] == [[0] * 6] * 3
    assert [rank["means"] for rank in facts] == [[1, 1, 2, 3]] * 3
    assert len({(rank["digest"], rank["rounds"]) for rank in facts}) == 1
