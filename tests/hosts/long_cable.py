"""A cable between two network namespaces on which every frame takes a while.

    long_cable.py MILLISECONDS PID DEVICE PID DEVICE

Makes the two devices in the namespaces of the two processes, prints "ready", and carries until its
standard input ends. Each device is a tap: what the kernel sends there is read here, kept for a
while, and written to the other. This is what netem would do in the kernel; Python carries some
hundred Mbit/s.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
LARGEST = 65536
AT_ONCE = 64  # frames from one end before the other has its turn


def tap(pid: int, name: str) -> int:
    """Make a device in the process's network namespace; this process is in it from then on."""
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to the namespace of {pid}")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return end


def carry(ends: tuple[int, int], delay_s: float) -> None:
    under_way: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}  # by target
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    while True:
        now = time.monotonic()
        for target, frames in under_way.items():
            while frames and frames[0][0] <= now:
                with contextlib.suppress(OSError):  # unplugged, or its queue is full: it is lost
                    os.write(target, frames[0][1])
                frames.popleft()
        due = min((frames[0][0] for frames in under_way.values() if frames), default=None)
        wait = None if due is None else max(0.0, due - time.monotonic())
        ready, _, _ = select.select([*ends, sys.stdin], [], [], wait)
        if sys.stdin in ready:
            return
        for source in ready:
            with contextlib.suppress(BlockingIOError):
                for _ in range(AT_ONCE):
                    frame = os.read(source, LARGEST)
                    under_way[other[source]].append((time.monotonic() + delay_s, frame))


def main() -> None:
    milliseconds, pid, device, other_pid, other_device = sys.argv[1:]
    ends = (tap(int(pid), device), tap(int(other_pid), other_device))
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)  # a cable does not wait for a core
    print("ready", flush=True)
    carry(ends, float(milliseconds) / 1e3)


if __name__ == "__main__":
    main()
