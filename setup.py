"""Builds and installs hvd_backup; the compiling is left to csrc/build.py.

No MPI is needed for it: which one there is, is found out when ranks start.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
# One build folder per Python, kept between calls, so that a rebuild compiles what changed.
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
OPTIONS = shlex.split(os.environ.get("HVD_BACKUP_CMAKE_ARGS", ""))


class Build(build):
    """Says what is missing before anything is done."""

    def run(self) -> None:
        tools = [sys.executable, str(ROOT / "csrc" / "tools.py"), *OPTIONS]
        done = subprocess.run(tools, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise CompileError(done.stderr.strip().removeprefix("error: "))
        super().run()


class CMakeBuild(build_ext):
    """Runs CMake once, then takes the module from the build folder."""

    def run(self) -> None:
        command = [sys.executable, str(ROOT / "csrc" / "build.py"), str(BUILD)]
        command += [f"-DPython_EXECUTABLE={sys.executable}", *OPTIONS]
        if subprocess.run(command, check=False).returncode:
            raise CompileError("the core was not built, see the messages above")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        built = BUILD / Path(self.get_ext_filename(ext.name)).name
        if not built.exists():
            raise CompileError(f"{built.name} was not built, see the messages above")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(built), str(target))


setup(
    name="hvd_backup",
    version="0.1.0",
    description="Partial all-reduce with backup workers for data-parallel training",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["hvd_backup", "hvd_backup.*"]),
    package_data={
        "hvd_backup": ["py.typed", "*.pyi"],
        "hvd_backup.cluster": ["templates/*"],
        "hvd_backup.study": ["templates/*"],
    },
    ext_modules=[Extension("hvd_backup._core", sources=[])],
    cmdclass={"build": Build, "build_ext": CMakeBuild},
    install_requires=["cloudpickle", "numpy>=1.24", "mpi4py>=4.0", "rich", "typer"],
    extras_require={
        "torch": ["torch>=2.1"],
        "tensorflow": ["tensorflow>=2.16", "keras>=3.5"],
        "demo": ["torch>=2.1", "scikit-learn", "matplotlib", "jinja2"],
        "test": ["pytest>=8", "pytest-mpi>=0.6", "pytest-timeout>=2.2", "pyyaml"],
        "lint": ["ruff", "mypy", "codespell", "clang-format", "clang-tidy", "import-linter"],
    },
    entry_points={"console_scripts": ["hvd-backup = hvd_backup.cli:main"]},
)
