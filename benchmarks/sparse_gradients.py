"""What a sparse embedding costs in a round, beside a dense one and beside an all-gather of rows.

    python benchmarks/sparse_gradients.py --ranks 2

Starts itself under mpirun. Every rank touches `--touched` rows of a table of `--rows` x `--width`
float32. `round`: synchronize(), from the sparse gradient to the sparse mean. `all-gather`: indices
and values of all ranks over MPI, coalesced and divided, which is Horovod's way, and needs every
rank. Medians of ms, of the slowest rank.
"""

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

import hvd_backup.torch as hvd
from hvd_backup.world.mpirun import find_mpirun


def sparse(rows: int, width: int, touched: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + hvd.rank())
    where = torch.randint(0, rows, (1, touched), generator=generator)
    return torch.sparse_coo_tensor(
        where, torch.randn(touched, width), (rows, width), check_invariants=False
    )


def time_rounds(args: argparse.Namespace, *, dense: bool) -> list[float]:
    p = torch.nn.Parameter(torch.zeros(args.rows, args.width))
    opt = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=0.1), backup_workers=0)
    times = []
    for step in range(args.steps):
        grad = sparse(args.rows, args.width, args.touched, step)
        p.grad = grad.to_dense() if dense else grad
        hvd.barrier()
        start = time.perf_counter()
        opt.synchronize()
        times.append(time.perf_counter() - start)
    opt.close()
    return times


def time_gather(args: argparse.Namespace) -> list[float]:
    from mpi4py import MPI

    comm, times = MPI.COMM_WORLD, []
    for step in range(args.steps):
        grad = sparse(args.rows, args.width, args.touched, step)
        hvd.barrier()
        start = time.perf_counter()
        own = grad.coalesce()
        counts = comm.allgather(own._nnz())  # noqa: SLF001
        where = np.empty(sum(counts), np.int64)
        values = np.empty((sum(counts), args.width), np.float32)
        comm.Allgatherv(own.indices()[0].numpy(), (where, counts))
        comm.Allgatherv(own.values().numpy(), (values, [n * args.width for n in counts]))
        shape = (args.rows, args.width)
        whole = torch.sparse_coo_tensor(where[None], torch.from_numpy(values), shape)
        whole.coalesce().values().div_(hvd.size())
        times.append(time.perf_counter() - start)
    return times


def report(name: str, times: list[float]) -> None:
    slowest = [max(each) for each in zip(*hvd.allgather_object(times), strict=True)][2:]
    if hvd.rank() == 0:
        print(f"{name:24} {1e3 * statistics.median(slowest):8.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--touched", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:
        command = [find_mpirun(), "-n", str(args.ranks), sys.executable, *sys.argv, "--inside"]
        raise SystemExit(subprocess.run(command, check=False).returncode)
    hvd.init()
    torch.set_num_threads(1)
    if hvd.rank() == 0:
        megabytes = args.rows * args.width * 4 / 1e6
        print(
            f"{hvd.size()} ranks, a table of {args.rows} x {args.width} ({megabytes:.0f} MB), "
            f"{args.touched} rows touched"
        )
    report("round, sparse gradient", time_rounds(args, dense=False))
    report("round, dense gradient", time_rounds(args, dense=True))
    report("all-gather of rows", time_gather(args))
    hvd.shutdown()


if __name__ == "__main__":
    main()
