"""Builds with CMake if there is one, else by direct.py.

    python csrc/build.py FOLDER [-DOPTION=VALUE]… [TARGET…]       no target: the Python modules

CMake and ninja are those beside this Python, else those on PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent


def tool(name: str) -> str | None:
    """Path of a build tool."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def drop_stale(folder: Path, generator: str) -> None:
    """Remove a build folder that CMake would refuse: moved here, or another generator's."""
    cache = folder / "CMakeCache.txt"
    if not cache.exists():
        return
    known = dict(re.findall(r"^(CMAKE_\w+):\w+=(.*)$", cache.read_text(), re.MULTILINE))
    places = {"CMAKE_HOME_DIRECTORY": CSRC, "CMAKE_CACHEFILE_DIR": folder}
    here = all(Path(known.get(name, "")).resolve() == at.resolve() for name, at in places.items())
    if not (here and known.get("CMAKE_GENERATOR") == generator):
        print(f"{folder} was made elsewhere, or by another generator: building anew")
        shutil.rmtree(folder)


def main(folder: str, *words: str) -> int:
    """Build; the exit status."""
    options = [word for word in words if word.startswith("-D")]
    targets = [word for word in words if not word.startswith("-D")]
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None:
        print("no cmake: building without it, and without hvd_backup._mpi")
        direct = [sys.executable, str(CSRC / "direct.py"), folder, *(targets or ["_core"])]
        return subprocess.run(direct, check=False).returncode
    generator = "Ninja" if ninja else "Unix Makefiles"
    drop_stale(Path(folder), generator)
    configure = [cmake, "-S", str(CSRC), "-B", folder, "-G", generator, *options]
    if ninja:
        configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
    jobs = str(len(os.sched_getaffinity(0)))
    build = [cmake, "--build", folder, "--parallel", jobs]
    build += ["--target", *targets] if targets else []
    for command in (configure, build):
        if status := subprocess.run(command, check=False).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
