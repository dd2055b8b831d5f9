"""Builds with CMake.

    python csrc/build.py FOLDER [-DOPTION=VALUE]… [TARGET…]       no target: the Python module

CMake and ninja are those beside this Python, else those on PATH. Without ninja, make is used.
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
    """The path of a build tool, None if it is not there."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def drop_stale(folder: Path, generator: str) -> None:
    """Remove a build folder that CMake would refuse.

    CMake refuses a folder that was moved, or was made for another generator.
    """
    cache = folder / "CMakeCache.txt"
    if not cache.exists():
        return
    known = dict(re.findall(r"^(CMAKE_\w+):\w+=(.*)$", cache.read_text(), re.MULTILINE))
    places = {"CMAKE_HOME_DIRECTORY": CSRC, "CMAKE_CACHEFILE_DIR": folder}
    here = all(Path(known.get(name, "")).resolve() == at.resolve() for name, at in places.items())
    if not (here and known.get("CMAKE_GENERATOR") == generator):
        print(f"{folder} was made elsewhere, or by another generator: building anew")
        shutil.rmtree(folder.resolve())  # the folder may be a link


def commands(words: list[str]) -> list[list[str]]:
    """The commands to run, one after another.

    Raises:
        ValueError: the words cannot be understood, or there is no CMake.
    """
    if not words or words[0].startswith("-"):
        raise ValueError("usage: build.py FOLDER [-DOPTION=VALUE]… [TARGET…]")
    folder, *words = words
    given = [re.fullmatch(r"-D(\w+)(?::\w+)?=(.*)", word) for word in words]
    targets = [word for word, match in zip(words, given, strict=True) if match is None]
    if wrong := [word for word in targets if word.startswith("-")]:
        raise ValueError(f"{wrong[0]}: options are of the form -DNAME=VALUE")
    options = {match[1]: match[2] for match in given if match}
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None:
        raise ValueError("no cmake beside this Python or on PATH; run: pip install cmake ninja")
    generator = "Ninja" if ninja else "Unix Makefiles"
    drop_stale(Path(folder), generator)
    configure = [cmake, "-S", str(CSRC), "-B", folder, "-G", generator]
    # CMake remembers options. An option that is not given must not keep its last value.
    options = {"HVD_BACKUP_CUDA": "AUTO", **options}
    configure += [f"-D{name}={value}" for name, value in options.items()]
    if ninja:
        configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
    jobs = str(len(os.sched_getaffinity(0)))
    build = [cmake, "--build", folder, "--parallel", jobs]
    return [configure, [*build, *(["--target", *targets] if targets else [])]]


def main(*words: str) -> int:
    """Build; return the exit status, 2 if the words cannot be understood or CMake is missing."""
    try:
        to_run = commands(list(words))
    except ValueError as error:
        print(f"build: {error}", file=sys.stderr)
        return 2
    options = [word for word in words if word.startswith("-D")]
    for command in [[sys.executable, str(CSRC / "tools.py"), *options], *to_run]:
        if status := subprocess.run(command, check=False).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
