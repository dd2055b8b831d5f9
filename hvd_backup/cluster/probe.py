"""What `hvd-backup doctor` finds out in processes of their own, which may crash or hang.

    python hvd_backup/cluster/start_probe.py mpi FOLDER SECONDS

Each process writes JSON objects to a file of its own in FOLDER, one a line, each as soon as it is
known: what came before a crash counts. An exception is told as ``{"error": text}``. A rank on a
host without that folder prints them. SECONDS is how long the whole may take.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvd_backup.config import settings
from hvd_backup.study.mpirun import parse
from hvd_backup.world import launch, mpi_library
from hvd_backup.world.joining import way_to_start

# An MPI library among the files that a process has mapped; libmpi_cxx and such are not meant.
_LIBMPI = re.compile(r"^libmpi(ch|_cray|_gnu|_intel|_nvidia)?[\d.]*(_\w+)?\.so")
_NOT_LIBMPI = re.compile(r"^libmpi_(cxx|mpifh|usempi|java)")


START = (sys.executable, str(Path(__file__).with_name("start_probe.py")))
"""The beginning of a probe's command line."""

_SETTINGS = settings(os.environ)  # before `main` changes them


class _Answers:
    """Where this process's answers go."""

    folder = Path()


def tell(**facts: object) -> None:
    """Write down what was found out."""
    process = f"{socket.gethostname()}-{os.getpid()}"
    line = json.dumps({"process": process, **facts}) + "\n"
    try:
        with (_Answers.folder / process).open("a") as file:
            file.write(line)
    except FileNotFoundError:
        os.write(sys.stdout.fileno(), line.encode())  # at once: launchers mix what ranks print


def told(folder: Path, printed: str = "") -> list[dict[str, Any]]:
    """All that each process has told in `folder`, or printed; nothing of lines cut short.

    Processes come in the order in which they told their last, so that the first error is first.
    """
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    texts = [path.read_text() for path in files]
    by_process: dict[str, dict[str, Any]] = {}
    for facts in filter(None, map(parse, "\n".join([*texts, printed]).splitlines())):
        by_process.setdefault(str(facts.pop("process", "")), {}).update(facts)
    return list(by_process.values())


def mpi() -> None:
    """The MPI library and the world; ends with a partial all-reduce of all ranks."""
    how = launch.detect(os.environ)
    launch.check_before_init(how, mpi_library.version(), way_to_start)
    MPI = mpi_library.load()
    import mpi4py

    world = MPI.COMM_WORLD
    levels = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
    given = MPI.Query_thread()
    tell(
        rank=world.rank,
        size=world.size,
        mpi=library_name(MPI.Get_library_version()),
        path=mpi_library.path(),
        standard=".".join(map(str, MPI.Get_version())),
        mpi4py=mpi4py.__version__,
        module=Path(MPI.__file__).name,
        threads=next(name for name in levels if getattr(MPI, f"THREAD_{name}") == given),
    )
    launch.check(how, world.rank, world.size, way_to_start)
    _exchange(MPI)


