"""The tests and benchmarks for a machine with a GPU: `make test-gpu` and `make bench-gpu`.

    python tests/gpu/run.py test sanitize bench [--device cuda|cpu] [--ranks 2,3,4] [--quick] \
        [--no-build]

Name one or more of the three. The tests take the least time, the benchmarks the most.

The machine must have Python with numpy, torch, pybind11 and setuptools, g++, nvcc and CMake. ninja
makes the build faster. No package is installed, and no mpirun is needed. With `--device cpu` the
same programs run with CPU tensors and the kernels' twins, which needs neither nvcc nor a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import re
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
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    "HVD_BACKUP_TIMEOUT": "60",  # seconds; a rank that hangs is to be told of while there is time
    "GLOO_SOCKET_IFNAME": "lo",  # all ranks are here, and a name of the host may not resolve
}
SANITIZERS = ("memcheck", "racecheck")
PATHS = ("staged", "mapped")


def missing(device: str, *, build: bool) -> list[str]:
    """Name each requirement that the machine lacks."""
    packages = [name for name in NEEDED if build or name not in ("pybind11", "setuptools")]
    lacks = [f"Python package {name}" for name in packages if not importlib.util.find_spec(name)]
    if build and not (shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")):
        lacks.append("a C++ compiler: g++ on PATH, or CXX")
    beside = Path(sys.executable).with_name("cmake")
    if build and not (beside.exists() or shutil.which("cmake")):
        lacks.append("CMake: put cmake on PATH")
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
    """Runs commands one after another, and keeps a table of how they ended."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, float]] = []

    def run(self, name: str, *command: str | Path, limit_s: float = 600) -> bool:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=ENV, stdin=subprocess.DEVNULL, timeout=limit_s, check=False
            ).returncode
            word = "pass" if status == 0 else f"FAIL (exit status {status})"
        except subprocess.TimeoutExpired:
            word = f"FAIL (not done after {limit_s:g} s)"
        except OSError as error:  # for example, the program was not built
            word = f"FAIL ({error.strerror}: {error.filename})"
        self.done.append((name, word, time.monotonic() - began))
        print(f"== {name}: {word} after {self.done[-1][2]:.1f} s", flush=True)
        return word == "pass"

    def skip(self, name: str, why: str) -> None:
        self.done.append((name, f"skipped: {why}", 0.0))

    def table(self) -> int:
        """Print how all steps ended; return the exit status."""
        print(f"\n{'step':<44} {'s':>7}  how it ended")
        for name, word, seconds in self.done:
            print(f"{name:<44} {seconds:>7.1f}  {word}")
        return 1 if any(word.startswith("FAIL") for _, word, _ in self.done) else 0


def build(steps: Steps, programs: list[str]) -> None:
    """Build C++ programs in BUILD, without Python; then the extension in place."""
    python = sys.executable
    name = f"build {' and '.join(programs)}"
    steps.run(name, python, "csrc/build.py", BUILD, "-DHVD_BACKUP_PYTHON=OFF", *programs)
    steps.run("build the extension", python, "setup.py", "--quiet", "build_ext", "-i")


def cases(device: str) -> tuple[str, ...]:
    """The words of the C++ program's command line that select the cases for the device."""
    return ("--need-gpu", "GPU") if device == "cuda" else ("twin",)


def ranks(count: int) -> tuple[str | Path, ...]:
    """The launcher's command line, without the program that it starts."""
    launcher = ("-m", "hvd_backup.cluster.local_run", str(count))
    return (sys.executable, *launcher, sys.executable)


def run_built(steps: Steps, name: str, *command: str | Path) -> None:
    """Run a program in BUILD; skip the step if it is not there, as with --no-build."""
    lacking = [word for word in command if isinstance(word, Path) and not word.exists()]
    if lacking:
        steps.skip(name, f"there is no {lacking[0].relative_to(ROOT)}")
    else:
        steps.run(name, *command)


def test(steps: Steps, given: argparse.Namespace) -> None:
    """Test kernels and both paths in C++, then the core and torch on several ranks of one GPU."""
    steps.run("what CUDA can do here", sys.executable, "-m", "hvd_backup.cluster.probe", "cuda")
    run_built(steps, f"C++ cases: {cases(given.device)[-1]}", TESTS, *cases(given.device))
    for size, path in itertools.product(given.ranks, PATHS):
        program = ("tests/gpu/properties.py", "--device", given.device, "--path", path)
        name = f"properties on {size} ranks, {given.device}, {path}"
        steps.run(name, *ranks(size), *program, limit_s=300)
    if given.device == "cuda":
        with_a_gpu_each(steps, given.ranks)


def sanitize(steps: Steps, given: argparse.Namespace) -> None:
    """Run the C++ cases again, under compute-sanitizer."""
    sanitizer = shutil.which("compute-sanitizer")
    for tool in SANITIZERS:
        name = f"compute-sanitizer {tool}"
        if given.device != "cuda":
            steps.skip(name, "it needs a GPU")
        elif sanitizer is None:
            steps.skip(name, "compute-sanitizer is not on PATH")
        else:
            line = (sanitizer, "--tool", tool, "--error-exitcode", "9")
            run_built(steps, name, *line, TESTS, "--limit", "600", *cases(given.device))


def bench(steps: Steps, given: argparse.Namespace) -> None:
    """Measure kernels beside the device's own copy, and the cost of a step's exchange."""
    line = ["benchmarks/gpu.py", "--device", given.device, "--program", str(SPEED)]
    line += ["--ranks", ",".join(map(str, given.ranks)), *(["--quick"] if given.quick else [])]
    if SPEED.exists():
        steps.run("benchmark", sys.executable, *line, limit_s=1800)
    else:
        steps.skip("benchmark", f"there is no {SPEED.relative_to(ROOT)}")


WHAT = {"test": (test, TESTS), "sanitize": (sanitize, TESTS), "bench": (bench, SPEED)}


def with_a_gpu_each(steps: Steps, worlds: list[int]) -> None:
    """Test the properties again with one GPU per rank, as far as there are enough GPUs."""
    import torch

    gpus = torch.cuda.device_count()
    for size, path in itertools.product(worlds, PATHS):
        name = f"properties on {size} GPUs, {path}"
        program = ("tests/gpu/properties.py", "--each", "--path", path)
        if size <= gpus:
            steps.run(name, *ranks(size), *program, limit_s=300)
        else:
            steps.skip(name, f"there are {gpus} GPUs" if gpus > 1 else "there is one GPU")


def main() -> int:
    """Return the exit status: 0, 1 if something failed, 2 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="+", choices=list(WHAT))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ranks", type=sizes, default="2,3,4", help="world sizes")
    parser.add_argument("--no-build", action="store_true", help="use what was built before")
    parser.add_argument("--quick", action="store_true", help="few samples")
    given = parser.parse_args()
    if lacks := missing(given.device, build=not given.no_build):
        print(f"{', '.join(given.what)}: cannot run here; missing:", file=sys.stderr)
        for what in lacks:
            print(f"  - {what}", file=sys.stderr)
        return 2
    steps = Steps()
    try:
        if not given.no_build:
            build(steps, list(dict.fromkeys(WHAT[what][1].name for what in given.what)))
        for what in given.what:
            WHAT[what][0](steps, given)
    except KeyboardInterrupt:
        steps.table()
        return 130
    return steps.table()


def sizes(text: str) -> list[int]:
    """Parse world sizes such as `2,3,4`."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: use numbers of ranks, as in 2,3,4")
    return [int(size) for size in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
