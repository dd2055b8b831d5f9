"""The layers of csrc/: includes go down only. `make lint` does the same for Python's imports."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LAYERS = [
    "base",
    "protocol",
    "memory",
    "arithmetic",
    "device",
    "transport",
    "round",
    "internode",
    "python",
]
QUOTED = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
ANGLED = re.compile(r"^\s*#\s*include\s+<([^>]+)>", re.MULTILINE)

# Headers that only the named files or folders may see.
RESERVED = {
    "mpi.h": [],  # the library is found at run time
    "cuda": ["device"],
    "pybind11/": ["python"],
    "thread": ["internode", "round", "transport"],
}


def sources(layer: str) -> list[Path]:
    files = (CSRC / layer).rglob("*")
    return sorted(path for path in files if path.suffix in {".hpp", ".cpp", ".cu", ".inc"})


def includes_above(layer: str, text: str) -> list[str]:
    """What `text`, a file of `layer`, includes from a higher layer or from no layer."""
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    return [name for name in QUOTED.findall(text) if name.split("/")[0] not in allowed]


def reserved_includes(file: str, text: str) -> list[str]:
    """What `text`, the file of that path below csrc/, includes but may not."""
    return [
        name
        for name in ANGLED.findall(text)
        for prefix, users in RESERVED.items()
        if (name == prefix or (prefix not in ("mpi.h", "thread") and name.startswith(prefix)))
        and not any(file == user or file.startswith(f"{user}/") for user in users)
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_includes_only_itself_and_lower_layers(layer):
    wrong = {str(path): includes_above(layer, path.read_text()) for path in sources(layer)}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("layer", LAYERS)
def test_libraries_are_seen_by_their_layer_alone(layer):
    wrong = {
        str(path): reserved_includes(str(path.relative_to(CSRC)), path.read_text())
        for path in sources(layer)
    }
    assert {path: names for path, names in wrong.items() if names} == {}


def test_every_folder_of_csrc_is_a_layer_or_known():
    folders = {path.name for path in CSRC.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders - {"bench", "cmake", "tests", "third_party"} <= set(LAYERS)


def test_the_check_finds_an_include_that_goes_up():
    assert includes_above("memory", '#include "round/x.hpp"\n#include "base/y.hpp"') == [
        "round/x.hpp"
    ]
    assert includes_above("base", ' # include "y.hpp"') == ["y.hpp"]
    assert reserved_includes("round/x.cpp", "#include <mpi.h>\n#include <thread>") == ["mpi.h"]
    assert reserved_includes("base/x.cpp", "#include <cuda_runtime.h>") == ["cuda_runtime.h"]
