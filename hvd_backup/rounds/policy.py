"""Which system of distributed SGD a collective runs: the one place that makes the core's policy."""

from __future__ import annotations

from hvd_backup._core import Policy
from hvd_backup.config import RoundOptions


def policy_of(world: int, options: RoundOptions) -> Policy:
    """The policy of a collective of `world` ranks.

    Every part of the core that decides or counts is given this object: collective, arena, and the
    service between nodes.
    """
    return Policy.backup_workers(world, options.backup_workers, options.grace)
