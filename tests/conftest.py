"""What all tests share; see mpi/conftest.py for tests on several ranks."""

import os
import signal

# One thread per process, here and in what tests start: the ranks share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts with `&` ignores Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
