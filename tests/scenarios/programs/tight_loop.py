"""Rounds without a pause, for some seconds, while the test stops one rank or another.

Every rank checks every result. A rank that has had enough says so in its contribution, so that all
end after the same round.
"""

import hashlib
import time

import numpy as np
from facts import ARGUMENTS, start, tell

import hvd_backup as hb

RANK, SIZE = start()
SECONDS = float(ARGUMENTS[0])
COUNT = 70_000  # above 64 KB: private memory is read remotely

base = (np.arange(COUNT) % 1000).astype(np.float32)
state = hashlib.sha1()
longest = rounds = late = wrong = 0
enough = False
deadline = None
while not enough:
    mine = base * (RANK + 1) + rounds % 100
    mine[-1] = deadline is not None and time.monotonic() > deadline
    began = time.monotonic()
    # Private arrays in turn with arrays that are copied to the slot.
    if rounds % 2:
        value, round_ = hb.partial_allreduce(mine, backup_workers=1, window=2000)
    else:
        (value, _), round_ = hb.partial_allreduce([mine, mine[:10]], backup_workers=1, window=2000)
    if deadline is None:
        deadline = time.monotonic() + SECONDS
        tell(ready=True)
    else:
        longest = max(longest, time.monotonic() - began)
    expected = base * (sum(round_.contributors) + 2) / 2 + rounds % 100  # of two contributors
    wrong += not np.array_equal(value[:-1], expected[:-1])
    enough = value[-1] > 0
    late += not round_.contributed
    state.update(value.tobytes() + repr(round_.contributors).encode())
    rounds += 1
tell(rounds=rounds, late=late, wrong=wrong, longest=longest, digest=state.hexdigest())
