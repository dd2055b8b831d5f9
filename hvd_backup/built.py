"""Says why the core cannot be imported where the reason is that it was not built."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent

if not any((_FOLDER / f"_core{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
    raise ImportError(
        f"hvd_backup is imported from {_FOLDER}, where it is not built for this Python: if that "
        "is a folder of sources, start Python in another folder, or build it there: "
        f"{sys.executable} -m pip install -e {_FOLDER.parent}"
    )
