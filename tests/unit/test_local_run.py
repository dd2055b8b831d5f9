"""`hvd-backup run --no-mpi`, without ranks: messages, who waits for whom, lines, arguments."""

import random
import signal
import socket
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

from hvd_backup import errors
from hvd_backup.cli import app
from hvd_backup.cluster.hub import Exchanges
from hvd_backup.cluster.local_run import Lines, ending, environment, exit_status
from hvd_backup.world import launch, local_comm
from hvd_backup.world.frames import BadFrame, Decoder, Frame, encode


def gift(tag, members, payload=b""):
    return Frame({"tag": tag, "members": members}, payload)


def test_messages_survive_any_cut_of_the_stream():
    rng = random.Random(7)
    sent = [Frame({"n": n}, rng.randbytes(rng.choice([0, 1, 500]))) for n in range(50)]
    stream = b"".join(map(encode, sent))
    decoder, got = Decoder(), []
    while stream:
        cut = rng.choice([1, 3, 200])
        got += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert got == sent


@pytest.mark.parametrize(
    "nonsense", [b"\xff" * 16, b"\0\0\0\2\0\0\0\0[]", b"\0\0\0\2\0\0\0\0{{", b"GET / HTTP/1.0\r\n"]
)
def test_what_is_no_message_is_refused(nonsense):
    with pytest.raises(BadFrame):
        Decoder().feed(nonsense)


def test_an_exchange_is_complete_with_its_last_member_in_the_communicators_order():
    exchanges = Exchanges()
    assert exchanges.give(2, gift("a", [2, 0], b"two")) == []
    assert exchanges.give(1, gift("b", [0, 1])) == []
    replies = exchanges.give(0, gift("a", [2, 0], b"0"))
    assert [rank for rank, _ in replies] == [2, 0]
    assert {reply for _, (_, reply) in replies} == {b"two0"}
    assert replies[0][1].header == {"tag": "a", "sizes": [3, 1]}


def test_who_waits_for_a_rank_that_has_ended_is_told_whenever_it_came():
    exchanges = Exchanges()
    exchanges.give(0, gift("a", [0, 1, 2]))
    assert [(rank, frame.header["missing"]) for rank, frame in exchanges.end(1)] == [(0, [1])]
    later = exchanges.give(2, gift("a", [0, 1, 2]))
    assert [(rank, frame.header["missing"]) for rank, frame in later] == [(2, [1])]


def test_what_a_rank_gave_before_it_ended_counts():
    exchanges = Exchanges()
    exchanges.give(1, gift("a", [0, 1], b"last words"))
    assert exchanges.end(1) == []
    replies = exchanges.give(0, gift("a", [0, 1]))
    assert [(rank, frame.payload) for rank, frame in replies] == [
        (0, b"last words"),
        (1, b"last words"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        Frame({"tag": "a"}),
        Frame({"members": [0, 1]}),
        gift("a", [1, 2]),  # it is not one of them
        gift("a", [0, 2]),  # another's exchange
    ],
)
def test_nonsense_of_a_rank_is_refused(wrong):
    exchanges = Exchanges()
    exchanges.give(1, gift("a", [0, 1]))
    with pytest.raises(BadFrame):
        exchanges.give(0, wrong)


def test_lines_of_a_rank_are_handed_on_whole_with_its_prefix():
    lines = Lines(b"[2] ")
    assert lines.feed(b"one\ntw") == b"[2] one\n"
    assert lines.feed(b"o\n\nthree") == b"[2] two\n[2] \n"
    assert lines.feed(b" 50%\r") == b"[2] three 50%\r"
    assert lines.feed(b"four") == b""
    assert lines.end() == b"[2] four"
    assert lines.end() == b""


def test_a_line_that_does_not_end_is_not_kept_for_ever():
    lines = Lines()
    got = b"".join(lines.feed(b"x" * 10_000) for _ in range(20))
    assert len(got) >= 100_000


def test_the_exit_status_says_which_signal_it_was():
    assert (exit_status(0), exit_status(3), exit_status(-9)) == (0, 3, 137)
    assert ending(1, -9) == "rank 1 was killed by signal 9 (SIGKILL)"
    assert ending(1, 3) == "rank 1 ended with exit status 3"


