"""What `hvd-backup doctor` finds out in processes of their own, which may crash or hang.

    python -m hvd_backup.cluster.probe mpi

prints JSON objects, one a line, each as soon as it is known: what came before a crash counts. An
exception is printed as ``{"error": text}``.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvd_backup import launch

# An MPI library among the files that a process has mapped; libmpi_cxx and such are not meant.
_LIBMPI = re.compile(r"^libmpi(ch|_cray|_gnu|_intel|_nvidia)?[\d.]*(_\w+)?\.so")
_NOT_LIBMPI = re.compile(r"^libmpi_(cxx|mpifh|usempi|java)")


def tell(**facts: object) -> None:
    """Print what was found out."""
    print(json.dumps(facts), flush=True)


def mpi() -> None:
    """The MPI library and the world; ends with a partial all-reduce of all ranks."""
    launch.check_before_init(launch.detect(os.environ), launch.mpi4py_library_version())
    import mpi4py
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    levels = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
    given = MPI.Query_thread()
    tell(
        rank=world.rank,
        size=world.size,
        mpi=library_name(MPI.Get_library_version()),
        path=launch.loaded_mpi_library(),
        standard=".".join(map(str, MPI.Get_version())),
        mpi4py=mpi4py.__version__,
        module=Path(MPI.__file__).name,
        threads=next(name for name in levels if getattr(MPI, f"THREAD_{name}") == given),
    )
    launch.check(launch.detect(os.environ), world.rank, world.size)
    _exchange(MPI)


def _exchange(MPI: Any) -> None:
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank)
    ranks = world.allgather({"node": node.bcast(world.rank), **place()})
    node.Free()
    tell(rank=world.rank, ranks=ranks)
    _mean()


def local() -> None:
    """The world that `hvd-backup run --no-mpi` makes; no MPI is loaded."""
    import hvd_backup as hb

    hb.init()
    tell(rank=hb.rank(), size=hb.size(), ranks=hb.allgather_object({"node": 0, **place()}))
    _mean()


def _mean() -> None:
    """A partial all-reduce of all ranks."""
    import numpy as np

    import hvd_backup as hb
    from hvd_backup.runtime import current

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
    line = [sys.executable, "-m", "hvd_backup.cluster.probe", "peer"]
    told = subprocess.run(
        line,
        input=json.dumps([theirs, gpu, where.hex(), place]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    mine.release()
    for facts in map(json.loads, filter(lambda text: text[:1] == "{", told.stdout.splitlines())):
        if "error" in facts:
            return str(facts["error"])
        if facts.get("done"):
            return ""
    return f"another process ended with exit status {told.returncode}"


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


def main(name: str) -> int:
    """Run one probe; 1 if it raised."""
    try:
        PROBES[name]()
    except Exception as error:  # noqa: BLE001  (telling any error is the purpose)
        tell(error=_one_line(error))
        return 1
    tell(done=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
