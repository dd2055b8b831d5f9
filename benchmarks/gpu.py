"""Kernels beside the device's own copies, and what a step pays for its exchange: make bench-gpu.

Needs torch and numpy alone, so that it runs where nothing can be installed.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hvd_backup import _core

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Prints tables and writes JSON; 1 if a program fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--program", type=Path, required=True, help="the built device_speed")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    most = "4" if given.quick else "256"
    kernels = run([str(given.program), "0" if given.device == "cuda" else "cpu", most])
    print_kernels(kernels)
    steps: list[Row] = []
    for path, (ranks, each) in itertools.product(("staged", "mapped"), worlds(given)):
        line = [sys.executable, "-m", "hvd_backup.cluster.local_run", "-np", str(ranks), "--"]
        line += [sys.executable, str(ROOT / "benchmarks" / "gpu_ranks.py")]
        line += ["--device", given.device, "--path", path]
        line += [*(["--each"] if each else []), *(["--quick"] if given.quick else [])]
        steps += run(line)
    print_steps(steps)
    given.out.mkdir(parents=True, exist_ok=True)
    saved = given.out / f"gpu_{given.device}.json"
    results = {"meta": meta(given.device), "kernels": kernels, "steps": steps}
    saved.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{saved}")
    return 0


def worlds(given: argparse.Namespace) -> list[tuple[int, bool]]:
    """How many ranks, and whether each has a GPU of its own."""
    sizes = [int(size) for size in given.ranks.split(",")]
    gpus = torch.cuda.device_count() if given.device == "cuda" else 0
    return [(size, False) for size in sizes] + [(size, True) for size in sizes if 1 < size <= gpus]


def run(command: list[str]) -> list[Row]:
    """The JSON objects that a program prints, one a line."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed with exit status {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def meta(device: str) -> Row:
    """What a reader needs to judge and to repeat the results."""
    status = _core.cuda_status()
    about: Row = {
        "command": f"python {shlex.join(sys.argv)}",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu (the kernels' twins)",
        "torch": torch.__version__,
        "cuda_runtime": status.runtime_version,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
    }
    if device == "cuda":
        about["driver"] = driver()
    return about


def driver() -> str:
    """The driver's version, as nvidia-smi tells it."""
    try:
        line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"
    return done.stdout.splitlines()[0].strip()


def print_kernels(rows: list[Row]) -> None:
    print(f"\n{'kernel':<12}{'dtype':<10}{'MiB':>5}{'ms':>10}{'GB/s':>10}{'of a copy':>11}")
    for row in rows:
        print(
            f"{row['what']:<12}{row['dtype']:<10}{row['mib']:>5}{row['ms']:>10.3f}"
            f"{row['gb_s']:>10.1f}{row['of_copy']:>11.2f}"
        )


def print_steps(rows: list[Row]) -> None:
    head = (
        f"{'step (ms)':>11}{'alone':>9}{'overhead':>10}{'copies':>9}{'ratio':>7}{'all-reduce':>13}"
    )
    print(f"\n{'path':<8}{'ranks':<7}{'GPUs':<6}{'MiB':>5}{head}")
    for row in rows:
        library = f"{row['library_ms']:.3f} {row['library']}" if row["library"] else "-"
        print(
            f"{row['path']:<8}{row['ranks']:<7}{row['gpus']:<6}{row['mib']:>5}"
            f"{row['step_ms']:>11.3f}{row['alone_ms']:>9.3f}{row['overhead_ms']:>10.3f}"
            f"{row['copies_ms']:>9.3f}{row['ratio']:>7.2f}{library:>13}"
        )
    print("copies: to the host and back, pinned; all-reduce: by NCCL, where each rank has a GPU")


if __name__ == "__main__":
    sys.exit(main())
