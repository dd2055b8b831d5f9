"""What `make test-gpu` and `make bench-gpu` run, with nothing but what the machine has.

    python tests/gpu/run.py test sanitize bench [--device cuda|cpu] [--ranks 2,3,4] [--quick] \
        [--no-build]

One or more of the three, in this order of use: what takes longest to tell something comes last.

No package is installed and no mpirun needed, but Python with numpy, torch, pybind11 and setuptools,
g++ and nvcc. CMake and ninja are used if they are there. With `--device cpu` the same programs run
with CPU tensors and the kernels' twins, which needs neither nvcc nor a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
TESTS = BUILD / "hvd_backup_tests"
SPEED = BUILD / "device_speed"
NEEDED = ("numpy", "torch", "pybind11", "setuptools")
SANITIZERS = ("memcheck", "racecheck")
PATHS = ("staged", "mapped")


def missing(device: str, *, build: bool) -> list[str]:
    """What the machine lacks, in words."""
    packages = [name for name in NEEDED if build or name not in ("pybind11", "setuptools")]
    lacks = [f"Python package {name}" for name in packages if not importlib.util.find_spec(name)]
    if build and not (shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")):
        lacks.append("a C++ compiler: g++ on PATH, or CXX")
    if device != "cuda":
        return lacks
    if build and not shutil.which(os.environ.get("CUDACXX") or "nvcc"):
        lacks.append("nvcc: put the CUDA toolkit's bin folder on PATH, or set CUDACXX")
    if importlib.util.find_spec("torch"):
        import torch

        if not torch.backends.cuda.is_built():
            lacks.append(f"a torch with CUDA: torch {torch.__version__} is built without it")
        elif not torch.cuda.is_available():
            lacks.append("a GPU that torch can use: torch.cuda.is_available() is False")
    return lacks


class Steps:
    """Runs commands one after another, and remembers how they ended."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, float]] = []

    def run(self, name: str, *command: str | Path, limit_s: float = 600) -> bool:
        print(f"== {name}", flush=True)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        began = time.monotonic()
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, timeout=limit_s, check=False
            ).returncode
            word = "pass" if status == 0 else f"FAIL (exit status {status})"
        except subprocess.TimeoutExpired:
            word = f"FAIL (not done after {limit_s:g} s)"
        self.done.append((name, word, time.monotonic() - began))
        print(f"== {name}: {word} after {self.done[-1][2]:.1f} s", flush=True)
        return word == "pass"

    def skip(self, name: str, why: str) -> None:
        self.done.append((name, f"skipped: {why}", 0.0))

    def table(self) -> int:
        """Print how all ended; the exit status."""
        print(f"\n{'step':<44} {'s':>7}  how it ended")
        for name, word, seconds in self.done:
            print(f"{name:<44} {seconds:>7.1f}  {word}")
        return 1 if any(word.startswith("FAIL") for _, word, _ in self.done) else 0


def build(steps: Steps, *programs: str) -> bool:
    """The extension in place, and C++ programs in BUILD."""
    python = sys.executable
    if not steps.run("build the extension", python, "setup.py", "--quiet", "build_ext", "-i"):
        return False
    jobs = str(len(os.sched_getaffinity(0)))
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    name = f"build {' and '.join(programs)}"
    if cmake is None:
        return steps.run(name, python, "csrc/direct.py", BUILD, *programs)
    generator = "Ninja" if ninja else "Unix Makefiles"
    options = ("-G", generator, "-DHVD_BACKUP_PYTHON=OFF")
    return steps.run("configure", cmake, "-S", "csrc", "-B", BUILD, *options) and steps.run(
        name, cmake, "--build", BUILD, "--parallel", jobs, "--target", *programs
    )


def cases(device: str) -> str:
    """Part of the names of the C++ cases that are meant."""
    return "GPU" if device == "cuda" else "twin"


def ranks(count: int) -> tuple[str | Path, ...]:
    """The launcher's command line, up to the program."""
    launcher = ("-m", "hvd_backup.cluster.local_run", "-np", str(count), "--")
    return (sys.executable, *launcher, sys.executable)


def test(steps: Steps, given: argparse.Namespace) -> None:
    """Kernels and both paths in C++, then the core and torch on several ranks of one GPU."""
    if not given.no_build:
        steps.run(f"C++ cases: {cases(given.device)}", TESTS, cases(given.device))
    for size, path in itertools.product(given.ranks, PATHS):
        program = ("tests/gpu/properties.py", "--device", given.device, "--path", path)
        steps.run(f"properties on {size} ranks, {given.device}, {path}", *ranks(size), *program)
    if given.device == "cuda":
        with_a_gpu_each(steps, given.ranks)


def sanitize(steps: Steps, given: argparse.Namespace) -> None:
    """The C++ cases again, under compute-sanitizer."""
    sanitizer = shutil.which("compute-sanitizer")
    for tool in SANITIZERS:
        name = f"compute-sanitizer {tool}"
        if given.device != "cuda":
            steps.skip(name, "of a GPU only")
        elif sanitizer is None:
            steps.skip(name, "compute-sanitizer is not on PATH")
        else:
            line = (sanitizer, "--tool", tool, "--error-exitcode", "9")
            steps.run(name, *line, TESTS, "--limit", "1200", cases(given.device), limit_s=1800)


def bench(steps: Steps, given: argparse.Namespace) -> None:
    """Kernels beside the device's own copy, and what a step pays for its exchange."""
    line = ["benchmarks/gpu.py", "--device", given.device, "--program", str(SPEED)]
    line += ["--ranks", ",".join(map(str, given.ranks)), *(["--quick"] if given.quick else [])]
    steps.run("benchmark", sys.executable, *line, limit_s=1800)


WHAT = {"test": (test, TESTS), "sanitize": (sanitize, TESTS), "bench": (bench, SPEED)}


def with_a_gpu_each(steps: Steps, worlds: list[int]) -> None:
    """The properties again, where there are GPUs for it."""
    import torch

    gpus = torch.cuda.device_count()
    for size, path in itertools.product(worlds, PATHS):
        name = f"properties on {size} GPUs, {path}"
        program = ("tests/gpu/properties.py", "--each", "--path", path)
        if size <= gpus:
            steps.run(name, *ranks(size), *program)
        else:
            steps.skip(name, f"there are {gpus} GPUs" if gpus > 1 else "there is one GPU")


def main() -> int:
    """The exit status: 0, 1 if something failed, 2 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="+", choices=list(WHAT))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ranks", type=sizes, default="2,3,4", help="world sizes")
    parser.add_argument("--no-build", action="store_true", help="use what was built before")
    parser.add_argument("--quick", action="store_true", help="few samples")
    given = parser.parse_args()
    if lacks := missing(given.device, build=not given.no_build):
        print(f"{', '.join(given.what)}: cannot run on a GPU here; missing:", file=sys.stderr)
        for what in lacks:
            print(f"  - {what}", file=sys.stderr)
        return 2
    steps = Steps()
    programs = dict.fromkeys(WHAT[what][1].name for what in given.what)
    if given.no_build or build(steps, *programs):
        for what in given.what:
            WHAT[what][0](steps, given)
    return steps.table()


def sizes(text: str) -> list[int]:
    """World sizes, from `2,3,4`."""
    return [int(size) for size in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
