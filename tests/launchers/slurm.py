"""A Slurm of the tests' own: two virtual nodes on this machine, in a folder of its own.

    with Cluster(folder) as cluster:
        run = cluster.srun("--mpi=pmix", "-n", 4, "python", "program.py")

Each node is a slurmd in namespaces of its own: a host name, because Open MPI looks up a rank's node
by that name; mounts, for an /etc/hosts with the names and a /dev/shm of its own; and process ids,
because then nothing of a node outlives its slurmd. The daemons end with the process that started
them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from launching import CompletedRun, Ranks, StillRunning

NODES = ("n0", "n1")
CPUS = 64  # of each node: Slurm is told so, that no step waits for another
START_S = 30
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
# What is started by it, and all that comes of that, ends with it.
OWN_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

# proctrack, task and jobacct: the plugins that need no cgroups. TmpFS: the PMIx plugin makes a
# folder there, named by the job alone. MailProg: else Slurm looks for one and complains.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
TmpFS={folder}/tmp-%n
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PartitionName=all Nodes=ALL Default=YES State=UP
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}\n"


def missing() -> str:
    """What this machine lacks for a Cluster, and how to get it; "" if nothing."""
    programs = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "unshare", "setpriv")
    absent = [name for name in programs if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install --no-install-recommends slurm-wlm munge"
    if os.geteuid() != 0:
        return "Slurm's daemons and their host names need root: run these tests as root"
    command = [*_on_node("n0", Path("/etc/hosts")), "true"]
    node = subprocess.run(command, capture_output=True, text=True, check=False)
    if node.returncode:
        return f"no namespaces for a node: {node.stderr.strip()}; see 'man unshare'"
    return ""


def missing_pmix() -> str:
    """What `srun --mpi=pmix` lacks: Slurm's plugin asks for libpmix.so, without a number."""
    load = "import ctypes; ctypes.CDLL('libpmix.so')"
    if subprocess.run([sys.executable, "-c", load], capture_output=True, check=False).returncode:
        return "no libpmix.so: apt-get install --no-install-recommends libpmix-dev"
    return ""


class Cluster:
    """A context manager; leaving it ends every daemon and every job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self._daemons: list[Ranks] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def srun(
        self, *words: object, env: Mapping[str, str] | None = None, timeout: float = 100
    ) -> CompletedRun:
        """Run `srun *words` to its end; nothing of it is left."""
        with self._client("srun", *words, env=env) as srun:
            return srun.wait(timeout)

    def sbatch(
        self,
        script: str,
        *options: object,
        env: Mapping[str, str] | None = None,
        timeout: float = 100,
    ) -> CompletedRun:
        """Run the shell script as a batch job to its end; stdout is the job's, stderr too."""
        path = self.folder / "batch.sh"
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        output = self.folder / f"batch-{secrets.token_hex(4)}.out"
        with self._client(
            "sbatch", "--parsable", f"--output={output}", *options, path, env=env
        ) as sbatch:
            submitted = sbatch.wait(20)
            assert submitted.returncode == 0, submitted
            job = submitted.stdout.strip()
            try:
                status = self._end_of_job(job, timeout)
            finally:
                self._ask("scancel", "--quiet", job)
                # The batch script and all below it carry sbatch's mark, and are killed here.
        return CompletedRun(status, output.read_text(), submitted.stderr)

    def survivors(self) -> list[int]:
        """Process ids of daemons that are alive."""
        return [pid for daemon in self._daemons for pid in daemon.survivors()]

    def close(self) -> None:
        """Kill the daemons, and so the nodes' processes."""
        for daemon in reversed(self._daemons):
            below = [pid for pid in daemon.survivors() if pid != daemon.process.pid]
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if below:  # unshare waits for its child, so that there is no zombie
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.process.wait(5)
            daemon.close()

    def logs(self) -> str:
        """The end of each daemon's log."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in paths
        )

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)  # munged insists that others can reach its socket
        for name in ("state", *(f"{kind}-{node}" for kind in ("tmp", "spool") for node in NODES)):
            (self.folder / name).mkdir()
        port, *ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(folder=self.folder, host=host, port=port)
        for name, port in zip(NODES, ports, strict=True):
            text += NODE.format(name=name, port=port, cpus=CPUS)
        self.configuration.write_text(text)

        self._daemon(
            "munged",
            "--foreground",
            f"--key-file={key}",
            *(
                f"--{kind}={self.folder}/munge.{kind}"
                for kind in ("socket", "pid-file", "seed-file")
            ),
            f"--log-file={self.folder}/munge.log",
        )
        self._wait_for("munged's socket", (self.folder / "munge.socket").exists)
        self._daemon(*OWN_PROCESSES, "slurmctld", "-D", "-f", str(self.configuration))
        hosts = self.folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {' '.join(NODES)}\n")
        for name in NODES:
            self._daemon(
                *_on_node(name, hosts), "slurmd", "-D", "-N", name, "-f", str(self.configuration)
            )
        self._wait_for("idle nodes", self._all_idle)

    def _daemon(self, *command: str) -> None:
        mortal = ("setpriv", "--pdeathsig", "KILL")
        self._daemons.append(Ranks(1, [*mortal, *command], self._environment()))

    def _client(self, *words: object, env: Mapping[str, str] | None = None) -> Ranks:
        return Ranks(1, [str(word) for word in words], {**self._environment(), **(env or {})})

    def _ask(self, *words: str) -> str:
        with self._client(*words) as client:
            return client.wait(20).stdout

    def _environment(self) -> dict[str, str]:
        return {"PATH": _path(), "SLURM_CONF": str(self.configuration)}

    def _all_idle(self) -> bool:
        return self._ask("sinfo", "--noheader", "--format=%T %D").split() == [
            "idle",
            str(len(NODES)),
        ]

    def _end_of_job(self, job: str, timeout: float) -> int:
        """The exit status of the batch script, 128 + n if signal n ended it."""
        deadline = time.monotonic() + timeout
        while True:
            said = self._ask("scontrol", "--oneliner", "show", "job", job)
            facts = dict(word.split("=", 1) for word in said.split() if "=" in word)
            if facts.get("JobState") in ENDED:
                status, signal = facts["ExitCode"].split(":")
                return int(status) or (int(signal) and 128 + int(signal))
            if time.monotonic() > deadline:
                raise StillRunning(f"job {job} runs after {timeout:g} s: {said}\n{self.logs()}")
            time.sleep(0.1)

    def _wait_for(self, what: str, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not happened():
            ended = [daemon for daemon in self._daemons if daemon.process.poll() is not None]
            if ended or time.monotonic() > deadline:
                words = "\n".join(daemon.stderr for daemon in ended)
                raise StillRunning(f"no {what} in {START_S} s\n{words}\n{self.logs()}")
            time.sleep(0.1)


def _on_node(name: str, hosts: Path) -> list[str]:
    script = (
        'hostname "$0" && mount --bind "$1" /etc/hosts && shift && '
        'mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$@"'
    )
    return [*OWN_PROCESSES, "--uts", "sh", "-c", script, name, str(hosts)]


def _path() -> str:
    """slurmctld and its like lie in /usr/sbin, which is not on everybody's PATH."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
