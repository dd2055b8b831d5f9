"""csrc/build.py, which builds with CMake, and csrc/tools.py, which says what a build lacks."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
spec = importlib.util.spec_from_file_location("csrc_build", CSRC / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

pytestmark = pytest.mark.timeout(300)  # CMake looks for compilers by using them


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """A folder that CMake has configured, and by which generator."""
    cmake, ninja = build.tool("cmake"), build.tool("ninja")
    if cmake is None:
        pytest.skip("cmake is not on PATH")
    generator = "Ninja" if ninja else "Unix Makefiles"
    folder = tmp_path_factory.mktemp("build") / "here"
    command = [cmake, "-S", CSRC, "-B", folder, "-G", generator]
    command += ["-DHVD_BACKUP_PYTHON=OFF", "-DHVD_BACKUP_CUDA=OFF"]
    subprocess.run(command, check=True, capture_output=True)
    return folder, generator


def test_a_folder_that_cmake_made_here_is_kept_also_by_another_name_of_it(configured, tmp_path):
    folder, generator = configured
    (tmp_path / "link").symlink_to(folder)
    for name in (folder, tmp_path / "link"):
        build.drop_stale(name, generator)
        assert (folder / "CMakeCache.txt").exists()


@pytest.mark.parametrize("change", ["moved", "of another source", "another generator", "broken"])
def test_a_folder_that_cmake_would_refuse_is_removed(configured, tmp_path, change, capsys):
    folder, generator = configured
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    cache = moved / "CMakeCache.txt"
    text = cache.read_text().replace(str(folder), str(moved))
    if change == "moved":
        text = text.replace(str(moved), str(folder))
    elif change == "of another source":
        text = text.replace(f"CMAKE_HOME_DIRECTORY:INTERNAL={CSRC}", "CMAKE_HOME_DIRECTORY:X=/no")
    elif change == "another generator":
        generator = "Xcode"
    else:
        text = ""
    cache.write_text(text)
    build.drop_stale(moved, generator)
    assert not moved.exists()
    assert f"{moved} was made elsewhere" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_no_error(tmp_path):
    build.drop_stale(tmp_path / "nothing", "Ninja")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: build.py FOLDER"),
        (["-DA=B"], "usage: build.py FOLDER"),
        (["folder", "-Wno-dev"], "-Wno-dev: options are of the form -DNAME=VALUE"),
        (["folder", "-D", "A=B"], "-D: options are of the form -DNAME=VALUE"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        build.commands(words)


def test_an_option_that_is_not_given_is_not_remembered_from_last_time(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "tool", lambda name: f"/bin/{name}")
    words = [str(tmp_path), "-DHVD_BACKUP_CUDA:STRING=ON", "-DOTHER=a b", "one", "two"]
    configure, compile_ = build.commands(words)
    given = [word for word in configure if word.startswith("-D")]
    assert given[:2] == ["-DHVD_BACKUP_CUDA=ON", "-DOTHER=a b"]
    assert compile_[-3:] == ["--target", "one", "two"]


def test_an_nvcc_that_was_missing_is_found_when_it_is_there(tmp_path):
    cmake = build.tool("cmake")
    if cmake is None or shutil.which("nvcc") is None:
        pytest.skip("cmake or nvcc is not on PATH")
    said = []
    for path in ("/usr/bin:/bin", os.environ["PATH"]):
        command = [cmake, "-S", CSRC, "-B", tmp_path / "out", "-DHVD_BACKUP_PYTHON=OFF"]
        env = {**os.environ, "PATH": path}
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        said.append(re.search(r"CUDA: (off|\d+)", run.stdout)[1])
    if said[0] != "off":
        pytest.skip("CMake finds nvcc elsewhere than on PATH")
    assert said[1] != "off"


def test_without_cmake_the_error_is_the_command_that_installs_it(tmp_path):
    python = Path(sys.base_prefix) / "bin" / "python3"  # a virtual environment's may have a cmake
    if (python.parent / "cmake").exists():
        pytest.skip(f"there is a cmake beside {python}")
    run = subprocess.run(
        [python, CSRC / "build.py", tmp_path / "out"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    command = "pip install cmake ninja"
    assert run.stderr == f"build: no cmake beside this Python or on PATH; run: {command}\n"


# ---- what a build needs --------------------------------------------------------------------------


def tools(folder, *options, uid=0, **env):
    """What csrc/tools.py says where PATH has nothing but `folder`."""
    program = f"import os, sys; os.geteuid = lambda: {uid}; del sys.argv[0]; "
    program += "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    run = subprocess.run(
        [sys.executable, "-c", program, CSRC / "tools.py", *options],
        env={"PATH": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (1 if run.stderr else 0, "")
    return run.stderr


@pytest.fixture
def commands(tmp_path):
    """A folder with programs that say something, or nothing, and fail."""

    def make(**programs):
        for name, text in programs.items():
            path = tmp_path / name.replace("_", "-").replace("cxx", "c++")
            path.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
            path.chmod(0o755)
        return tmp_path

    return make


def test_a_machine_that_can_build_is_told_nothing():
    assert tools(os.environ["PATH"]) == ""


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("apt_get", "apt-get install -y g++"),
        ("dnf", "dnf install -y gcc-c++"),
        ("apk", "apk add g++"),
        ("other", "install g++ (C++17)"),
    ],
)
def test_without_a_compiler_the_first_line_is_the_command_that_installs_one(
    commands, program, command
):
    said = tools(commands(**{program: ""}))
    assert said == f"error: no C++ compiler: {command}, or set CXX\n"


def test_who_is_not_root_is_told_sudo_where_it_is(commands):
    assert ": sudo dnf install -y gcc-c++" in tools(commands(dnf="", sudo=""), uid=1000)
    assert ": dnf install -y gcc-c++" in tools(commands(dnf="", sudo=""))


def test_a_compiler_that_cannot_compile_is_no_compiler(commands):
    said = tools(commands(cxx="cannot execute cc1plus", apt_get=""))
    assert "compiles no C++17 (cannot execute cc1plus): apt-get install -y g++" in said


def test_a_compiler_that_is_named_and_not_there_is_named(commands):
    assert "no C++ compiler, CXX=icpx -O2 is not on PATH: " in tools(commands(), CXX="icpx -O2")


def test_a_compiler_that_cmake_is_told_of_need_not_be_on_path(commands):
    assert tools(commands(), "-DCMAKE_CXX_COMPILER=/opt/c++") == ""
    assert "no C++ compiler" in tools(commands(), "-DHVD_BACKUP_CUDA=OFF")
