"""Memory of the ranks' devices that all ranks of a node map: whether it can be, and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvd_backup import _core, errors
from hvd_backup.config import RoundOptions
from hvd_backup.world.runtime import Runtime

log = logging.getLogger("hvd_backup")

# Of the ranks' memory for results that are kept for late ranks; unlike the host's it is taken at
# once.
ROOM = 1 << 28

_LEAST_CHUNK, _MOST_CHUNK = 1 << 20, 16 << 20

# Those that have left, while other ranks map their memory.
_left: list[_core.Collective] = []


@dataclass(frozen=True)
class Wish:
    """What a rank would have: all flats but the last, the marks, in memory of `device`.

    `why_not` is why it cannot be, in words; then all ranks go by the host.
    """

    device: int
    why_not: str = ""


def spec(
    policy: _core.Policy,
    options: RoundOptions,
    layout: Sequence[tuple[str, int]],
    chunk: int,
    nbytes: int,
) -> _core.ArenaSpec:
    """An arena with all flats but the last in device memory."""
    # A chunk costs a launch and a wait, and every helper should have some.
    share = -(-nbytes // (2 * policy.world) // 4096) * 4096
    return _core.ArenaSpec(
        policy,
        options.window,
        layout,
        chunk,
        device_flats=len(layout) - 1,
        device_chunk_bytes=min(max(share, _LEAST_CHUNK), _MOST_CHUNK),
    )


def agree(
    world: Runtime, wish: Wish, options: RoundOptions, spec: _core.ArenaSpec, name: str
) -> _core.MappedArena | None:
    """This rank's memory, which maps that of all others; None if that fails on any rank.

    All ranks of the world call it together. Rank 0 logs why it is None.
    """
    _give_back()
    together = world.together
    made: list[_core.MappedArena] = []
    problem = _impossible(world, options) or wish.why_not
    if not problem:
        problem = _problem_of(
            lambda: made.append(_core.MappedArena(wish.device, spec.device_bytes, spec.buffers))
        )
    everybody = together.allgather((problem, made[0].handle if made else None))
    problems = [text for text, _ in everybody]
    handles = [handle for _, handle in everybody if handle is not None]
    if not any(problems):
        problems = together.allgather(_problem_of(lambda: made[0].open(handles, world.rank)))
    if not any(problems):
        problems = together.allgather(_problem_of(made[0].confirm))
    if not any(problems):
        return made[0]
    for arena in made:
        arena.unmap()
    together.barrier()  # nobody maps it any more
    for arena in made:
        arena.release()
    if world.rank == 0:
        rank = next(rank for rank, text in enumerate(problems) if text)
        log.warning(
            "%s: HVD_BACKUP_DEVICE_PATH=mapped, but gradients are staged through the host's "
            "memory: rank %d: %s",
            *(name, rank, problems[rank]),
        )
    return None


def _problem_of(call: Callable[[], None]) -> str:
    try:
        call()
    except errors.Error as error:
        return str(error)
    return ""


def left(core: _core.Collective) -> None:
    """A collective has left: its device memory is freed as soon as no other rank maps it.

    Later ones look for that; when the process ends, the driver frees what is left.
    """
    _left.append(core)
    _give_back()


def _give_back() -> None:
    _left[:] = [core for core in _left if not core.give_back()]


def _impossible(world: Runtime, options: RoundOptions) -> str:
    """Why no rank of such a world can have it; the same on all."""
    if world.node_service is not None:
        return f"the world has {world.cross_size} nodes, and only ranks of one can map memory"
    if options.late == "carry":
        return "late='carry' adds a late gradient to the next one on the host"
    if world.size > _core.MappedArena.MOST_RANKS:
        return f"a kernel takes {_core.MappedArena.MOST_RANKS} slots, there are {world.size} ranks"
    return ""
