"""What every rank of the benchmark runs; rank 0 prints a JSON object per result, a line each.

How a sample is taken, the same for every path:

- A sample is some back-to-back calls (as many as take a few ms) after a barrier. Its time is that
  from the first rank's first call to the last rank's return from its last call, over the calls.
- The paths take turns, one sample each, round after round, so that noise hits all alike; what is
  reported is the median over the rounds.
- Private buffers are arrays as numpy makes them (from 4 MB on, on huge pages where the system has
  them), and touched before.

Late ranks, the last ones, are busy from before the barrier until the others are done, and only the
others are timed, from the start of the last of them. A late rank burns a core, or, with
--late-sleeps, sleeps: then the others have all cores, as where every node has its own. In
`in_place` and `end_to_end` nobody needs the late ranks: they go through their rounds afterwards.
MPI and gloo need them: a second thread of each makes the calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from mpi4py import MPI
from output import digits
from samples import Flags, one_call, start_gloo

import hvd_backup as hb
from hvd_backup.rounds.exchange import Exchange

Floats = npt.NDArray[np.float32]


class AllReduce(Protocol):
    """One way to all-reduce. `late_by_thread`: a late rank's second thread makes its calls."""

    name: str
    late_by_thread: bool

    def call(self) -> None: ...
    def check(self, contributors: int) -> None: ...


class InPlace:
    """The gradient is in the slot, the result stays in the window."""

    name = "in_place"
    late_by_thread = False

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self._exchange = exchange
        exchange.slots[0].view(np.float32).fill(rank + 1)

    def call(self) -> None:
        self._exchange.arrive_and_wait()

    def check(self, contributors: int) -> None:
        expect(self._exchange.results[0].view(np.float32), (contributors + 1) / 2)


class EndToEnd:
    """From a private array to a private array."""

    name = "end_to_end"
    late_by_thread = False

    def __init__(self, exchange: Exchange, src: Floats, dst: Floats) -> None:
        self._exchange, self._src, self._dst = exchange, src, dst

    def call(self) -> None:
        self._exchange.allreduce(self._src, self._dst)

    def check(self, contributors: int) -> None:
        expect(self._dst, (contributors + 1) / 2)


class MpiAllreduce:
    """From a private array to a private array; a sum, not a mean."""

    name = "mpi_allreduce"
    late_by_thread = True

    def __init__(self, comm: MPI.Intracomm, src: Floats, dst: Floats) -> None:
        self._comm = comm
        self._src, self._dst = [src, src.size, MPI.FLOAT], [dst, dst.size, MPI.FLOAT]
        self._result = dst

    def call(self) -> None:
        self._comm.Allreduce(self._src, self._dst)

    def check(self, contributors: int) -> None:
        size = self._comm.size
        expect(self._result, size * (size + 1) / 2)


class Gloo:
    """torch.distributed's all_reduce on a CPU tensor: a sum, in place."""

    name = "gloo"
    late_by_thread = True

    def __init__(self, src: Floats, size: int) -> None:
        self._tensor = torch.from_numpy(src)
        self._size = size

    def call(self) -> None:
        torch.distributed.all_reduce(self._tensor)

    def check(self, contributors: int) -> None:
        # Each call multiplies the tensor by the number of ranks: begin with one, go on with zeros.
        self._tensor.fill_(1)
        self.call()
        expect(self._tensor.numpy(), self._size)
        self._tensor.zero_()


