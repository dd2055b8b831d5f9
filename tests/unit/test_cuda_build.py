"""What CMake compiles with and without nvcc, and what nvcc makes of the kernels."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

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


def test_kernels_load_vectors_and_fuse_no_product_with_a_sum(with_cuda):
    """A fused multiply-add rounds once: the bits would not be the CPU's."""
    build, files = with_cuda
    kept = [word for word in files["cuda_kernels.cu"] if not word.startswith("--generate-code")]
    start = kept.index("-o")
    del kept[start : start + 2]
    kept.remove("-c")
    ptx = build / "kernels.ptx"
    subprocess.run([*kept, "-arch=compute_80", "-ptx", "-o", ptx], cwd=build, check=True)
    code = ptx.read_text()
    assert not re.findall(r"\bfma\.[a-z0-9.]+", code)
    assert not re.findall(r"\b(?:add|mul|div)\.[a-z.]*ftz[a-z0-9.]*", code)
    assert not re.findall(r"\bdiv\.(?:approx|full)[a-z0-9.]*", code)
    assert {"ld.global.v4.f32", "ld.global.v2.f64", "ld.global.v4.u32"} <= set(
        re.findall(r"\bld\.global[a-z0-9.]*", code)
    )
