"""Says how far copies are: warehouse.table_copies, bars on a terminal, lines in the log."""

from __future__ import annotations

import time
from collections.abc import Collection

import structlog

from replicator.copy_bars import Bar, CopyBars
from replicator.copy_plan import TableCopy
from replicator.mirror import QUERIES
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()

_NOTE_S, _REPORT_S = 1, 5


class CopyReport:
    """The reports on one source's copies."""

    def __init__(self, conn: Connection, source: str) -> None:
        self._conn, self._source = conn, source
        self._bars = CopyBars()
        self._noted_at = self._reported_at = 0.0

    def close(self) -> None:
        """Take the bars away."""
        self._bars.close()

    def note(self, copy: TableCopy, waits_for: str | None) -> None:
        """Commit how far a copy is, and what it waits for."""
        with wrap_errors(table=copy.table.name):
            self._conn.execute(QUERIES["note_copy"], copy.describe(self._source, waits_for))

    def show(self, copies: Collection[TableCopy], waits_for: str | None) -> None:
        """Report on all copies, where it is time to."""
        now = time.monotonic()
        if now < self._noted_at + _NOTE_S:
            return
        self._noted_at = now
        for copy in copies:
            self.note(copy, waits_for)
        bars = [Bar(copy.table.name, copy.rows_done, copy.rows_estimate, copy.rows_per_s, waits_for) for copy in copies]
        self._bars.show(bars)
        if now > self._reported_at + _REPORT_S:
            self._reported_at = now
            for bar in bars:
                log.info(
                    "copying", table=bar.name, rows=bar.done, of=max(bar.estimate, bar.done), rows_per_s=round(bar.rows_per_s),
                    left_s=bar.left_s,
                )  # fmt: skip
