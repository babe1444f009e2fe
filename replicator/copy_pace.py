"""How much of a copy is written at once, and how long the stream is left alone afterwards. Pure.

The stream and the copies write over one connection, so every write of a copy is a wait for the stream.
"""

from __future__ import annotations

# How long one write may take: while the stream brings changes, and while it is idle.
_BUSY_S, _IDLE_S = 0.003, 0.03
# While the stream is busy the processors are its own for so long after a write, in terms of the write.
_REST = 0.5
_FEWEST_ROWS = 100
# What is expected at first, likewise.
_BUSY_ROWS_PER_S, _IDLE_ROWS_PER_S = 20_000.0, 100_000.0
_LAGGING_S, _LOOK_S = 1.0, 0.05


class Pace:
    """When to write how much; all times in time.monotonic() seconds.

    Args:
        max_lag_ms: while the stream is further behind, something is written once a second only.
    """

    def __init__(self, max_lag_ms: float) -> None:
        self._max_lag_ms = max_lag_ms
        self._rows_per_s = {True: _BUSY_ROWS_PER_S, False: _IDLE_ROWS_PER_S}
        self._wrote_at = self._rest_until = 0.0

    def rest_s(self, now: float) -> float:
        """How long the stream is to be left alone yet."""
        return max(0.0, self._rest_until - now)

    def may_write(self, now: float, lag_ms: float) -> bool:
        """Whether it is time to write.

        Args:
            lag_ms: how far the stream is behind.
        """
        if now < self._rest_until:
            return False
        if lag_ms > self._max_lag_ms and now < self._wrote_at + _LAGGING_S:
            self._rest_until = now + _LOOK_S
            return False
        return True

    def most_rows(self, *, is_busy: bool) -> int:
        """How many rows to write at once."""
        return max(_FEWEST_ROWS, int(self._rows_per_s[is_busy] * (_BUSY_S if is_busy else _IDLE_S)))

    def note_rows(self, rows: int, took_s: float, *, is_busy: bool) -> None:
        """So many rows were written in that time; down at once, because the stream waits behind what takes too long."""
        found, known = rows / max(1e-4, took_s), self._rows_per_s[is_busy]
        self._rows_per_s[is_busy] = min(found, known + 0.2 * (found - known))

    def note_write(self, began: float, ended: float, *, is_busy: bool) -> None:
        """Something was written, or a copy ended."""
        self._wrote_at = ended
        if is_busy:
            self._rest_until = ended + _REST * (ended - began)
