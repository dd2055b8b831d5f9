"""Headers of other projects in csrc/third_party are those that their README names."""

import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "csrc" / "third_party"


def test_every_folder_has_a_readme_and_a_licence():
    for folder in (path for path in FOLDER.iterdir() if path.is_dir()):
        assert {"README.md", "LICENSE.txt"} <= {path.name for path in folder.iterdir()}


def test_doctest_is_unmodified_and_of_the_version_that_its_readme_names():
    readme = (FOLDER / "doctest" / "README.md").read_text()
    header = (FOLDER / "doctest" / "doctest.h").read_bytes()
    assert f"`{hashlib.sha256(header).hexdigest()}`" in readme
    parts = dict(re.findall(rb"#define DOCTEST_VERSION_(\w+) (\d+)", header))
    version = b".".join(parts[name] for name in (b"MAJOR", b"MINOR", b"PATCH")).decode()
    assert f"| version | {version} |" in readme
