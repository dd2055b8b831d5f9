"""From what the probes told to the lines of `hvd-backup doctor`: pure functions."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_backup.phrases import quote_groups, ranks_text
from hvd_backup.world import launch

OK, NOTE, TODO, FAIL = "ok", "-", "todo", "FAIL"
# What Open MPI 5 puts into /dev/shm for each rank (measured; Open MPI 4: a quarter of it).
SHM_PER_RANK = 16 << 20
# It names an interface of rank 0's host; what other ranks have does not matter.
LOCAL_SETTING = "HVD_BACKUP_INTERFACE"


@dataclass(frozen=True)
class Finding:
    """One line: `ok`, `-` (not there, not needed), `todo` (text says what), `FAIL` (unusable)."""

    status: str
    name: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What a probe told, and how it ended."""

    facts: Mapping[str, Any]
    """All it told; of several ranks, what rank 0 told."""
    problem: str = ""
    """Why it did not get to its end; "" if it did."""


def library(answer: Answer) -> list[Finding]:
    """The MPI library, its ABI, and the thread level."""
    facts = answer.facts
    if "mpi" not in facts:
        return [
            Finding(
                FAIL,
                "MPI",
                f"cannot be started: {answer.problem}; on one host {launch.LOCAL} does without",
            )
        ]
    level = facts["threads"]
    return [
        Finding(OK, "MPI", f"{facts['mpi']} (MPI {facts['standard']}), {facts['path'] or '?'}"),
        Finding(OK, "ABI", f"mpi4py {facts['mpi4py']}, {abi(facts['module'])}"),
        Finding(OK, "thread level", f"MPI_THREAD_{level}")
        if level == "MULTIPLE"
        else Finding(
            TODO,
            "thread level",
            f"MPI_THREAD_{level}: other threads may not call MPI; unset MPI4PY_RC_THREAD_LEVEL "
            "and MPI4PY_RC_THREADS, or use an MPI built with threads",
        ),
    ]


def no_library() -> Finding:
    """Ranks without MPI."""
    return Finding(NOTE, "MPI", f"not used under {launch.LOCAL}")


def abi(module: str) -> str:
    """For which MPI mpi4py's module was built, by its file name."""
    word = module.removeprefix("MPI.").partition(".")[0]
    known = {"openmpi": "Open MPI", "mpich": "MPICH", "mpiabi": "the standard MPI ABI"}
    if word in known:
        return f"built for the ABI of {known[word]}"
    return "built for one MPI only (no wheel of PyPI)"


def exchange(answer: Answer) -> Finding:
    """Whether init() and a partial all-reduce work."""
    facts = answer.facts
    if not facts.get("works"):
        return Finding(FAIL, "exchange", answer.problem)
    ranks = f"a partial all-reduce of {count(facts['size'], 'rank')} works"
    if facts["remote_reads"]:
        return Finding(OK, "exchange", f"{ranks}; ranks read each other's memory")
    return Finding(
        TODO,
        "exchange",
        f"{ranks}, but process_vm_readv is forbidden and large numpy arrays are copied once more; "
        "allow ptrace between the ranks (Yama's ptrace_scope, seccomp, capabilities)",
    )


def started(how: launch.Launch, answer: Answer) -> Finding:
    """The launcher that started this process, and the world that MPI made of it."""
    name = how.launcher if how.launcher != launch.NONE else "none, or one that is not known here"
    world = answer.facts.get("size")
    if world is None and how.launcher == launch.LOCAL:
        return Finding(FAIL, "launcher", f"{name}: {answer.problem}")
    if world is None:  # then there is no MPI, which has been told
        return Finding(NOTE, "launcher", name)
    if world == 1 and (how.size or 1) > 1:  # what the probe says then is launch.check's text
        return Finding(FAIL, "launcher", answer.problem)
    return Finding(OK, "launcher", f"{name}, a world of {count(world, 'rank')}")


def tried(mpirun: str, ranks: int, answer: Answer) -> Finding:
    """What came of starting a few ranks with the mpirun that was found."""
    size = answer.facts.get("size")
    what = f"none here; {mpirun} -np {ranks}"
    if size == ranks and answer.facts.get("works"):
        return Finding(OK, "launcher", f"{what} makes a world of {count(ranks, 'rank')}")
    if size == ranks:  # a world, but not one that hvd_backup works in
        return Finding(FAIL, "launcher", f"{what}: {answer.problem}")
    return Finding(TODO, "launcher", f"{what} does not work: {answer.problem}")


def no_mpirun(text: str) -> Finding:
    """There is no mpirun; another launcher may do."""
    if shutil.which("srun"):
        return Finding(TODO, "launcher", f"none here; start ranks with srun --mpi=pmix; {text}")
    return Finding(TODO, "launcher", text)


