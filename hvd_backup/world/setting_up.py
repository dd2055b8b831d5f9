"""What a world lends to those that wait for all its ranks: its table, and set-ups."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class AllRanks:
    """All ranks, as participants of a table."""

    def __init__(self, world: Any) -> None:
        self._world = weakref.proxy(world)  # which owns the table

    def gate(
        self, call: str, timeout: float | None, meanwhile: Callable[[], bool] | None = None
    ) -> None:
        self._world.gate(call, timeout, meanwhile)

    def limit(self, timeout: float | None) -> float:
        configured: float = self._world.config.timeout
        return configured if timeout is None else timeout

    def give_up(self, error: BaseException) -> None:
        self._world.board.fail(error)

    def leave_gate(self) -> None:
        self._world.board.finish_setup()

    def rounds(self) -> int:
        rounds: int = self._world.rounds
        return rounds


class SettingUp:
    """A context; see ``Runtime.setting_up()``."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        board = self._world.board
        known = error is None or board.knows(error) or self._world.together.have_agreed_on(error)
        if error is not None and not known:
            board.fail(error)
