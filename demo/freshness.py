"""Freshness as a client sees it: from just before COMMIT at the source until NOTIFY tells of the row, or of its anomaly.

Owns: one connection that listens. Never: writes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
import psycopg
from numpy.typing import NDArray

from demo.plant import DATABASE, TABLES
from warehouse.db import Connection

ROWS_QUERY = f"""SELECT unit, cycle, _seq FROM {DATABASE}.{TABLES[2]} WHERE _seq > %s ORDER BY _seq"""
ANOMALIES_QUERY = """SELECT (a.entity)::int, (a.order_value)::int, a.id FROM scorer.anomalies a
WHERE a.id > %s AND a.source_table = %s ORDER BY a.id"""


class Freshness(threading.Thread):
    """Notes when each new row and each new anomaly became visible.

    mirrored, detected: (unit, cycle) to time.time() at the notification after which it was found.
    """

    def __init__(self, conn: Connection) -> None:
        super().__init__(name="freshness", daemon=True)
        self.conn = conn
        self.mirrored: dict[tuple[int, int], float] = {}
        self.detected: dict[tuple[int, int], float] = {}
        self.error: Exception | None = None
        self._asked_to_stop = threading.Event()
        conn.execute("LISTEN tailrace_rows")
        conn.execute("LISTEN anomalies")
        self._seq = self._newest(f"SELECT max(_seq) FROM {DATABASE}.{TABLES[2]}")
        self._id = self._newest("SELECT max(id) FROM scorer.anomalies")

    def _newest(self, query: str) -> int:
        row = self.conn.execute(query).fetchone()
        return 0 if row is None or row[0] is None else int(row[0])

    def stop(self) -> None:
        """End listening."""
        self._asked_to_stop.set()
        self.join()

    def run(self) -> None:
        """Listen until stopped; an error is kept for the main thread."""
        try:
            while not self._asked_to_stop.is_set():
                notices = list(self.conn.notifies(timeout=0.25, stop_after=1))
                at = time.time()
                for channel in {notice.channel for notice in notices}:
                    self._look(channel, at)
        except psycopg.Error as error:
            self.error = error

    def _look(self, channel: str, at: float) -> None:
        if channel == "tailrace_rows":
            for unit, cycle, seq in self.conn.execute(ROWS_QUERY, (self._seq,)):
                self.mirrored[unit, cycle] = at
                self._seq = seq
        else:
            for unit, cycle, number in self.conn.execute(ANOMALIES_QUERY, (self._id, f"{DATABASE}.{TABLES[2]}")):
                self.detected.setdefault((unit, cycle), at)
                self._id = number


def measure_ms(committed: Mapping[tuple[int, int], float], seen: Mapping[tuple[int, int], float]) -> NDArray[np.float64]:
    """Milliseconds from commit to sight of every row that is in both; shape (rows,), sorted."""
    return np.sort(np.array([(at - committed[key]) * 1000 for key, at in seen.items() if key in committed]))