def places(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Ranks per node, cores per rank, threads, /dev/shm: the worst host counts."""
    nodes, machines = by("node", ranks), by("machine", ranks)
    sizes = [len(node) for node in nodes]
    names = ", ".join(f"{machine[0]['host']}: {len(machine)}" for machine in machines[:8])
    more = ", …" if len(machines) > 8 else ""
    split = ""
    if len(nodes) > len(machines):
        node_size = ranks[0]["settings"].get("HVD_BACKUP_NODE_SIZE", "")
        split = f" by HVD_BACKUP_NODE_SIZE={node_size} on {count(len(machines), 'host')}"
    return [
        Finding(
            OK,
            "ranks",
            f"{spread(sizes)} per node, {count(len(nodes), 'node')}{split} ({names}{more})",
        ),
        worst([cores(machine) for machine in machines]),
        worst([threads(machine) for machine in machines]),
        worst([shm(machine) for machine in machines]),
    ]


def by(key: str, ranks: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The ranks in groups of one value of `key` each."""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for rank in ranks:
        groups.setdefault(rank[key], []).append(rank)
    return list(groups.values())


def settings(ranks: Sequence[Mapping[str, Any]]) -> Finding:
    """HVD_BACKUP_* variables, which should be the same on all ranks."""
    names = sorted(set[str]().union(*(rank["settings"] for rank in ranks)) - {LOCAL_SETTING})
    differ = []
    for name in names:
        texts = [rank["settings"].get(name, "not set") for rank in ranks]
        if len(set(texts)) > 1:
            differ.append(f"{name} ({quote_groups(texts)})")
    if differ:
        return Finding(
            TODO,
            "settings",
            f"the ranks differ in {', '.join(differ)}; set them for all ranks: mpirun hands a "
            "variable to other hosts with -x NAME, `hvd-backup run` hands on all HVD_BACKUP_*",
        )
    told = ", ".join(f"{name}={ranks[0]['settings'][name]}" for name in names)
    return Finding(OK, "settings", told or "no HVD_BACKUP_* is set")


def worst(findings: Sequence[Finding]) -> Finding:
    """The first that is not ok, else the first."""
    return next((one for one in findings if one.status != OK), findings[0])


def usable(node: Sequence[Mapping[str, Any]]) -> int:
    """How many cores the ranks of a node have together."""
    together = len(set[int]().union(*(rank["cores"] for rank in node)))
    quotas = [rank["quota"] for rank in node if rank["quota"] is not None]
    # The ranks of one container share its quota; of several containers, each has its own.
    return max(1, min(together, math.floor(min(quotas)))) if quotas else together


def cores(node: Sequence[Mapping[str, Any]]) -> Finding:
    """Cores per rank on one node."""
    have = usable(node)
    each = spread([len(rank["cores"]) for rank in node])
    if len(node) > have:
        return Finding(
            TODO,
            "cores",
            f"{count(len(node), 'rank')} share {count(have, 'core')} on {node[0]['host']}: good "
            f"for a try; for speed, at most {count(have, 'rank')} per node",
        )
    return Finding(
        OK, "cores", f"each rank may use {each} of the {have} that the node's ranks have together"
    )


def threads(node: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether the ranks' threads have cores, by OMP_NUM_THREADS."""
    have, each = usable(node), min(len(rank["cores"]) for rank in node)
    good = max(1, min(have // len(node), each))
    text = node[0]["threads"]
    # It may be a list, one number for each level of nesting.
    number = (text or "").partition(",")[0].strip()
    if not number.isdigit():
        if sum(len(rank["cores"]) for rank in node) <= have:
            return Finding(OK, "OMP_NUM_THREADS", "not set; each rank has its own cores")
        return Finding(
            TODO,
            "OMP_NUM_THREADS",
            f"not set: each of {count(len(node), 'rank')} may start {len(node[0]['cores'])} "
            f"threads, on {count(have, 'core')} together; export OMP_NUM_THREADS={good}",
        )
    wanted = int(number)
    if wanted > each or (wanted > 1 and wanted * len(node) > have):
        return Finding(
            TODO,
            "OMP_NUM_THREADS",
            f"{wanted} threads in each of {count(len(node), 'rank')}, but {each} per rank and "
            f"{count(have, 'core')} in all; set it to {good}, or bind ranks to more cores "
            "(mpirun --bind-to none, srun --cpus-per-task)",
        )
    return Finding(OK, "OMP_NUM_THREADS", text)


def shm(node: Sequence[Mapping[str, Any]]) -> Finding:
    """/dev/shm: only MPI uses it."""
    total, free = (min(rank[key] for rank in node) for key in ("shm", "shm_free"))
    text = f"{size(free)} free of {size(total)}"
    ours = "hvd_backup does not use it (memfd), MPI does"
    if free < SHM_PER_RANK * len(node):
        return Finding(
            TODO,
            "/dev/shm",
            f"{text}, and MPI may want {size(SHM_PER_RANK)} per rank: if it complains, docker run "
            f"--shm-size, or an emptyDir of medium Memory; {ours}",
        )
    return Finding(OK, "/dev/shm", f"{text}; {ours}")


def cuda(answer: Answer, ranks: Sequence[Mapping[str, Any]] = ()) -> Finding:
    """CUDA in the core, and which way gradients on a GPU go among these ranks."""
    facts = answer.facts
    no_way = "gradients on a GPU are refused"
    if facts.get("path") == "mapped":
        no_way += ", with HVD_BACKUP_DEVICE_PATH=mapped, too"
    if "built" not in facts:
        return Finding(TODO, "CUDA", f"cannot be asked: {answer.problem}")
    if not facts["built"]:
        return Finding(NOTE, "CUDA", f"not built in, {no_way}: {facts['why']}")
    if not facts["devices"]:
        return Finding(NOTE, "CUDA", f"built in, not used, {no_way}: {facts['why']}")
    version = f"{facts['runtime'] // 1000}.{facts['runtime'] % 1000 // 10}"
    found = f"runtime {version}, {count(facts['devices'], 'device')}"
    if "unpinned" not in facts:
        return Finding(TODO, "CUDA", f"{found}, {no_way}: a trial failed: {answer.problem}")
    return _way_of_gradients(found, answer, ranks)


def _way_of_gradients(found: str, answer: Answer, ranks: Sequence[Mapping[str, Any]]) -> Finding:
    """Staged by way of the host, or in memory of the GPUs."""
    facts = answer.facts
    unmapped = facts.get("unmapped", answer.problem or "that was not tried")
    mapped = facts.get("path") == "mapped"
    way = f"{found}; gradients are staged: packed on the GPU, copied to shared memory of the host"
    if mapped and (why := _not_for_all(ranks)):
        return Finding(TODO, "CUDA", f"{way}, though HVD_BACKUP_DEVICE_PATH=mapped here: {why}")
    if mapped and not unmapped:
        return Finding(
            OK,
            "CUDA",
            f"{found}; gradients stay in memory of the GPUs, which the ranks of one node map "
            "(HVD_BACKUP_DEVICE_PATH=mapped)",
        )
    if mapped:
        return Finding(
            TODO,
            "CUDA",
            f"{way}, though HVD_BACKUP_DEVICE_PATH=mapped, as processes cannot map the memory of "
            f"one another's GPUs: {unmapped}; unset it, or let all ranks of a host run in one "
            "container",
        )
    if facts["unpinned"]:
        return Finding(
            TODO,
            "CUDA",
            f"{way} by way of a pinned buffer, one copy more, as the shared memory cannot be "
            f"pinned: {facts['unpinned']}; raise the limit of locked memory (ulimit -l)",
        )
    other = (
        f"could not: {unmapped}"
        if unmapped
        else "would do without the host, but has not run on a GPU yet"
    )
    return Finding(OK, "CUDA", f"{way}, which is pinned; HVD_BACKUP_DEVICE_PATH=mapped {other}")


def _not_for_all(ranks: Sequence[Mapping[str, Any]]) -> str:
    """Why these ranks cannot all map each other's memory; "" if nothing speaks against it."""
    path = "HVD_BACKUP_DEVICE_PATH"
    others = [i for i, rank in enumerate(ranks) if rank["settings"].get(path) != "mapped"]
    if others:
        return f"not on {ranks_text(others)}; set it for all ranks"
    if len(by("node", ranks)) > 1:
        return "that is for one node, and there are several; unset it"
    return ""


def framework(name: str, answer: Answer | None) -> Finding:
    """A framework; `answer` is None if it is not installed."""
    if answer is None:
        return Finding(NOTE, name, "not installed")
    facts = answer.facts
    if answer.problem:
        return Finding(TODO, name, f"import fails: {answer.problem}")
    if facts.get("hooks") is False:
        return Finding(TODO, name, f"{facts['version']} is too old; pip install 'torch>=2.1'")
    if not facts["adapter"]:
        return Finding(NOTE, name, f"{facts['version']}; this version has no adapter for it")
    return Finding(OK, name, f"{facts['version']}, hvd_backup.{name} can be imported")


def horovod(answer: Answer | None, path: str) -> Finding:
    """Horovod beside us; `path` is the MPI library that mpi4py has loaded."""
    if answer is None:
        return Finding(NOTE, "horovod", "not installed")
    facts = answer.facts
    if answer.problem:
        return Finding(TODO, "horovod", f"import fails: {answer.problem}")
    built = [kind for kind, there in facts["built"].items() if there]
    text = f"{facts['version']}, built with {', '.join(built) or 'neither MPI nor Gloo'}"
    if "mpi" not in built:
        return Finding(
            TODO,
            "horovod",
            f"{text}, not with MPI: in one program with hvd_backup, build it with "
            "HOROVOD_WITH_MPI=1 and start with mpirun or horovodrun --mpi",
        )
    others = sorted({str(Path(file).resolve()) for file in facts["libmpi"]})
    if path and others and others != [str(Path(path).resolve())]:
        return Finding(
            TODO,
            "horovod",
            f"{text}; it loads {', '.join(others)}, mpi4py {path}: build both for one MPI, or use "
            "them in different programs",
        )
    return Finding(OK, "horovod", f"{text}; the same libmpi as mpi4py")


def count(number: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def spread(numbers: Sequence[int]) -> str:
    """``4``, or ``2 to 4``."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def size(nbytes: int) -> str:
    """Bytes in MiB or GiB."""
    mib = nbytes / (1 << 20)
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
