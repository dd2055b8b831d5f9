"""From some round on, no process may read another's memory. undumpable.py FOLDER B.

A root user's right to read all the same is given up first, before there are threads that keep it.
"""

import ctypes
import os

import numpy as np
from facts import ARGUMENTS, start, tell

import hvd_backup as hb
from hvd_backup import _core

B = int(ARGUMENTS[0])
CAP_SYS_PTRACE = 19
PR_SET_DUMPABLE = 4
VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)


def give_up_the_right_to_trace():
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low words, then high words
    call("capget", header, sets)
    for i in range(3):
        sets[i] &= ~(1 << CAP_SYS_PTRACE)
    call("capset", header, sets)


def can_read_the_others():
    """Of this node's ranks. All ranks ask together."""
    probe = ctypes.create_string_buffer(8)
    mine = (hb.rank(), hb.cross_rank(), os.getpid(), ctypes.addressof(probe))
    others = [one for one in hb.allgather_object(mine) if one[0] != mine[0] and one[1] == mine[1]]
    able = [_core.can_read_remote(pid, address) for _, _, pid, address in others]
    hb.barrier()
    return able


def rounds(count):
    """Whether every result was right."""
    for k in range(count):
        for size in (1000, 300_000):  # staged in any case, and read from the others' memory
            array = np.full(size, hb.rank() + k, np.float32)
            mean = hb.partial_allreduce(array, backup_workers=B)
            ranks = mean.round.contributors
            right = np.full(size, np.float32(k + sum(ranks) / len(ranks)))
            if not np.allclose(mean.value, right, rtol=1e-6):
                return False
        if hb.broadcast_object({"k": k} if hb.rank() == 0 else None, 0) != {"k": k}:
            return False
        if not (
            hb.allreduce(np.full(9, hb.rank(), np.float64), op=hb.Sum) == sum(range(SIZE))
        ).all():
            return False
    return True


give_up_the_right_to_trace()
RANK, SIZE = start()
tell(readable=can_read_the_others(), right=rounds(5))
call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
hb.barrier()
tell(readable=can_read_the_others(), right=rounds(10))
