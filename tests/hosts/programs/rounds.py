"""Rounds without an end; a rank says when some are done, and what ended them."""

import json
import time

import numpy as np

import hvd_backup as hb

hb.init()
array = np.ones(1000, np.float32)
try:
    for k in range(1_000_000):
        if k == 10:
            print(f"rank {hb.rank()}: ten rounds done", flush=True)
        hb.partial_allreduce(array)
        time.sleep(0.01)
except hb.Error as error:
    said = {"rank": hb.rank(), "error": type(error).__name__, "text": str(error)}
    print(json.dumps(said), flush=True)
    raise