class MemoryLimit:
    """A plain sum by as many threads as there are contributors, in a process of its own."""

    name = "memory_limit"

    def __init__(self, program: Path, contributors: int, nbytes: int) -> None:
        self._request = f"{contributors} {nbytes}"
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        times = {stream: min(self.measure(5, stream) for _ in range(3)) for stream in (0, 1)}
        self._stream = min(times, key=lambda stream: times[stream])

    def measure(self, calls: int, stream: int | None = None) -> float:
        """Seconds for one sum."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        stream = self._stream if stream is None else stream
        self._process.stdin.write(f"{self._request} {calls} {stream}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"memory_limit ended with status {self._process.wait()}")
        return float(answer) * 1e-9

    def close(self) -> None:
        self._process.communicate()


class Measurement:
    """The samples of one message size, with or without a late rank."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        flags: Flags,
        sequence: Iterator[int],
        late: int,
        most: int,
        *,
        sleeps: bool,
    ) -> None:
        self._comm, self._flags, self._sequence = comm, flags, sequence
        self._on_time = range(comm.size - late)
        self._is_late = comm.rank not in self._on_time
        self._late = late
        self._most = most  # calls in a sample
        self._sleeps = sleeps
        self._starters = comm.Split(int(self._is_late), comm.rank)
        self._burn_in = np.linspace(0, 1, 20_000)
        self._burn_out = np.empty_like(self._burn_in)

    def close(self) -> None:
        self._starters.Free()

    def warm_up(self, path: AllReduce, target_s: float, calls: int) -> int:
        """Run, check the result, and choose how many calls make a sample."""
        self.sample(path, 1)
        path.check(self._comm.size - self._late)
        guess = min(calls, self._most)
        spans = [self.sample(path, guess) for _ in range(5)]
        once = min(self.results(spans, guess), default=0.0)
        count = max(1, min(int(target_s / max(once, 1e-7)), 1000))
        if not path.late_by_thread:
            count = min(count, self._most)
        return int(self._comm.bcast(count))

    def sample(self, path: AllReduce, calls: int) -> tuple[float, float]:
        """This rank's start and end, on the host's clock."""
        if not self._late:
            self._comm.Barrier()
            return timed(path.call, calls)
        if self._is_late:
            self._be_late(path, calls)
            span = (0.0, 0.0)
        else:
            span = self._without_the_late(lambda: timed(path.call, calls))
        self._comm.Barrier()
        return span

    def limit(self, program: MemoryLimit | None, calls: int) -> float:
        """A sample of the memory limit, in seconds: rank 0 measures, others sleep or are late."""
        number = next(self._sequence)
        self._comm.Barrier()
        if self._is_late:
            self._flags.set(number)
            self._be_busy_until(range(1), number)
        if program is None:
            self._flags.wait(range(1), number)
            return 0.0
        if self._late:
            self._flags.wait(range(self._comm.size - 1, self._comm.size), number)
        seconds = program.measure(calls)
        self._flags.set(number)
        return seconds

    def results(self, spans: list[tuple[float, float]], calls: int) -> list[float]:
        """Seconds for one call, one per sample, on rank 0."""
        everybody = self._comm.gather(spans)
        if everybody is None:
            return []
        by_sample = zip(*everybody[: len(self._on_time)], strict=True)
        return [one_call(list(sample), calls, self._late) for sample in by_sample]

    def _without_the_late(self, run: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        number = next(self._sequence)
        self._flags.wait(range(self._comm.size - 1, self._comm.size), number)
        self._starters.Barrier()
        span = run()
        self._flags.set(number)
        return span

    def _be_late(self, path: AllReduce, calls: int) -> None:
        number = next(self._sequence)

        def catch_up() -> None:
            for _ in range(calls):
                path.call()

        helper = threading.Thread(target=catch_up)
        if path.late_by_thread:
            helper.start()
        self._flags.set(number)
        self._be_busy_until(self._on_time, number)
        if path.late_by_thread:
            helper.join()
        else:
            catch_up()

    def _be_busy_until(self, ranks: range, number: int) -> None:
        """Sleep, or use up a core: without the GIL most of the time, for the second thread."""
        while not self._flags.reached(ranks, number):
            if self._sleeps:
                time.sleep(200e-6)
            else:
                np.sin(self._burn_in, out=self._burn_out)


def timed(call: Callable[[], None], calls: int) -> tuple[float, float]:
    start = time.monotonic()
    for _ in range(calls):
        call()
    return start, time.monotonic()


def expect(result: Floats, value: float) -> None:
    if not (result == np.float32(value)).all():
        raise AssertionError(f"expected {value} everywhere, got {result.min()} to {result.max()}")


def floats(count: int, value: float) -> Floats:
    return np.full(count, value, np.float32)


def counter() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


def benchmark(args: argparse.Namespace) -> None:
    comm = MPI.COMM_WORLD
    hb.init()
    if args.gloo:
        start_gloo(comm)
    torch.set_num_threads(1)
    flags, sequence = Flags(comm), counter()
    for nbytes in args.sizes:
        for late in args.late:
            if late < comm.size:
                measure(args, comm, flags, sequence, nbytes, late)
    if args.gloo:
        torch.distributed.destroy_process_group()
    hb.shutdown()


def measure(
    args: argparse.Namespace,
    comm: MPI.Intracomm,
    flags: Flags,
    sequence: Iterator[int],
    nbytes: int,
    late: int,
) -> None:
    rounds, target_s = effort(nbytes, args.quick)
    exchange = Exchange([("float32", nbytes // 4)], backup_workers=late, name=f"{nbytes} {late}")
    src, dst = floats(nbytes // 4, comm.rank + 1), floats(nbytes // 4, 0)
    paths: list[AllReduce] = [
        InPlace(exchange, comm.rank),
        EndToEnd(exchange, src, dst),
        MpiAllreduce(comm, src, dst),
    ]
    if args.gloo:
        paths.append(Gloo(floats(nbytes // 4, 0), comm.size))
    # A late rank loads nothing during a sample: what it missed must fit into the window.
    most = max(1, min(32, exchange.options.window // 2)) if late else 1000
    measurement = Measurement(comm, flags, sequence, late, most, sleeps=args.late_sleeps)
    limit = None
    if comm.rank == 0 and args.memory_limit:
        limit = MemoryLimit(args.memory_limit, comm.size - late, nbytes)
    guess = max(1, min(100, 200_000 // nbytes))
    calls = [measurement.warm_up(path, target_s, guess) for path in paths]
    limit_calls = max(1, min(1000, 20_000_000 // nbytes))
    spans: list[list[tuple[float, float]]] = [[] for _ in paths]
    limits: list[float] = []
    for turn in range(rounds):
        for i in range(len(paths)):
            which = (turn + i) % len(paths)
            spans[which].append(measurement.sample(paths[which], calls[which]))
        if args.memory_limit:
            limits.append(measurement.limit(limit, limit_calls))
    for path, count, samples in zip(paths, calls, spans, strict=True):
        report(comm, nbytes, late, path.name, count, measurement.results(samples, count))
    if limit is not None:
        report(comm, nbytes, late, limit.name, limit_calls, limits)
        limit.close()
    measurement.close()
    exchange.close()


def effort(nbytes: int, quick: bool) -> tuple[int, float]:
    """Rounds, and seconds that a sample should take."""
    rounds = 12 if nbytes >= 64 << 20 else 20 if nbytes >= 8 << 20 else 40
    return (max(3, rounds // 4), 0.002) if quick else (rounds, 0.005)


def report(
    comm: MPI.Intracomm, nbytes: int, late: int, path: str, calls: int, seconds: list[float]
) -> None:
    if comm.rank != 0:
        return
    micros = sorted(1e6 * second for second in seconds)
    row: dict[str, Any] = {
        "ranks": comm.size,
        "bytes": nbytes,
        "late": late,
        "path": path,
        "median_us": digits(statistics.median(micros)),
        "p10_us": digits(micros[len(micros) // 10]),
        "p90_us": digits(micros[len(micros) * 9 // 10]),
        "samples": len(micros),
        "calls": calls,
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=lambda text: [int(x) for x in text.split(",")])
    parser.add_argument("--late", type=lambda text: [int(x) for x in text.split(",")])
    parser.add_argument("--late-sleeps", action="store_true")
    parser.add_argument("--memory-limit", type=Path, help="compare with this program")
    parser.add_argument("--gloo", action="store_true", help="compare with gloo")
    parser.add_argument("--quick", action="store_true")
    benchmark(parser.parse_args())


if __name__ == "__main__":
    main()
