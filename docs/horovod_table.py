"""Writes docs/horovod.md: what becomes of each name of Horovod's.

    make docs-horovod

Whether a name is there, with which arguments, is read from the sources; what cannot be read from
them stands below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from horovod_api import MODULES, Signature, Sources

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests/data/horovod_0_28_1.json"
PAGE = ROOT / "docs/horovod.md"

SAME, DIFFERS, FORWARDED, REFUSED, MISSING = "same", "differs", "forwarded", "refused", "not there"

_ASYNC = "done when all ranks wait for a call or poll, not in the background"

# What a name that is there does more, or answers: programs need no change for it.
SAME_BUT = {
    "nccl_built": "always 0",
    "gloo_built": "always false",
    "gloo_enabled": "always false",
    "ddl_built": "always false",
    "ccl_built": "always false",
    "rocm_built": "always false",
    "cuda_built": "whether there are kernels for CUDA in the build",
    "add_process_set": "HOROVOD_DYNAMIC_PROCESS_SETS is not needed",
    "remove_process_set": "HOROVOD_DYNAMIC_PROCESS_SETS is not needed",
    "HorovodInternalError": "the base of all errors of hvd_backup: `hvd_backup.Error`",
    "BroadcastGlobalVariablesCallback": "also the state of a model's own optimizers; in another "
    "`fit` it sends what is new",
}

# How a name that is there differs in what it does, in any module that has it.
DIFFERENCES = {
    "DistributedOptimizer": "returns the optimizer itself, with hooks, not a subclass; a step is "
    "one round of all gradients",
    "MetricAverageCallback": "each rank counts by the samples that its metric saw; arrays, too",
    "poll": "may wait for the other ranks: it takes part in what they wait for",
    "start_timeline": "of collectives, not of rounds; HOROVOD_TIMELINE=DYNAMIC is not needed; "
    "`mark_cycles` changes nothing",
    "join": "ranks that joined take part in `allreduce`, not in the rounds of an optimizer or a "
    "tape, which raise Mismatch: every rank makes the same number of steps",
}

# In horovod.torch alone.
TORCH_SAME_BUT = {
    **dict.fromkeys(
        (
            *("allreduce", "allreduce_", "grouped_allreduce", "grouped_allreduce_"),
            *("reducescatter", "grouped_reducescatter"),
        ),
        "bfloat16, int8, int16, uint8 and strided tensors, too",
    ),
    **dict.fromkeys(
        ["allgather", "grouped_allgather", "broadcast", "broadcast_", "alltoall"],
        "bool, bfloat16, complex and strided tensors, too",
    ),
    "broadcast_optimizer_state": "LBFGS, too; fresh optimizers make no step for it",
    "broadcast_parameters": "iterators such as model.named_parameters(), and tensors of every "
    "dtype, sparse and quantized ones, too; what cannot be sent is named, and the rest is sent",
}
TORCH_DIFFERENCES = {
    "join": "in a DistributedOptimizer's rounds a rank that joined abstains: the mean is over the "
    "ranks that have data. After it, parameters and optimizer state are equal on all ranks again "
    "([PyTorch](pytorch.md#uneven-data))",
    "allreduce_async": _ASYNC,
    "allreduce_async_": _ASYNC,
    "grouped_allreduce_async": _ASYNC,
    "grouped_allreduce_async_": _ASYNC,
    "alltoall_async": _ASYNC,
    "allgather_async": _ASYNC,
    "grouped_allgather_async": _ASYNC,
    "broadcast_async": _ASYNC,
    "broadcast_async_": _ASYNC,
    "reducescatter_async": _ASYNC,
    "grouped_reducescatter_async": _ASYNC,
    "sparse_allreduce_async": _ASYNC,
}

_ELASTIC = "`horovod.torch.elastic`, for Horovod's own collectives; else refused with the way out"
FORWARDS = {
    ("torch", "elastic"): _ELASTIC,
    ("torch", "Adasum"): "`op=Adasum` is Horovod's if it is installed; else NotImplementedError",
}

NOTES = """\
A Horovod program whose imports alone have been changed runs as before. **With backup workers
(`HVD_BACKUP_WORKERS=1`) change one thing more**: compute each gradient inside `attempt()`.

```python
while training:
    with optimizer.attempt():  # left at once when the round is over without this rank
        optimizer.zero_grad()
        loss(model, next(batches)).backward()
    optimizer.step()  # every rank makes every step, late or not
```

In Keras, add `hvd.callbacks.AttemptCallback()` to `fit` ([tensorflow.md](tensorflow.md)). Why: a
round does not wait for its last b ranks, so a rank that has once fallen behind (it saved a
checkpoint, say) computes for rounds that are over. Without `attempt()` it computes all of them,
stays behind for as long as the others are as fast, and its data is lost for as long. Rank 0 warns
of a rank whose share of the rounds is far below chance (`HVD_BACKUP_LATE_WARNING=0`: no warning).

The rest of this page: what becomes of the public names of Horovod 0.28.1 when `horovod` is replaced
by `hvd_backup` in a program's imports.

Whether a name is there and takes Horovod's arguments, in their order, is read from the sources of
both; tests hold the collectives of PyTorch against an installed Horovod.

- **Names.** Calls are matched by their names, in whatever order each rank makes them; calls without
  one are counted. Ranks that call different things under one name, or that all wait for different
  names, raise `Mismatch`, a `HorovodInternalError`, on every rank. In Horovod the latter hang.
