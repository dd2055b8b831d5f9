"""The traceback that ends a rank's program, printed in one piece.

Python writes it line by line, so that a launcher mixes the lines of ranks that fail together.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from types import TracebackType


def print_in_one_piece() -> None:
    """From now on, unless somebody else prints them."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print


def _print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    with contextlib.suppress(OSError, AttributeError):  # there may be no standard error any more
        sys.stderr.write(text)
        sys.stderr.flush()