def test_a_rank_knows_its_launcher():
    environ = environment({"HOME": "/root", launch.LOCAL_RANK: "7"}, 1, 3)
    environ[launch.LOCAL_SOCKET] = "/tmp/socket"
    # Also within an allocation, or a rank of another launcher.
    environ["SLURM_STEP_NUM_TASKS"] = environ["OMPI_COMM_WORLD_SIZE"] = "1"
    assert launch.detect(environ) == launch.Launch("hvd-backup run --no-mpi", 1, 3, 1, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-H", "a:2,b:2"], "-H a:2,b:2: hvd-backup run --no-mpi starts ranks on this host only"),
        (["--mpi-args", "--bind-to core"], "--mpi-args are mpirun's"),
        (["-b", "4"], "4 backup workers among 4 ranks"),
    ],
)
def test_what_needs_mpirun_is_refused(options, words):
    line = ["run", "--no-mpi", "-np", "4", *options, "--", "python", "train.py"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize("option", [["--prefix"], ["--kill-after", "3"]])
def test_options_of_no_mpi_are_refused_without_it(option):
    done = CliRunner().invoke(app, ["run", "-np", "2", *option, "--dry-run", "--", "train"])
    assert done.exit_code == 2
    assert f"{option[0]} goes with --no-mpi" in done.output


def test_a_dry_run_prints_what_every_rank_would_run():
    done = CliRunner().invoke(
        app, ["run", "--no-mpi", "-np", "4", "-b", "1", "--dry-run", "-x", "A=b c", "--", "train"]
    )
    assert done.exit_code == 0
    assert "HVD_BACKUP_WORKERS=1 " in done.stdout
    assert done.stdout.endswith("'A=b c' train  # 4 times\n")


def test_a_command_that_is_not_there_is_named():
    done = CliRunner().invoke(app, ["run", "--no-mpi", "-np", "2", "--", "/no/such/program"])
    assert done.exit_code == 127
    assert "cannot run /no/such/program" in done.stderr


@pytest.fixture
def alone(tmp_path):
    """A communicator whose launcher is the test: (communicator, its end of the socket)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "launcher"))
    listener.listen(1)
    comm = local_comm.Intracomm(
        local_comm.Link(str(tmp_path / "launcher"), "token", 0), range(2), "world"
    )
    end, _ = listener.accept()
    with listener, end:
        yield comm, end


def test_a_launcher_that_ends_is_named_to_who_waits(alone):
    comm, end = alone
    threading.Timer(0.2, lambda: end.shutdown(socket.SHUT_RDWR)).start()
    with pytest.raises(errors.PeerFailed, match=r"rank 0 has lost hvd-backup run --no-mpi"):
        comm.Barrier()


def test_ctrl_c_ends_a_wait(alone):
    comm, _ = alone
    main = threading.get_ident()
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        comm.allgather("I")


def test_a_call_that_only_mpi_has_is_refused_in_words(alone):
    comm, _ = alone
    with pytest.raises(AttributeError, match=r"has no 'Scatterv'; start with mpirun"):
        comm.Scatterv(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="root=2 is no rank of a communicator of 2"):
        comm.bcast("I", root=2)
    with pytest.raises(ValueError, match="combines with its SUM, PROD, MIN and MAX"):
        comm.Allreduce(np.zeros(3), np.zeros(3), op="MPI.BXOR")


def test_groups_are_some_ranks_in_an_order():
    everybody = local_comm.Group([4, 2, 7])
    some = everybody.Incl([2, 0])
    assert (some.ranks, some.size) == ([7, 4], 2)
    assert everybody.Translate_ranks([0, 1, 2], some) == [1, local_comm.UNDEFINED, 0]
    with pytest.raises(ValueError, match=r"ranks \[0, 3\] are not all in a group of 3"):
        everybody.Incl([0, 3])


def test_a_communicator_of_a_group_is_for_its_members(alone):
    comm, _ = alone
    mine = comm.Create_group(comm.group.Incl([0]))
    assert (mine.rank, mine.size) == (0, 1)
    with pytest.raises(ValueError, match="only its members call it"):
        comm.Create_group(comm.group.Incl([1]))


def test_nobody_listens():
    with pytest.raises(errors.LaunchError, match=r"rank 1 cannot reach .* has it ended\?"):
        local_comm.Link("/no/such/socket", "token", 1)


def test_a_wait_behind_a_gate_ends_with_what_the_board_says(tmp_path):
    with socket.socket(socket.AF_UNIX) as launcher:
        launcher.bind(str(tmp_path / "socket"))
        launcher.listen()
        link = local_comm.Link(str(tmp_path / "socket"), "token", 0)
        comm = local_comm.Intracomm(link, range(2), "world")

        def look():
            raise errors.PeerFailed("rank 1 failed with TimeLimit: too slow")

        comm.watch(look)
        with pytest.raises(errors.PeerFailed, match="rank 1 failed with TimeLimit"):
            comm.allgather("mine")  # rank 1 never comes
