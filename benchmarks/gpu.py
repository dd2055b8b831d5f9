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

import output
import torch

from hvd_backup import _core

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent

COLUMNS = {
    "of a copy": "GB/s / GB/s of the device's own copy of as many bytes",
    "staged": "gradients go through the host's memory; mapped: all ranks map the device's memory",
    "step": "a step of the optimizer with its exchange; alone: without any; overhead: step - alone",
    "copies": "the gradients to the host and back, pinned",
    "ratio": "overhead / copies: 1 is what these copies take by themselves",
    "all-reduce": "the same bytes by NCCL, where each rank has a GPU, or by gloo on the CPU",
}


def main() -> int:
    """Prints tables and writes JSON; 1 if a program failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--program", type=Path, required=True, help="the built device_speed")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--quick", action="store_true")
    # Not build/bench/: on a bare machine this is all that is brought back, from a place of its own.
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    if not given.program.exists():
        parser.error(f"--program: there is no {given.program}; `make bench-gpu` builds it")
    results = Results(given.out / f"gpu_{given.device}.json", meta(given.device))
    device = "0" if given.device == "cuda" else "cpu"
    most = "4" if given.quick else "256"
    print_kernels(results.add("kernels", [str(given.program), device, most]))
    print_head_of_steps()
    for path, (ranks, each) in itertools.product(("staged", "mapped"), worlds(given)):
        line = [sys.executable, "-m", "hvd_backup.cluster.local_run", str(ranks)]
        line += [sys.executable, str(ROOT / "benchmarks" / "gpu_ranks.py")]
        line += ["--device", given.device, "--path", path]
        line += [*(["--each"] if each else []), *(["--quick"] if given.quick else [])]
        print_steps(results.add("steps", line))
    output.explain(COLUMNS)
    if results.rows["steps"]:
        output.quote(sentence(results.rows["steps"]), results.about)
    print(f"\n{results.file}")
    return 1 if results.rows["failed"] else 0


class Results:
    """What has been measured so far, in a file: a run that is cut off leaves what it had."""

    def __init__(self, file: Path, about: Row) -> None:
        self.file = file
        self.rows: dict[str, list[Row]] = {"kernels": [], "steps": [], "failed": []}
        self.about = about
        file.parent.mkdir(parents=True, exist_ok=True)

    def add(self, kind: str, command: list[str]) -> list[Row]:
        """The JSON objects that a program prints, one a line."""
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        new = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        self.rows[kind] += new
        if done.returncode:
            failed = {"command": shlex.join(command), "exit_status": done.returncode}
            print("failed with exit status {exit_status}: {command}".format(**failed), flush=True)
            self.rows["failed"].append(failed)
        self.file.write_text(json.dumps({"meta": self.about, **self.rows}, indent=1) + "\n")
        return new


def worlds(given: argparse.Namespace) -> list[tuple[int, bool]]:
    """How many ranks, and whether each has a GPU of its own."""
    sizes = [int(size) for size in given.ranks.split(",")]
    gpus = torch.cuda.device_count() if given.device == "cuda" else 0
    return [(size, False) for size in sizes] + [(size, True) for size in sizes if 1 < size <= gpus]


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


def sentence(steps: list[Row]) -> str:
    """The last, which is the largest gradient in the largest world."""
    row = steps[-1]
    short = output.short
    library = f"; {row['library']} takes {short(row['library_ms'])} ms" if row["library"] else ""
    return (
        f"the exchange of {row['mib']} MiB between {row['ranks']} rank(s) on {row['gpus']} GPU(s), "
        f"{row['path']}, costs a step {short(row['overhead_ms'])} ms{library}."
    )


def print_head_of_steps() -> None:
    print(
        f"\n{'path':<8}{'pinned':<8}{'ranks':<7}{'GPUs':<6}{'MiB':>5}{'step (ms)':>11}"
        f"{'alone':>9}{'overhead':>10}{'copies':>9}{'ratio':>7}{'all-reduce':>13}"
    )


def print_steps(rows: list[Row]) -> None:
    for row in rows:
        library = f"{row['library_ms']:.3f} {row['library']}" if row["library"] else "-"
        print(
            f"{row['path']:<8}{'yes' if row['pinned'] else '-':<8}{row['ranks']:<7}"
            f"{row['gpus']:<6}{row['mib']:>5}{row['step_ms']:>11.3f}{row['alone_ms']:>9.3f}"
            f"{row['overhead_ms']:>10.3f}{row['copies_ms']:>9.3f}{row['ratio']:>7.2f}{library:>13}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
