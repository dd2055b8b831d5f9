"""Builds and installs hvd_backup. pyproject.toml describes the package; CMake compiles its core.

No MPI is needed here: the extension finds the MPI functions when ranks start.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))
from setup_commands import Build, CMakeBuild

setup(
    license="Apache-2.0",
    ext_modules=[Extension("hvd_backup._core", sources=[])],
    cmdclass={"build": Build, "build_ext": CMakeBuild},
)
