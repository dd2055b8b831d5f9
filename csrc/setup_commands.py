"""The commands of setup.py that build with CMake.

HVD_BACKUP_CMAKE_ARGS has options for CMake, such as -DHVD_BACKUP_CUDA=OFF.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path(__file__).resolve().parent
# One build folder per Python. It is kept, so that a rebuild compiles only changed files.
BUILD = CSRC.parent / "build" / f"cmake-{sys.implementation.cache_tag}"
OPTIONS = shlex.split(os.environ.get("HVD_BACKUP_CMAKE_ARGS", ""))


class Build(build):
    """Checks for a compiler and Python's headers before any other work, for a short error."""

    def run(self) -> None:
        tools = [sys.executable, str(CSRC / "tools.py"), *OPTIONS]
        done = subprocess.run(tools, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise CompileError(done.stderr.strip().removeprefix("error: "))
        super().run()


class CMakeBuild(build_ext):
    """Runs CMake once, then copies the module from the build folder."""

    def run(self) -> None:
        command = [sys.executable, str(CSRC / "build.py"), str(BUILD)]
        command += [f"-DPython_EXECUTABLE={sys.executable}", *OPTIONS]
        if subprocess.run(command, check=False).returncode:
            raise CompileError("the core was not built, see the messages above")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(BUILD / target.name), str(target))
