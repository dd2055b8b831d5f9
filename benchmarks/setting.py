"""Where a benchmark runs: what is written down with its results, and how its ranks are started."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mpi4py

from hvd_backup.study.mpirun import run_ranks

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "bench" / "logs"
# The extension's, so that what both have in common is compiled once.
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
# Ranks are not tied to cores: a late rank has two busy threads.
UNBOUND = {
    "PRTE_MCA_hwloc_default_binding_policy": "none",  # Open MPI 5
    "OMPI_MCA_hwloc_base_binding_policy": "none",  # Open MPI 4
}


def start(
    ranks: int, module: str, *args: str, env: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Run a module of this folder on `ranks` ranks; yield the JSON objects that they print."""
    saved = dict(os.environ)
    os.environ.update({**UNBOUND, "PYTHONPATH": search_path(), **(env or {})})
    try:
        LOGS.mkdir(parents=True, exist_ok=True)
        yield from run_ranks(ranks, [module, *args], LOGS / f"{module}-{ranks}.log")
    finally:
        os.environ.clear()
        os.environ.update(saved)


def search_path() -> str:
    """PYTHONPATH of the ranks."""
    paths = [str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


def with_horovod() -> dict[str, str]:
    """The environment in which ranks can import `make horovod`'s Horovod; {}: there is none."""
    find = [str(ROOT / "tests" / "launchers" / "build_horovod.sh"), "--find"]
    found = subprocess.run(find, capture_output=True, text=True, check=False)
    if found.returncode:
        return {}
    return {
        "PYTHONPATH": os.pathsep.join([search_path(), found.stdout.strip()]),
        "LD_LIBRARY_PATH": str(Path(sys.executable).parent.parent / "lib"),
    }


def meta() -> dict[str, Any]:
    """What a reader needs to judge and to repeat the results."""
    mpi4py.rc.initialize = False  # the parent of mpirun is no world of its own
    from mpi4py import MPI

    return {
        "command": "python " + shlex.join([*_relative(sys.argv[:1]), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(),
            "mpi": MPI.Get_library_version().split(",")[0].strip("\0\n "),
            **{name: metadata.version(name) for name in ("mpi4py", "numpy", "torch")},
        },
    }


def build_program(target: str) -> Path:
    """A program of csrc/bench, built if it is not up to date."""
    cmake = _tool("cmake")
    configure = [cmake, "-S", str(ROOT / "csrc"), "-B", str(BUILD)]
    if not (BUILD / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
    for command in (
        [*configure, f"-DPython_EXECUTABLE={sys.executable}"],
        [cmake, "--build", str(BUILD), "--target", target],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return BUILD / target


def _relative(paths: list[str]) -> list[str]:
    return [os.path.relpath(path, ROOT) for path in paths]


def _tool(name: str) -> str:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or name


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
