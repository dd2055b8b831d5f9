"""What CMake compiles with and without nvcc, and what nvcc makes of the kernels."""

import ctypes
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from hvd_backup import _core

CSRC = Path(__file__).resolve().parents[2] / "csrc"
pytestmark = pytest.mark.timeout(300)  # CMake looks for compilers by using them
TWINS = [
    ("cuda_device.cu", "no_cuda.cpp"),
    ("cuda_kernels.cu", "no_cuda_kernels.cpp"),
    ("cuda_peers.cu", "no_cuda_peers.cpp"),
    ("cuda_streams.cu", "no_cuda_streams.cpp"),
]


def compile_commands(build: Path, cuda: str) -> dict[str, list[str]]:
    """The compiler's command line for each file, as CMake would have it."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not on PATH")
    options = ["-DHVD_BACKUP_PYTHON=OFF", f"-DHVD_BACKUP_CUDA={cuda}"]
    run = subprocess.run(
        [cmake, "-S", CSRC, "-B", build, *options], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    entries = json.loads((build / "compile_commands.json").read_text())
    return {Path(entry["file"]).name: shlex.split(entry["command"]) for entry in entries}


@pytest.fixture(scope="module")
def with_cuda(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    build = tmp_path_factory.mktemp("cuda")
    return build, compile_commands(build, "ON")


def test_a_build_without_cuda_has_the_twins_that_refuse(tmp_path):
    files = compile_commands(tmp_path, "OFF")
    assert [(cuda in files, plain in files) for cuda, plain in TWINS] == [(False, True)] * len(
        TWINS
    )


def test_a_build_with_cuda_has_the_twins_that_launch(with_cuda):
    _, files = with_cuda
    assert [(cuda in files, plain in files) for cuda, plain in TWINS] == [(True, False)] * len(
        TWINS
    )


def nvcc(with_cuda, *more: str) -> str:
    """What nvcc says when it compiles the kernels as CMake would, but for these arguments."""
    build, files = with_cuda
    kept = [word for word in files["cuda_kernels.cu"] if not word.startswith("--generate-code")]
    start = kept.index("-o")
    del kept[start : start + 2]
    kept.remove("-c")
    line = [*kept, *more]
    return subprocess.check_output(line, cwd=build, text=True, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def kernels(with_cuda) -> dict[str, str]:
    """The PTX of each kernel, by its name."""
    ptx = with_cuda[0] / "kernels.ptx"
    nvcc(with_cuda, "-arch=compute_80", "-ptx", "-o", str(ptx))
    names = r"\.entry \w*(SumKernel|CopyKernel)INS3_\d+(\w+?)E(?:S5_|NS3_\d+(\w+?)E)E"
    parts = re.split(r"(?=\.entry )", ptx.read_text())[1:]
    found = {}
    for part in parts:
        kind, source, target = re.match(names, part).groups()
        found[f"{kind} {source} {target or source}"] = part
    assert len(found) == len(parts) == 24
    return found


def test_kernels_round_as_the_cpu_does(kernels):
    """A fused multiply-add rounds once; the four of a quick quotient are to (divisor.hpp)."""
    for name, code in kernels.items():
        quotients = len(re.findall(r"\bcopysign\.f", code))
        assert (quotients > 0) == name.startswith("SumKernel"), name
        assert len(re.findall(r"\bfma\.rn\.f(?:32|64)\b", code)) == 4 * quotients, name
        assert len(re.findall(r"\bfma\.", code)) == 4 * quotients, name
        assert not re.findall(r"\b(?:add|mul|div)\.[a-z.]*ftz[a-z0-9.]*", code), name
        assert not re.findall(r"\bdiv\.(?:approx|full)[a-z0-9.]*", code), name


def test_kernels_load_and_store_vectors(kernels):
    loads = {"Float16": "v4.u32", "BFloat16": "v4.u32", "Float32": "v4.f32", "Float64": "v2.f64"}
    for name, code in kernels.items():
        kind, source, target = name.split()
        wide = {"Float32": 4, "Float64": 8}
        by_wider = 16 // max(wide.get(source, 2), wide.get(target, 2))  # elements
        lanes = 16 // wide.get(source, 2) if kind == "SumKernel" else by_wider
        if lanes * wide.get(source, 2) == 16:
            assert f"ld.global.{loads[source]}" in code, name
        stored = min(lanes * wide.get(target, 2), 16)
        width = {4: "st.global.u32", 8: "st.global.v2.u32", 16: "st.global.v4.u32"}[stored]
        assert width in code, name


@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_spill_no_registers(with_cuda, arch):
    out = str(with_cuda[0] / "kernels.cubin")
    said = nvcc(with_cuda, f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin", "-o", out)
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spilled == [("0", "0")] * 24


def test_that_there_is_no_driver_is_said_as_such():
    """CUDA itself says of a driver that is not there that it is too old."""
    status = _core.cuda_status()
    if not status.built:
        pytest.skip(status.why)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert status.devices == 0
        assert status.why.startswith("there is no CUDA driver: ")
    else:
        pytest.skip("there is a CUDA driver")
