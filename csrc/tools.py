"""Whether there is what a build needs: a C++17 compiler, and the headers of Python.

    python csrc/tools.py [-DOPTION=VALUE]…       CMake's options, as for build.py

prints nothing, or what to install, with exit status 1.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
# How each system installs, and its names for a compiler and for Python's headers.
_PACKAGES = {
    "apt-get": ("apt-get install -y", "g++", "python3-dev"),
    "dnf": ("dnf install -y", "gcc-c++", "python3-devel"),
    "yum": ("yum install -y", "gcc-c++", "python3-devel"),
    "zypper": ("zypper install -y", "gcc-c++", "python3-devel"),
    "apk": ("apk add", "g++", "python3-dev"),
    "pacman": ("pacman -S", "gcc", "python"),
}
_TRIAL = "#include <optional>\nint main() { return std::optional<int>(0).value(); }\n"


def compiler() -> list[str]:
    """The command of the C++ compiler: CXX, else the first of COMPILERS on PATH; else nothing."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named if shutil.which(named[0]) else []
    return next(([found] for found in map(shutil.which, COMPILERS) if found), [])


def without_compiler() -> str:
    """Why C++17 cannot be compiled here; "" if it can."""
    cxx = compiler()
    if not cxx:
        named = os.environ.get("CXX")
        return f"no C++ compiler, CXX={named} is not on PATH" if named else "no C++ compiler"
    command = [*cxx, "-std=c++17", "-x", "c++", "-fsyntax-only", "-"]
    done = subprocess.run(command, input=_TRIAL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
    return f"{shlex.join(cxx)} compiles no C++17 ({said})"


def without_headers() -> str:
    """That Python.h is missing; "" if it is there."""
    folder = sysconfig.get_path("include")
    return "" if (Path(folder) / "Python.h").exists() else f"no Python.h in {folder}"


def install(*, cxx: bool, headers: bool) -> str:
    """The command of this system that installs what is missing."""
    for tool, (command, *packages) in _PACKAGES.items():
        if shutil.which(tool):
            wanted = [name for name, one in zip(packages, (cxx, headers), strict=True) if one]
            root = "sudo " if os.geteuid() != 0 and shutil.which("sudo") else ""
            return f"{root}{command} {' '.join(wanted)}"
    names = ["g++ (C++17)"] * cxx + ["Python's headers"] * headers
    return f"install {' and '.join(names)}"


def main(*options: str) -> int:
    """Say what is missing; 1 if anything is."""
    named = any(one.startswith(("-DCMAKE_CXX_COMP", "-DCMAKE_TOOLCHAIN_")) for one in options)
    problems = [
        "" if named else without_compiler(),
        "" if "-DHVD_BACKUP_PYTHON=OFF" in options else without_headers(),
    ]
    if not any(problems):
        return 0
    command = install(cxx=bool(problems[0]), headers=bool(problems[1]))
    other = ", or set CXX" if problems[0] else ""
    print(f"error: {'; '.join(filter(None, problems))}: {command}{other}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
