"""Starts a probe as a script: start_probe.py NAME FOLDER SECONDS, see probe.py.

With ``python -m`` the folder in which the doctor was called would come first on the probe's path,
and the sources of hvd_backup may lie there. Here the probe sees what a training script would see.
"""

import importlib
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# Python has put this file's folder first. If hvd_backup is not installed, it is the doctor's.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != _HERE]
sys.path.append(str(_HERE.parents[1]))

if __name__ == "__main__":
    sys.exit(importlib.import_module("hvd_backup.cluster.probe").main(*sys.argv[1:]))
