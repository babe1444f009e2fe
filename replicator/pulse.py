"""Who is at work: the process that has a source's lock shows twice a second that it runs; a standby watches, and takes over.

A process that ends, however, gives its lock back with its session. One that is frozen, or cut off, keeps it: its standby then
ends that session in Postgres. That is safe: rows and positions are only ever committed in the session that has the lock.
Owns warehouse.pulses and the ending of sessions.
"""

from __future__ import annotations

import threading

import structlog

from replicator.mirror import QUERIES
from warehouse.db import Connection, connect, lock_number, wrap_errors
from warehouse.errors import TailraceError
from warehouse.settings import WarehouseSettings

log = structlog.get_logger()

BEAT_S = 0.5
# How soon the lock is free once its session was told to end.
_FREED_S = 0.02


class Pulse:
    """Beats in a thread and a session of its own while the block runs.

    Args:
        settings: where to.
        name: of the source.
        backend: the process id of the session that has the lock.
    """

    def __init__(self, settings: WarehouseSettings, name: str, backend: int) -> None:
        self._settings, self._facts = settings, {"source": name, "backend": backend}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="tailrace pulse", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        conn: Connection | None = None
        while not self._ended.is_set():
            try:
                if conn is None or conn.closed:
                    conn = connect(self._settings, f"pulse {self._facts['source']}")
                    with wrap_errors():
                        # A disk that is slow to flush must not look like a process that is dead.
                        conn.execute("SET synchronous_commit = off")
                with wrap_errors():
                    conn.execute(QUERIES["beat"], self._facts)
            except TailraceError as error:
                # The main thread finds out by itself what is wrong with the warehouse.
                log.debug("no pulse", source=self._facts["source"], reason=error.message)
                if conn is not None:
                    conn.close()
            self._ended.wait(BEAT_S)
        if conn is not None:
            conn.close()


class Watch:
    """A standby's view of the one at work.

    Args:
        conn: the standby's session. name: of the source.
        takeover_s: how long the other may show nothing, counted in looks, so that a Postgres that stood still costs nobody
            the lock. interval_s: between two looks.
    """

    def __init__(self, conn: Connection, name: str, takeover_s: float, interval_s: float) -> None:
        self._conn, self._name = conn, name
        self._facts = {"source": name, "lock": lock_number(f"source {name}")}
        self._interval_s = interval_s
        self._most = max(2, round(takeover_s / interval_s))
        self._last: tuple[object, ...] | None = None
        self._same = 0

    def look(self) -> float:
        """End the session of a process that has not shown itself for too long; in how many seconds to look again."""
        with wrap_errors():
            seen = self._conn.execute(QUERIES["look_for_pulse"], self._facts).fetchone()
            self._same = self._same + 1 if seen is not None and seen == self._last else 0
            self._last = seen
            if seen is None or self._same < self._most:
                return self._interval_s
            log.warning("taking over", source=self._name, reason="the replicator that has the lock does not show itself")
            self._conn.execute("SELECT pg_terminate_backend(%s)", (seen[0],))
            self._same = 0
            return _FREED_S