def _exchange(MPI: Any) -> None:
    world = MPI.COMM_WORLD
    host = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
    node_size = _SETTINGS.get("HVD_BACKUP_NODE_SIZE", "")
    size = int(node_size) if node_size.isdigit() and int(node_size) else host.size
    node = host.Split(host.rank // size, key=world.rank)
    here = {"machine": host.bcast(world.rank), "node": node.bcast(world.rank)}
    ranks = world.allgather({**here, **place()})
    node.Free()
    host.Free()
    tell(rank=world.rank, ranks=ranks)
    _mean()


def local() -> None:
    """The world that `hvd-backup run --no-mpi` makes; no MPI is loaded."""
    import hvd_backup as hb

    _wait_for_all()
    hb.init()
    tell(rank=hb.rank(), size=hb.size(), ranks=hb.allgather_object(alone()))
    _mean()


def _wait_for_all() -> None:
    """The probe's mean is over all ranks, whatever programs are to do."""
    os.environ.pop("HVD_BACKUP_WORKERS", None)


def _mean() -> None:
    """A partial all-reduce of all ranks."""
    import numpy as np

    import hvd_backup as hb
    from hvd_backup.world.runtime import current

    _wait_for_all()
    hb.init()
    mean, _ = hb.partial_allreduce(np.full(8, float(hb.rank())), backup_workers=0)
    if not np.all(mean == (hb.size() - 1) / 2):
        raise RuntimeError(f"the mean of the ranks' numbers is wrong: {mean}")
    tell(rank=hb.rank(), works=True, remote_reads=bool(getattr(current(), "remote_reads", False)))
    hb.shutdown()


def library_name(version: str) -> str:
    """The short form of MPI_Get_library_version's text."""
    first_line = version.strip("\0 \n\t").partition("\n")[0]
    return " ".join(first_line.partition(",")[0].split())


def alone() -> dict[str, object]:
    """The place of a rank whose host is the only one, and one node."""
    return {"machine": 0, "node": 0, **place()}


def place() -> dict[str, object]:
    """Where this process runs, and what it may use there."""
    try:
        shm = os.statvfs("/dev/shm")
        sizes = {"shm": shm.f_blocks * shm.f_frsize, "shm_free": shm.f_bavail * shm.f_frsize}
    except OSError:
        sizes = {"shm": 0, "shm_free": 0}
    return {
        "host": socket.gethostname(),
        "cores": sorted(os.sched_getaffinity(0)),
        "quota": cpu_quota(Path("/sys/fs/cgroup")),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "settings": _SETTINGS,
        **sizes,
    }


def cpu_quota(cgroup: Path) -> float | None:
    """Cores' worth of time that a container may use; None if it is not limited."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((cgroup / name).read_text() for name in names).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # "max", or -1 below: no limit
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def cuda() -> None:
    """What the core knows of CUDA; asks the driver, and tries the way of gradients."""
    from hvd_backup import _core

    status = _core.cuda_status()
    tell(
        built=status.built,
        runtime=status.runtime_version,
        devices=status.devices,
        why=status.why,
        path=os.environ.get("HVD_BACKUP_DEVICE_PATH", "").strip() or "staged",
    )
    if status.devices:
        tell(unpinned=try_staging(_core, 0))
        tell(unmapped=try_mapping(_core, 0, status.devices - 1))


def try_staging(core: Any, device: int) -> str:
    """Zeros to shared memory and back; why that memory is not pinned, empty if it is."""
    segment = core.Segment.create(4096)
    data = segment.bytes()
    data[:] = 1
    runs = [("float32", "float32", 0, [(0, 1024)])]
    staging = core.Staging(device, runs, data.ctypes.data, data.nbytes, owner=data)
    staging.stage([0], 0)
    staging.load(data.ctypes.data, [0], 0)
    staging.settle()
    if data.any():
        raise RuntimeError("what was packed on the device did not arrive in shared memory")
    return str(staging.why_not_pinned)


def try_mapping(core: Any, device: int, theirs: int) -> str:
    """Let another process's kernel read memory of `device`; why it cannot, empty if it can.

    That process uses the device `theirs`.
    """
    mine = core.MappedArena(device, 4096, 1)
    gpu, where, *place = mine.handle
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*START, "peer", folder, "60"],
            input=json.dumps([theirs, gpu, where.hex(), place]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        facts = next(iter(told(Path(folder))), {})
    mine.release()
    if "error" in facts:
        return str(facts["error"])
    return "" if facts.get("done") else f"another process ended with exit status {done.returncode}"


def peer() -> None:
    """Map memory of another process, which is told on stdin, and let a kernel read it."""
    from hvd_backup import _core

    device, gpu, where, (pid, address, nbytes) = json.load(sys.stdin)
    mine = _core.MappedArena(device, 4096, 1)
    mine.open([(gpu, bytes.fromhex(where), pid, address, nbytes), mine.handle], 1)
    mine.unmap()


def framework(name: str) -> None:
    """Import a framework, and our adapter for it if there is one."""
    module = importlib.import_module(name)
    facts: dict[str, object] = {"version": str(getattr(module, "__version__", "?"))}
    if name == "torch":
        facts["hooks"] = hasattr(module.Tensor, "register_post_accumulate_grad_hook")
    tell(**facts)
    try:
        adapter = importlib.util.find_spec(f"hvd_backup.{name}") is not None
    except ImportError:
        adapter = False
    if adapter:
        importlib.import_module(f"hvd_backup.{name}")
    tell(adapter=adapter)


def horovod() -> None:
    """What Horovod was built with, and which MPI it loads."""
    package = importlib.import_module("horovod")
    tell(version=str(getattr(package, "__version__", "?")))
    problems = []
    for name in ("torch", "tensorflow"):
        try:
            module = importlib.import_module(f"horovod.{name}")
        except Exception as error:  # noqa: BLE001  (Horovod raises what it likes)
            problems.append(f"horovod.{name}: {_one_line(error)}")
            continue
        built = {kind: bool(getattr(module, f"{kind}_built")()) for kind in ("mpi", "gloo", "nccl")}
        tell(framework=name, built=built, libmpi=mapped_mpi(Path("/proc/self/maps").read_text()))
        return
    raise ImportError("; ".join(problems))


def mapped_mpi(maps: str) -> list[str]:
    """The MPI libraries in the text of a /proc/<pid>/maps."""
    files = {words[5] for line in maps.splitlines() if len(words := line.split(None, 5)) == 6}
    return sorted(
        file
        for file in files
        if _LIBMPI.match(Path(file).name) and not _NOT_LIBMPI.match(Path(file).name)
    )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


PROBES: dict[str, Callable[[], None]] = {
    "mpi": mpi,
    "local": local,
    "cuda": cuda,
    "peer": peer,
    "torch": lambda: framework("torch"),
    "tensorflow": lambda: framework("tensorflow"),
    "keras": lambda: framework("keras"),
    "horovod": horovod,
}


def main(name: str, folder: str, limit_s: str) -> int:
    """Run one probe; 1 if it raised."""
    _Answers.folder = Path(folder)
    # Ranks that wait for one that failed should give up before the doctor does. The same on all
    # ranks, since they compare it.
    os.environ["HVD_BACKUP_TIMEOUT"] = f"{max(1.0, float(limit_s) / 2):g}"
    try:
        PROBES[name]()
    except Exception as error:  # noqa: BLE001  (telling any error is the purpose)
        tell(error=_one_line(error))
        return 1
    tell(done=True)
    return 0