- **Asynchronous calls** are registered when they are made. They are done when all ranks of the set
  wait for some call, in `poll` or `synchronize`. Nothing runs in the background, so they do not
  overlap with computing. (`DistributedOptimizer` does not go this way.) Leave their tensors alone
  until then.
  Ranks that share several process sets, or make optimizer steps in between, wait for their calls in
  the same order.
- **Numbers.** Integers are averaged and scaled in float64 and cut off, as in Horovod. float16 and
  bfloat16 are added in float32.
- **GPUs.** Tensors on a GPU travel through host memory.
- **Also there**: `Compression.bf16`, `is_homogeneous`, and `hvd_backup`'s own collectives on numpy
  arrays. `hvd_backup.mxnet`, `.spark`, `.ray` and `.torch.elastic`: an installed Horovod's, or
  refused.
"""

ENVIRONMENT = """\
| variable | |
|---|---|
| `HOROVOD_STALL_CHECK_TIME_SECONDS` | honoured (60): a longer wait says for whom; 0: never |
| `HOROVOD_STALL_CHECK_DISABLE` | honoured: no such word. Time-outs stay |
| `HOROVOD_STALL_SHUTDOWN_TIME_SECONDS` | honoured, unless `HVD_BACKUP_TIMEOUT` is set; 0: never |
| `HOROVOD_LOG_LEVEL` | honoured: the level of the logger `hvd_backup` |
| `HOROVOD_TIMELINE` | honoured: the file of `start_timeline`, from `init()` on |
| `HOROVOD_DYNAMIC_PROCESS_SETS` | not needed |
| set by horovodrun for its ranks | see [cluster.md](cluster.md) |
| all others | accepted; rank 0 warns once of those that change nothing |

**Time-outs.** Horovod waits for ever if nothing is said. `hvd_backup` raises `RoundTimeout` on
every rank after 600 s in one wait, and names the missing ranks. Waiting counts, computing does not.
If ranks may wait longer for one another (rank 0 evaluates for half an hour, say), set
`HVD_BACKUP_TIMEOUT`, or `HOROVOD_STALL_SHUTDOWN_TIME_SECONDS=0` to wait for ever; dead ranks are
noticed all the same. A shutdown time that is shorter than the check time counts here; Horovod
ignores it. [errors.md](errors.md) says who raises what.
"""


class Verdict(NamedTuple):
    """What becomes of a name."""

    kind: str
    words: str = ""


def accepts(ours: Signature, theirs: Signature) -> str:
    """Empty if what is callable as `theirs` is callable as `ours`, else what is not."""
    if isinstance(theirs, str) or isinstance(ours, str):
        return "takes arguments" if theirs == "value" and not isinstance(ours, str) else ""
    if any(str(name).startswith("**") for name, _ in ours):
        return ""
    names = [str(name) for name, _ in ours]
    wanted = [str(name) for name, _ in theirs if not str(name).startswith("*")]
    lacking = [name for name in wanted if name not in names]
    if lacking:
        return "without " + ", ".join(f"`{name}`" for name in lacking)
    if [name for name in names if name in wanted][: len(wanted)] != wanted:
        return "its arguments have another order"
    plain = names[: names.index("*")] if "*" in names else names
    elsewhere = [n for i, n in enumerate(wanted) if i >= len(plain) or plain[i] != n]
    if elsewhere:
        return "arguments by name: " + ", ".join(f"`{name}`" for name in elsewhere)
    optional = {str(name) for name, default in theirs if default}
    needed = [str(n) for n, default in ours if not default and n not in wanted]
    needed += [str(n) for n, default in ours if not default and n in optional]
    return f"needs {', '.join(needed)}" if needed else ""


def verdict(module: str, name: str, theirs: Signature, ours: dict[str, Signature]) -> Verdict:
    """What becomes of `name` of Horovod's `module`."""
    if (module, name) in FORWARDS:
        return Verdict(FORWARDED, FORWARDS[module, name])
    if name not in ours:
        return Verdict(MISSING)
    differences = DIFFERENCES | (TORCH_DIFFERENCES if module == "torch" else {})
    words = [accepts(ours[name], theirs), differences.get(name, "")]
    text = "; ".join(filter(None, words))
    more = TORCH_SAME_BUT.get(name, "") if module == "torch" else ""
    more = more or SAME_BUT.get(name, "")
    return Verdict(DIFFERS if text else SAME, text or more)


def verdicts() -> dict[str, dict[str, Verdict]]:
    """Per module of Horovod what becomes of each of its names."""
    ours = Sources(ROOT / "hvd_backup").record()
    theirs: dict[str, dict[str, Signature]] = json.loads(RECORD.read_text())
    return {
        module: {
            name: verdict(module, name, signature, ours[module])
            for name, signature in names.items()
        }
        for module, names in theirs.items()
    }


def page() -> str:
    """docs/horovod.md."""
    lines = [
        "# From Horovod",
        "",
        "<!-- Written by docs/horovod_table.py: make docs-horovod -->",
        "",
        NOTES,
        "## Environment",
        "",
        ENVIRONMENT,
    ]
    for module, names in verdicts().items():
        lines += [f"## horovod.{module}", "", "| name | | |", "|---|---|---|"]
        lines += [f"| `{name}` | {v.kind} | {v.words} |" for name, v in names.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    assert list(verdicts()) == list(MODULES)
    PAGE.write_text(page())
