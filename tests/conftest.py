"""What all tests share; see mpi/conftest.py for tests on several ranks."""

import os

# One thread per process, here and in what tests start: the ranks share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
