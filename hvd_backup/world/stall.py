"""What Horovod calls the stall inspector: a wait that is long is warned of, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hvd_backup.phrases import ranks_text

log = logging.getLogger("hvd_backup")


class Stall:
    """One wait after another. `after` is in seconds; 0: nothing is ever said."""

    def __init__(self, after: float) -> None:
        self._after = after
        self.restart()

    def restart(self) -> None:
        """A wait begins."""
        self._since = time.monotonic()
        self._said = not self._after

    def look(self, describe: Callable[[], tuple[str, list[int]]]) -> None:
        """It goes on. ``describe()``: the call that waits, in words, and the missing ranks."""
        if self._said or (waited := time.monotonic() - self._since) < self._after:
            return
        self._said = True
        call, missing = describe()
        log.warning("%s: waiting for %.0f s; missing %s", call, waited, ranks_text(missing))
