"""Builds without CMake, for machines that have a compiler and not much else.

    python csrc/direct.py [--cuda=AUTO|ON|OFF] BUILD TARGET…

Targets: _core, hvd_backup_tests, device_speed. Release builds only, without MPI; g++ or $CXX, and
nvcc if it is on PATH ($CUDACXX). What is compiled, and how, is CMakeLists.txt's to say:
tests/unit/test_direct_build.py compares.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent
LAYERS = (
    "base", "protocol", "memory", "arithmetic", "device", "transport", "round", "internode"
)
TARGETS = {
    "_core": [f"python/{name}.cpp" for name in ("core", "memory", "nodes", "device")],
    "hvd_backup_tests": ["tests/main.cpp", "tests/check.cpp", "tests/test_*.cpp"],
    "device_speed": ["bench/device_speed.cpp"],
}
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion"]
CPP = ["-O3", "-DNDEBUG", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
CPP += ["-fvisibility-inlines-hidden", "-ffp-contract=off", *WARNINGS]
CUDA = ["-O3", "-DNDEBUG", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "--fmad=false"]
CUDA += ["-Xcompiler=-ffp-contract=off,-Wall,-Wextra,-Wconversion", "-cudart=static"]


class BuildError(Exception):
    """What is missing, or what the compiler said."""


@dataclass(frozen=True)
class Tools:
    """The compilers; `nvcc` is empty for a build without CUDA."""

    cxx: str
    nvcc: str
    archs: tuple[int, ...] = ()

    @classmethod
    def find(cls, cuda: str = "AUTO") -> Tools:
        cxx = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
        if cxx is None:
            raise BuildError("no C++ compiler: put g++ on PATH, or set CXX")
        nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc") or ""
        if cuda == "ON" and not nvcc:
            raise BuildError(
                "CUDA is to be ON, but there is no nvcc: put it on PATH, or set CUDACXX"
            )
        nvcc = "" if cuda == "OFF" else nvcc
        archs: tuple[int, ...] = ()
        if nvcc:
            listed = subprocess.run(
                [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False
            ).stdout.split()
            archs = tuple(n for n in (80, 90, 100) if f"compute_{n}" in listed) or (80,)
        return cls(cxx, nvcc, archs)


def library(*, cuda: bool) -> list[Path]:
    """The sources of hvd_backup_core; of twins, one each."""
    avx2 = platform.machine() in ("x86_64", "AMD64")
    files = []
    for layer in LAYERS:
        for path in sorted((CSRC / layer).glob("*.cpp")):
            other_twin = path.name == ("no_avx2.cpp" if avx2 else "mean_avx2.cpp")
            no_cuda = path.name.startswith("no_cuda")
            if not (other_twin or (no_cuda and cuda)):
                files.append(path)
    return files + (sorted((CSRC / "device").glob("*.cu")) if cuda else [])


def own(target: str) -> list[Path]:
    """The target's sources beside the library."""
    return [path for pattern in TARGETS[target] for path in sorted(CSRC.glob(pattern))]


def compile_command(path: Path, out: Path, tools: Tools) -> list[str]:
    """How CMake would compile this file."""
    if path.suffix == ".cu":
        archs = [f"-gencode=arch=compute_{n},code=[compute_{n},sm_{n}]" for n in tools.archs]
        return [tools.nvcc, *CUDA, *archs, f"-I{CSRC}", "-c", str(path), "-o", str(out)]
    more = ["-mavx2"] if path.name == "mean_avx2.cpp" else []
    if path.parent.name == "python":
        import pybind11

        more += [f"-isystem{folder}" for folder in (pybind11.get_include(), _python_headers())]
    return [tools.cxx, *CPP, *more, f"-I{CSRC}", "-c", str(path), "-o", str(out)]


def link_command(target: str, objects: list[Path], out: Path, tools: Tools) -> list[str]:
    """A module or a program of these objects."""
    line = [tools.nvcc, "-cudart=static"] if tools.nvcc else [tools.cxx]
    for_linker = "-Xlinker={}" if tools.nvcc else "-Wl,{}"
    if target == "_core":
        line += ["-shared", for_linker.format("--exclude-libs=ALL")]
    return [*line, *map(str, objects), "-o", str(out), "-lpthread", "-lrt"]


def build(folder: Path, target: str, tools: Tools) -> Path:
    """The target's file; compiles what is older than any of our sources. Raises BuildError."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if target == "_core" else ""
    result = folder / f"{target}{suffix}"
    newest = max(path.stat().st_mtime for path in CSRC.rglob("*") if path.is_file())
    objects, commands = [], []
    for path in library(cuda=bool(tools.nvcc)) + own(target):
        made = folder / "objects" / f"{path.relative_to(CSRC)}.o"
        made.parent.mkdir(parents=True, exist_ok=True)
        objects.append(made)
        if not made.exists() or made.stat().st_mtime < newest:
            commands.append(compile_command(path, made, tools))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(_run, commands))
    _run(link_command(target, objects, result, tools))
    return result


def _python_headers() -> str:
    folder = sysconfig.get_path("include")
    if not (Path(folder) / "Python.h").exists():
        raise BuildError(f"no Python.h in {folder}: install python3-dev")
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def main(*words: str) -> int:
    """Build the targets; 1 if one cannot be built."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cuda", choices=("AUTO", "ON", "OFF"), default="AUTO")
    parser.add_argument("folder", type=Path)
    parser.add_argument("targets", nargs="+", choices=list(TARGETS), metavar="TARGET")
    given = parser.parse_args(words)
    try:
        tools = Tools.find(given.cuda)
        for target in given.targets:
            print(build(given.folder, target, tools))
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
