"""csrc/direct.py, the build without CMake, compiles what CMake does, and alike."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
spec = importlib.util.spec_from_file_location("direct", CSRC / "direct.py")
direct = importlib.util.module_from_spec(spec)
sys.modules["direct"] = direct  # dataclasses look their module up
spec.loader.exec_module(direct)

pytestmark = pytest.mark.timeout(300)  # CMake looks for compilers by using them
LAZY = ("lazy_cuda", "test_lazy_mapped", "test_lazy_staging")
# What decides about the bits of a result, and what is compiled at all.
DECIDING = re.compile(
    r"-O\d|-DNDEBUG|-std=.*|-mavx2|-ffp-contract=.*|--fmad=.*|-fvisibility.*|-W.+"
)


def by_cmake(folder, *options):
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not on PATH")
    command = [cmake, "-S", CSRC, "-B", folder, *options]
    command += [f"-DPython_EXECUTABLE={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads((folder / "compile_commands.json").read_text())
    return {Path(e["file"]).relative_to(CSRC): shlex.split(e["command"]) for e in entries}


def flags(command):
    return {word for word in command if DECIDING.fullmatch(word)}


def test_the_same_files_are_compiled_with_the_same_flags(tmp_path):
    theirs = by_cmake(tmp_path, "-DHVD_BACKUP_CUDA=OFF")
    tools = direct.Tools("g++", "")
    files = set(direct.library(cuda=False))
    files.update(*(direct.own(target) for target in direct.TARGETS))
    others = {Path("bench") / name for name in ("memory_limit.cpp", "sum_avx2.cpp")}
    others |= {Path("bench") / name for name in ("sum_portable.cpp", "choices.cpp")}
    others |= {Path("bench/control_traffic.cpp")}
    others |= {Path("tests/lazy") / f"{name}.cpp" for name in LAZY}
    assert {path.relative_to(CSRC) for path in files} == set(theirs) - others
    for path in sorted(files):
        mine = direct.compile_command(path, Path("o"), tools)
        assert flags(mine) == flags(theirs[path.relative_to(CSRC)]), path


def test_with_nvcc_its_files_take_the_place_of_the_twins(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    theirs = by_cmake(tmp_path, "-DHVD_BACKUP_CUDA=ON", "-DHVD_BACKUP_PYTHON=OFF")
    tools = direct.Tools.find()
    files = direct.library(cuda=True)
    known = {path for path in theirs if path.parts[0] in direct.LAYERS}
    assert {path.relative_to(CSRC) for path in files} == known
    for path in (path for path in files if path.suffix == ".cu"):
        mine = direct.compile_command(path, Path("o"), tools)
        other = theirs[path.relative_to(CSRC)]
        for flag in ("--fmad=false", "-Xcompiler=-ffp-contract=off,-Wall,-Wextra,-Wconversion"):
            assert flag in mine, path
            assert flag in other, path
        archs = [sorted(set(re.findall(r"sm_(\d+)", " ".join(line)))) for line in (mine, other)]
        assert archs[0] == archs[1]


def test_a_compiler_that_is_missing_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert direct.main(str(tmp_path), "device_speed") == 1
    assert "put g++ on PATH, or set CXX" in capsys.readouterr().err


def test_cuda_is_left_out_if_it_is_to_be_off_and_missed_if_it_is_to_be_on(tmp_path, monkeypatch):
    assert direct.Tools.find("OFF").nvcc == ""
    (tmp_path / "g++").symlink_to(shutil.which("g++") or shutil.which("c++"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDACXX", raising=False)
    assert direct.Tools.find().nvcc == ""
    with pytest.raises(direct.BuildError, match="CUDA is to be ON, but there is no nvcc"):
        direct.Tools.find("ON")
