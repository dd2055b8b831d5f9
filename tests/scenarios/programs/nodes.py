"""Four ranks on two nodes: cases in worlds of their own, one after another.

Rank 3, of the second node, is the odd one; what each case tells is in test_nodes.py. The arguments
are the cases to run.
"""

import hashlib
import threading
import time
from pathlib import Path

import numpy as np
from facts import ARGUMENTS, new_world, start, stop_for, tell

import hvd_backup as hb
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.world import runtime

RANK, SIZE = start()


def rounds(count, *, before=lambda k: None, pace_s=0.0, nbytes=4000, **options):
    """Goes through rounds, and returns what they have given and how long the longest took."""
    state = hashlib.sha1()
    longest, late = 0.0, 0
    for k in range(count):
        before(k)
        time.sleep(pace_s)
        began = time.monotonic()
        value, round_ = hb.partial_allreduce(np.full(nbytes // 4, RANK + k, np.float32), **options)
        longest = max(longest, time.monotonic() - began)
        late += not round_.contributed
        state.update(value.tobytes() + repr(round_.contributors).encode())
    return {"longest": longest, "late": late, "digest": state.hexdigest()}


def on(rank, k, action):
    """For `before`: the action of one rank before its k-th round."""
    return lambda at: action() if (RANK, at) == (rank, k) else None


def late_rank_with_room():
    return rounds(
        200, before=on(3, 20, lambda: time.sleep(1.5)), pace_s=0.002, backup_workers=1, window=1000
    )


def late_rank_and_little_room():
    return rounds(
        60, before=on(3, 20, lambda: time.sleep(1.5)), pace_s=0.002, backup_workers=1, window=10
    )


def window_stays_full():
    return rounds(
        60, before=on(3, 20, lambda: time.sleep(3)), backup_workers=1, window=10, timeout=1.0
    )


def window_of_small_results_stays_full():
    return rounds(
        60,
        # The last case: the others wait 2 s more for rank 3, and end with status 1 without it.
        before=on(3, 20, lambda: time.sleep(2)),
        nbytes=40,
        backup_workers=1,
        window=10,
        timeout=1.0,
    )


def quorum_never_comes():
    return rounds(30, before=on(3, 20, lambda: time.sleep(2.5)), timeout=0.7)


def stopped_rank_with_room():
    return rounds(
        200, before=on(3, 20, lambda: stop_for(1.5)), pace_s=0.002, backup_workers=1, window=1000
    )


def stopped_first_rank_of_a_node():
    return rounds(
        200, before=on(2, 20, lambda: stop_for(1)), pace_s=0.002, backup_workers=2, window=1000
    )


def stopped_coordinator():
    return rounds(
        200, before=on(0, 20, lambda: stop_for(1)), pace_s=0.002, backup_workers=1, window=1000
    )


def go_through(exchange, k, state):
    """One round; whether this rank was late for it."""
    for slot, (dtype, _) in zip(exchange.slots, exchange.layout, strict=True):
        slot.view(dtype)[:] = RANK + k
    exchange.arrive()
    round_ = exchange.wait()
    state.update(b"".join(part.tobytes() for part in exchange.results))
    return not round_.contributed


def two_exchanges():
    pairs = [
        Exchange([("float32", 8)], backup_workers=1, name="one"),
        Exchange([("float64", 30_000), ("float32", 5)], backup_workers=0, name="two"),
    ]
    state = hashlib.sha1()
    for k in range(40):
        for i, exchange in enumerate(pairs):
            if (k + i) % SIZE == RANK:
                time.sleep(0.003)
            go_through(exchange, k, state)
    return {"digest": state.hexdigest()}


def closed_while_a_late_rank_loads():
    exchange = Exchange([("float32", 1000)], backup_workers=1, window=100)
    state = hashlib.sha1()
    late = 0
    for k in range(50):
        if (RANK, k) == (3, 5):
            time.sleep(1)
        late += go_through(exchange, k, state)
    exchange.close()
    hb.barrier()
    return {"digest": state.hexdigest(), "late": late}


def more_plans_than_are_kept():
    state = hashlib.sha1()
    for k in range(60):
        if RANK == 3 and k % 30 == 4:
            time.sleep(0.3)
        value, round_ = hb.partial_allreduce(
            np.full(100, RANK + k, np.float32), name=f"plan {k // 3}", backup_workers=1
        )
        state.update(value.tobytes() + repr(round_.contributors).encode())
    return {"digest": state.hexdigest()}


def slow_to_join():
    board = runtime.Board

    class LateBoard(board):
        def __init__(self, *args):
            time.sleep(0.8 if RANK == 3 else 0)
            super().__init__(*args)

    hb.shutdown()
    runtime.Board = LateBoard
    hb.init()
    runtime.Board = board
    time.sleep(0.5)  # who would be taken for dead is by now
    return rounds(20, before=on(3, 2, lambda: time.sleep(0.3)))


def worlds_one_after_another():
    """Threads that this process has after three worlds, and after three more."""
    counts = []
    for turn in range(6):
        new_world()
        value, _ = hb.partial_allreduce(np.full(3, float(turn)), backup_workers=turn % SIZE)
        assert value.tolist() == [turn] * 3
        if turn in (2, 5):
            counts.append(len(list(Path("/proc/self/task").iterdir())))
    return {"threads": counts, "python_threads": threading.active_count()}


CASES = [
    late_rank_with_room,
    late_rank_and_little_room,
    window_stays_full,
    window_of_small_results_stays_full,
    quorum_never_comes,
    stopped_rank_with_room,
    stopped_first_rank_of_a_node,
    stopped_coordinator,
    two_exchanges,
    more_plans_than_are_kept,
    closed_while_a_late_rank_loads,
    worlds_one_after_another,
    slow_to_join,
]

for case in CASES:
    if case.__name__ not in ARGUMENTS:
        continue
    new_world()
    began = time.monotonic()
    facts, error = {}, None
    try:
        facts = case()
    except hb.Error as raised:
        error = raised
    tell(
        case=case.__name__,
        error=type(error).__name__,
        text=str(error),
        seconds=time.monotonic() - began,
        **facts,
    )
