"""Builds with CMake if there is one, else by direct.py.

    python csrc/build.py FOLDER [-DOPTION=VALUE]… [TARGET…]       no target: the Python module

CMake and ninja are those beside this Python, else those on PATH. Without CMake, HVD_BACKUP_CUDA is
the only option that means something.
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
        shutil.rmtree(folder.resolve())  # which a link may lead to


def directly(folder: str, options: dict[str, str], targets: list[str]) -> list[str]:
    """The command without CMake; ValueError for an option that would be lost on it."""
    cuda = options.pop("HVD_BACKUP_CUDA", "AUTO")
    for name, value in options.items():
        if name not in ("Python_EXECUTABLE", "HVD_BACKUP_PYTHON"):
            raise ValueError(f"-D{name}={value} needs CMake, and there is none: pip install cmake")
    print("no cmake: building without it")
    direct = [sys.executable, str(CSRC / "direct.py"), f"--cuda={cuda}", folder]
    return [*direct, *(targets or ["_core"])]


def commands(words: list[str]) -> list[list[str]]:
    """What to run, one after another. Raises ValueError for words that mean nothing."""
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
        return [directly(folder, options, targets)]
    generator = "Ninja" if ninja else "Unix Makefiles"
    drop_stale(Path(folder), generator)
    configure = [cmake, "-S", str(CSRC), "-B", folder, "-G", generator]
    # CMake remembers options: those that are not given are to be as if they never had been.
    options = {"HVD_BACKUP_CUDA": "AUTO", **options}
    configure += [f"-D{name}={value}" for name, value in options.items()]
    if ninja:
        configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
    jobs = str(len(os.sched_getaffinity(0)))
    build = [cmake, "--build", folder, "--parallel", jobs]
    return [configure, [*build, *(["--target", *targets] if targets else [])]]


def main(*words: str) -> int:
    """Build; the exit status, 2 if that was not tried."""
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
