"""`verify`: a thread of the replicator that compares tables with the source, when somebody asks and, if wanted, all the time.

Owns the thread, its connections and the order of tables. It never writes to a mirror and holds nothing that the stream waits
for; what is to be repaired is written by the loop. Only the process that holds the source's lock verifies, because only there
is it known what the stream touches.
"""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import structlog

from replicator.errors import TableProblem
from replicator.keyed_check import check_keyed
from replicator.keyless_check import check_keyless
from replicator.mirror import describe_columns
from replicator.mirror_side import QUERIES, MirrorSide, TableChanged
from replicator.schema import Registry
from replicator.source import Source
from replicator.source_side import SourceSide
from replicator.verification import Interrupted, Verification
from replicator.watch import Watch
from warehouse.db import Connection, connect, wrap_errors
from warehouse.errors import TailraceError
from warehouse.settings import Settings

log = structlog.get_logger()

_REQUESTS_S = 0.5
_AGAIN_S = 5.0
_SNAPSHOT_TRIES = 120


class Verifier:
    """The thread. It ends with close(), or by an error that nobody foresaw, which the loop then raises.

    Args:
        settings: all settings. registry: the tables of the source. watch: shared with the loop.
    """

    def __init__(self, settings: Settings, registry: Registry, watch: Watch) -> None:
        self._settings, self._registry, self._watch = settings, registry, watch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tailrace verify", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; the next one goes on with what it was at."""
        self._stop.set()
        self._thread.join()
        self._watch.end()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._serve()
                except TailraceError as error:
                    if not error.retryable:
                        raise
                    log.warning("verification waits", error=str(error), kind=type(error).__name__)
                    self._stop.wait(_AGAIN_S)
        except Interrupted:
            return
        except BaseException as error:  # noqa: BLE001 - it is raised in the loop's thread
            self._watch.fail(error)

    def _serve(self) -> None:
        """Take up what is asked for, one table after another.

        Raises:
            TryLater: a server is away; what was at hand is taken up again.
        """
        name = self._registry.name
        # What the stream is compared with must be the server that it comes from.
        source = self._registry.source.another()
        with closing(source), closing(connect(self._settings.warehouse, f"verify {name}")) as conn, wrap_errors():
            conn.execute(QUERIES["take_up_again"], {"source": name})
            while not self._stop.is_set():
                request = self._next(conn)
                if request is None:
                    self._stop.wait(_REQUESTS_S)
                else:
                    self._verify(conn, source, *request)

    def _next(self, conn: Connection) -> tuple[int, str, bool, float | None, dict[str, Any] | None] | None:
        """What was asked for first; else, where tables are compared all the time, the one whose turn it is."""
        facts: dict[str, Any] = {"source": self._registry.name}
        row: Any = conn.execute(QUERIES["next_request"], facts).fetchone()
        every_s = self._settings.verify.every_s
        if row is None and every_s is not None:
            conn.execute(QUERIES["next_due"], facts | {"every_s": every_s, "repair": self._settings.verify.repair})
            row = conn.execute(QUERIES["next_request"], facts).fetchone()
        return row  # type: ignore[no-any-return]

    def _verify(
        self, conn: Connection, source: Source, number: int, name: str, repair: bool, rows_per_s: float | None,
        kept: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        source_side = None
        try:
            source_side, mirror_side = self._open(conn, source, name)
            settings = self._settings.verify
            work = Verification(
                number, source_side, mirror_side, self._watch, settings, repair=repair,
                rows_per_s=rows_per_s or settings.rows_per_s, stopping=self._stop.is_set, kept=kept,
            )  # fmt: skip
            work.begin()
            (check_keyed if mirror_side.table.key else check_keyless)(work)
            state, reason = work.outcome()
            work.note_progress()
            log.info(
                "table verified", table=name, state=state, rows=work.tally.rows, drift=work.tally.drift,
                repaired=work.tally.repaired, unsettled=work.tally.unsettled, position=str(work.position),
            )  # fmt: skip
        except TableProblem as problem:
            state, reason = "Failed", str(problem).replace("\n", " ")
            log.warning("table not verified", table=name, reason=reason)
        finally:
            self._watch.end()
            if source_side is not None:
                source_side.close()
        conn.execute(QUERIES["finish"], {"id": number, "state": state, "reason": reason})

    def _open(self, conn: Connection, source: Source, name: str) -> tuple[SourceSide, MirrorSide]:
        """Both sides of a table, once it is Synced.

        Raises:
            TableChanged: it is not, or the source has it otherwise than the mirror.
        """
        with self._registry.lock:
            known = self._registry.tables.get(name)
            table = None if known is None else replace(known)
        if known is None or table is None:
            raise TableChanged(f"{name} is not replicated")
        for _ in range(_SNAPSHOT_TRIES):
            if known.state != "Snapshotting" or self._stop.wait(_REQUESTS_S):
                break
        found = source.describe(name)
        with self._registry.lock:
            table = replace(known)
        if found is None or table.columns != describe_columns(found.columns):
            raise TableChanged(f"the source has {name} with other columns than the mirror")
        if table.key != [found.columns[i].name for i in found.key]:
            raise TableChanged(f"the source has {name} with another key than the mirror")

        def pause() -> None:
            if self._stop.is_set():
                raise Interrupted

        source_side = SourceSide(source, found, pause)
        is_shared = source_side.is_ordered_as(table)
        mirror_side = MirrorSide(conn, self._registry.name, table, pause, is_shared=is_shared)
        with mirror_side.snapshot():
            return source_side, mirror_side
