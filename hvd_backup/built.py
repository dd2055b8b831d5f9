"""Says why the core cannot be imported where the reason is that it was not built."""

import sys
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent

if not any(_FOLDER.glob("_core*.so")):
    raise ImportError(
        f"hvd_backup is imported from {_FOLDER}, its sources, where it is not built: start Python "
        f"in another folder, or build it here: {sys.executable} -m pip install -e {_FOLDER.parent}"
    )
