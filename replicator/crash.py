"""Crash points: places where a process can be told to die as by kill -9, so that tests need not hope to hit them.

Without the variable TAILRACE_CRASH_AT in the environment nothing here does anything. POINT dies where the point is reached
first, POINT:n where it is reached for the n-th time. Owns the names.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "read",  # bytes came from the source
    "decode",  # a batch of them is decoded
    "before_rows",  # the warehouse's transaction is open
    "after_rows",
    "before_checkpoint",
    "after_checkpoint",
    "before_commit",
    "after_commit",  # the source's state in memory is not settled yet
    "save",  # a position without rows is written and not committed
    "truncate",  # rows that a TRUNCATE took are deleted and not committed
    "begin_copy",
    "copy",  # a block of a copy is written
    "between_slices",  # a slice of a copy beside the stream is committed
    "end_copy",  # a copy is written and not committed
)

_armed, _, _count = os.environ.get("TAILRACE_CRASH_AT", "").partition(":")
_left = int(_count or 1)


def arm(point: str, nth: int = 1) -> None:
    """Do as the variable says, in a process that was forked."""
    global _armed, _left
    _armed, _left = point, nth


def reach(point: str) -> None:
    """Die here, if that is the point."""
    global _left
    if point == _armed:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
