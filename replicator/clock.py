"""The source's clock, seen from here: how far it is ahead of the warehouse's.

Commit times are the source's, so lag can only be told where the two clocks can be compared. Owns the measurement and
sources.clock_offset_ms. Never sets a clock, and never changes a commit time.

Source: RFC 5905, section 8: the offset of a clock is taken from the middle of the shortest round trip.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from replicator.mirror import QUERIES
from replicator.source import Source
from warehouse.db import Connection, wrap_errors

_TRIES = 3
EVERY_S = 60.0


class SourceClock:
    """What the source's clock shows.

    Attributes:
        offset_ms: how far it is ahead of the warehouse's; None before the first measurement.
    """

    def __init__(self) -> None:
        self.offset_ms: float | None = None
        self._ahead_s = time.time() - time.monotonic()
        self._due_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time to measure again: clocks drift, and are set."""
        return time.monotonic() >= self._due_at

    def measure(self, source: Source, conn: Connection, name: str) -> None:
        """Ask both sides for the time, and write the difference down.

        Args:
            conn: in autocommit mode, outside a transaction. name: of the source.

        Raises:
            SourceUnavailable, WarehouseUnavailable: a server does not answer.
        """

        def ask_source() -> float:
            now: datetime = source.query("SELECT UTC_TIMESTAMP(6)")[0][0]
            return now.replace(tzinfo=UTC).timestamp()

        def ask_warehouse() -> float:
            row: Any = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
            return float(row[0])

        self._ahead_s = _compare(ask_source)
        with wrap_errors():
            self.offset_ms = 1000 * (self._ahead_s - _compare(ask_warehouse))
            conn.execute(QUERIES["write_clock_offset"], {"source": name, "offset_ms": self.offset_ms})
        self._due_at = time.monotonic() + EVERY_S

    def lag_ms(self, commit_us: int) -> float:
        """How long ago a transaction was committed, by the source's own clock; never negative."""
        return max(0.0, 1000 * (time.monotonic() + self._ahead_s) - commit_us / 1000)


def _compare(ask: Callable[[], float]) -> float:
    """How many seconds a clock is ahead of time.monotonic()."""
    best = (float("inf"), 0.0)
    for _ in range(_TRIES):
        before = time.monotonic()
        there = ask()
        after = time.monotonic()
        best = min(best, (after - before, there - (before + after) / 2))
    return best[1]
