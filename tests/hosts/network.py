"""Several hosts on one machine: mpirun across network namespaces that a bridge joins.

    with Hosts(3, mbit=200) as hosts:
        run = hosts.mpirun([sys.executable, PROGRAM, "--steps", "5"], ranks_per_host=2, timeout=60)
        assert run.returncode == 0, str(run)

        with hosts.start([sys.executable, PROGRAM], ranks_per_host=2) as ranks:
            ranks.wait_for("rank 0: half way", timeout=30)
            hosts.cut(1)
            ...
            hosts.restore(1)
            run = ranks.wait(timeout=60)

`start` gives the `Ranks` of launching.py. mpirun runs on host 0. The first k ranks are on host 0,
the next k on host 1, and so on.

A host is a process that does nothing, in namespaces of its own: network, host name (by which MPI
tells who shares memory), and mounts (for /etc/hosts, and for a /dev/shm of its own). One more such
process is the switch: its network namespace has the bridge and the far ends of the hosts' cables.
So nothing has a name that the rest of the machine, or another run, could see, all runs may use the
same addresses, and when the last process has ended the kernel removes everything.

TCP avoids congestion by Reno's rules, which every kernel lets every namespace have: what a machine
uses may be made for the Internet (BBR), and pace the bursts of a round.

Processes and cores are not separated: process ids are the machine's, and each host believes that it
owns all cores.

Bandwidth is shaped by tbf, both ways, at both ends of a cable. Where frames queue for it, they
take up to `queue_ms` longer. A latency that is always there (`delay_ms`) is long_cable.py's, as not
every kernel has netem.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from launching import ROOT, CompletedRun, Ranks

from hvd_backup.errors import LaunchError
from hvd_backup.study.mpirun import environment, parse
from hvd_backup.world.mpirun import find_mpirun

SUBNET = "10.77.0"
LONG_CABLE = Path(__file__).with_name("long_cable.py")
TOOLS = ("ip", "tc", "unshare", "nsenter")
READY_S = 20.0  # to make namespaces; far more than it takes
BURST_KB = 32  # what passes at once; larger packets are cut up, so that the rate is even
SLICE_S = 0.04  # of a slowed host: it runs for a share of each, then stands still
LOOK_S = 0.2  # between two looks for new processes on a slowed host

# Ends when this process does, also by SIGKILL: its standard input ends then.
HOST = """
set -e
echo "$1" >/proc/sys/kernel/hostname
mount --bind "$2" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ip link set lo up
echo reno >/proc/sys/net/ipv4/tcp_congestion_control
echo ready
exec cat
"""

# What ssh is to a cluster: `on HOST WORDS…` has a shell on the host read the words.
ON = """\
#!/bin/sh
host=$1
shift
case $host in
{cases}
*) echo "there is no host $host" >&2; exit 255 ;;
esac
exec nsenter --target "$pid" --net --uts --mount sh -c "cd {folder} && $*"
"""


class Unavailable(Exception):
    """The machine cannot do it; says what is missing."""


def missing(delay_ms: float | None = None) -> str | None:
    """What this machine lacks for hosts (with long cables), in words; None if nothing."""
    if os.geteuid() != 0:
        return "hosts as network namespaces need root"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(lacking)} on PATH: install iproute2 and util-linux"
    try:
        command = [find_mpirun(), "--version"]
    except LaunchError as error:
        return str(error)
    version = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in version and "OpenRTE" not in version:
        return "mpirun is not Open MPI's, and only its settings for several hosts are known here"
    try:
        with Hosts(1, mbit=100, delay_ms=delay_ms):
            return None
    except Unavailable as error:
        return f"the kernel or the container does not allow it: {error}"


class Hosts:
    """`count` hosts on a switch; a context manager that leaves nothing behind.

    `mbit` is the rate of each host's cable in Mbit/s, each way, None for as fast as it goes;
    `queue_ms` is how long a frame waits at most for those before it; `delay_ms` is how long each
    takes from one end of a cable to the other: twice that from host to host, four times there and
    back. With a delay a cable costs CPU, and carries no more than some hundred Mbit/s.
    """

    def __init__(
        self,
        count: int,
        mbit: float | None = None,
        queue_ms: float = 50,
        delay_ms: float | None = None,
    ) -> None:
        self.count = count
        self.names = [f"host{i}" for i in range(count)]
        self._mbit = mbit
        self._queue_ms = queue_ms
        self._delay_ms = delay_ms
        self._processes: list[subprocess.Popen[str]] = []  # the hosts, the switch, long cables
        self._namespaces: set[str] = set()
        self._slowed: dict[int, _Slowed] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Hosts:
        with contextlib.ExitStack() as undo:  # also of what is half made
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="hvd-hosts-"))
            self._folder = Path(folder)
            undo.callback(self._end_all)
            lines = ["127.0.0.1 localhost"]
            lines += [f"{self.address(i)} {name}" for i, name in enumerate(self.names)]
            (self._folder / "hosts").write_text("\n".join(lines) + "\n")
            script = ["unshare", "--net", "--uts", "--mount", "sh", "-c", HOST, "sh"]
            for name in (*self.names, "switch"):
                self._processes.append(_start([*script, name, str(self._folder / "hosts")]))
            for process in self._processes:
                _await_ready(process)
            self._namespaces = {_namespace(process.pid) for process in self._processes} - {""}
            self._connect()
            self._write_agent()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def address(self, host: int) -> str:
        return f"{SUBNET}.{host + 1}"

    def start(
        self,
        command: Sequence[object],
        ranks_per_host: int | Sequence[int] = 1,
        env: Mapping[str, str | None] | None = None,
    ) -> Ranks:
        """Start `command` on every host, on as many ranks as said (one number, or one per host).

        `env` is added to the environment, None removes a variable.
        """
        if isinstance(ranks_per_host, int):
            ranks_per_host = [ranks_per_host] * self.count
        assert len(ranks_per_host) == self.count, "one number of ranks for each host"
        size = sum(ranks_per_host)
        places = [f"{name}:{k}" for name, k in zip(self.names, ranks_per_host, strict=True) if k]
        mpirun = [find_mpirun(), "-n", str(size), "--host", ",".join(places)]
        mpirun += ["--map-by", "slot", "--bind-to", "none"]
        # The shell on the host reads words, as at the far end of ssh.
        words = shlex.join([*mpirun, *map(str, command)])
        ours = environment({}, size, 0, root=True)
        ours.pop("PYTHONUNBUFFERED", None)  # it makes print() write every word by itself
        ranks = Ranks(
            size, [str(self._agent), self.names[0], words], {**ours, **self._mpi(), **(env or {})}
        )
        self._undo.enter_context(ranks)
        return ranks

    def mpirun(
        self,
        command: Sequence[object],
        ranks_per_host: int | Sequence[int] = 1,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 60,
    ) -> CompletedRun:
        """Run `command` as `start` does, to its end. Raises StillRunning after `timeout` s."""
        with self.start(command, ranks_per_host, env) as ranks:
            return ranks.wait(timeout)

    def slow_down(self, host: int, cpu: float | None = None, mbit: float | None = None) -> None:
        """Make a host slow, until `restore`.

        Its ranks run for a share `cpu` of the time (0 to 1), its cable carries `mbit` Mbit/s. The
        ranks are stopped and continued many times a second: not for a host on which the test
        itself stops a rank.
        """
        if cpu is not None:
            assert 0 < cpu <= 1, "a share of the time"
            self._unslow(host)
            self._slowed[host] = _Slowed(self._processes[host].pid, cpu)
        if mbit is not None:
            self._shape(host, mbit)

    def cut(self, host: int) -> None:
        """Pull the host's cable out at the switch."""
        self._ip(self._switch, f"link set {self.names[host]} down")

    def restore(self, host: int) -> None:
        """Undo `cut` and `slow_down`."""
        self._unslow(host)
        self._shape(host, self._mbit)
        self._ip(self._switch, f"link set {self.names[host]} up")

    def traffic(self, host: int) -> tuple[int, int]:
        """Bytes that came out of the host's cable at the switch so far, and that went into it."""
        for line in Path(f"/proc/{self._switch}/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self.names[host]:
                received, sent = numbers.split()[0], numbers.split()[8]
                return int(received), int(sent)
        raise LookupError(self.names[host])

    def processes(self) -> list[int]:
        """Process ids of all that runs on the hosts and the switch."""
        return [pid for pid in _all_pids() if _namespace(pid) in self._namespaces]

    @property
    def namespaces(self) -> set[str]:
        """The network namespaces, as /proc/<pid>/ns/net shows them."""
        return set(self._namespaces)

    @property
    def folder(self) -> Path:
        """Where the run's own files are, MPI's too; removed at the end."""
        return self._folder

    @property
    def _switch(self) -> int:
        return self._processes[self.count].pid

    def _connect(self) -> None:
        # forward_delay 0: a cable that is put in again carries at once.
        self._ip(
            self._switch,
            "link add bridge type bridge forward_delay 0",
            "link set bridge up",
        )
        self._lay_cables()
        for host, name in enumerate(self.names):
            # Larger frames are fewer, which a long cable needs.
            mtu = 1500 if self._delay_ms is None else 9000
            self._ip(
                self._switch,
                f"link set {name} mtu {mtu} master bridge",
                f"link set {name} up",
            )
            self._ip(
                self._processes[host].pid,
                f"address add {self.address(host)}/24 dev eth0",
                f"link set eth0 mtu {mtu} up",
            )
            self._shape(host, self._mbit)

    def _lay_cables(self) -> None:
        """Make the two ends of every host's cable."""
        ends = [
            (self._processes[host].pid, "eth0", self._switch, name)
            for host, name in enumerate(self.names)
        ]
        if self._delay_ms is None:
            self._ip(
                self._switch,
                *[
                    f"link add {far} type veth peer name {near} netns {pid}"
                    for pid, near, _, far in ends
                ],
            )
            return
        cables = []
        for end in ends:
            words = [self._delay_ms, *end]
            cables.append(_start([sys.executable, str(LONG_CABLE), *map(str, words)]))
            self._processes.append(cables[-1])
        for cable in cables:
            _await_ready(cable)

    def _write_agent(self) -> None:
        cases = [
            f"{name}|{self.address(i)}) pid={self._processes[i].pid} ;;"
            for i, name in enumerate(self.names)
        ]
        self._agent = self._folder / "on"
        text = ON.format(cases="\n".join(cases), folder=shlex.quote(str(ROOT)))
        self._agent.write_text(text)
        self._agent.chmod(0o755)

    def _mpi(self) -> dict[str, str]:
        """Open MPI's settings, as variables: those that one version does not know it ignores."""
        subnet = f"{SUBNET}.0/24"
        settings = {
            # 5: PRRTE starts the daemons; 4: ORTE, which is part of Open MPI.
            "PRTE_MCA_plm_ssh_agent": str(self._agent),
            "OMPI_MCA_plm_rsh_agent": str(self._agent),
            "PRTE_MCA_prte_tmpdir_base": str(self._folder),
            "OMPI_MCA_orte_tmpdir_base": str(self._folder),
            "PRTE_MCA_prte_if_include": subnet,
            "OMPI_MCA_oob_tcp_if_include": subnet,
            # The ranks: TCP between hosts, shared memory on one.
            "OMPI_MCA_pml": "ob1",
            "OMPI_MCA_btl": "^ofi,openib,uct,usnic",
            "OMPI_MCA_osc": "^ucx",
            "OMPI_MCA_btl_tcp_if_include": subnet,
            # Each host believes that it owns the cores.
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }
        return settings | {"TMPDIR": str(self._folder)}

    def _shape(self, host: int, mbit: float | None) -> None:
        for pid, device in (
            (self._processes[host].pid, "eth0"),
            (self._switch, self.names[host]),
        ):
            if mbit is None:
                # There may be none to delete.
                _run(pid, "tc", "qdisc", "delete", "dev", device, "root", check=False)
                continue
            queue = max(4 * BURST_KB * 1024, int(mbit * 1e6 / 8 * self._queue_ms / 1e3))
            rule = f"tbf rate {int(mbit * 1e6)}bit burst {BURST_KB}kb limit {queue}"
            _run(pid, "tc", "qdisc", "replace", "dev", device, "root", *rule.split())

    def _ip(self, pid: int, *lines: str) -> None:
        _run(pid, "ip", "-batch", "-", text="\n".join(lines) + "\n")

    def _unslow(self, host: int) -> None:
        if host in self._slowed:
            self._slowed.pop(host).stop()

    def _end_all(self) -> None:
        for host in list(self._slowed):
            self._unslow(host)
        for process in self._processes:
            process.kill()
            process.communicate()
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            _signal(left, signal.SIGKILL)
            time.sleep(0.02)


class _Slowed:
    """Stops and continues a host's ranks, so that they run for a share of the time."""

    def __init__(self, host: int, share: float) -> None:
        self._namespace = _namespace(host)
        self._share = share
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._alternate, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _alternate(self) -> None:
        for pids in self._pids():
            _signal(pids, signal.SIGSTOP)
            ended = self._done.wait(SLICE_S * (1 - self._share))
            _signal(pids, signal.SIGCONT)
            if ended or self._done.wait(SLICE_S * self._share):
                return

    def _pids(self) -> Iterator[list[int]]:
        """The ranks, looked for now and then: that takes longer than a slice is long."""
        while True:
            pids = [pid for pid in _all_pids() if self._is_rank(pid)]
            looked = time.monotonic()
            while time.monotonic() - looked < LOOK_S:
                yield pids

    def _is_rank(self, pid: int) -> bool:
        try:
            if _namespace(pid) != self._namespace:
                return False
            return b"OMPI_COMM_WORLD_RANK=" in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # it has ended meanwhile
            return False


def told(run: CompletedRun) -> list[dict[str, Any]]:
    """The JSON objects that the ranks printed, one a line, in the order of their "rank"."""
    lines = (parse(line) for line in run.stdout.splitlines())
    return sorted((facts for facts in lines if facts is not None), key=lambda facts: facts["rank"])


def _start(command: list[str]) -> subprocess.Popen[str]:
    """Start what prints "ready", and ends when its standard input does."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the test, which then ends it
    )


def _await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    timer = threading.Timer(READY_S, process.kill)
    timer.start()
    try:
        if process.stdout.readline() != "ready\n":
            said = process.stderr.read().strip().splitlines()
            raise Unavailable(said[-1] if said else f"no answer from {process.args}")
    finally:
        timer.cancel()


def _run(pid: int, *command: str, text: str | None = None, check: bool = True) -> None:
    """Run a command in the network namespace of `pid`."""
    done = subprocess.run(
        ["nsenter", "--target", str(pid), "--net", *command],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise Unavailable(f"`{' '.join(command)}`: {done.stderr.strip()}")


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _namespace(pid: int) -> str:
    """The network namespace of a process; empty if it has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""
