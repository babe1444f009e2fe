"""The replicator's loop: lock, preflight, copies, stream; again after every error that may pass.

Owns the order of things. Each item of the stream is taken in follower.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from replicator.apply import Applier
from replicator.check import find_problems, refuse_if_fatal
from replicator.errors import UnsupportedEvent
from replicator.follower import Follower
from replicator.mirror import QUERIES
from replicator.position import Position, parse_gtids
from replicator.prefetch import Prefetch
from replicator.prepared import read_prepared
from replicator.quarantine import hold_event, read_skipped, retry_rows
from replicator.schema import Registry
from replicator.snapshot import Interrupted
from replicator.source import Source
from replicator.stream import Stream
from warehouse.db import Connection, connect, take_lock, wrap_errors
from warehouse.errors import AlreadyRunning, OperatorNeeded, SchemaOutdated
from warehouse.migrate import require_migrations
from warehouse.service import Progress, Stop
from warehouse.settings import Settings

log = structlog.get_logger()

Outcome = Literal["done", "again"]

REQUESTS_S = 0.5


@dataclass
class _Checkpoint:
    position: Position
    seq: int
    identity: str


class Replication:
    """One run of the replicator for one source.

    Args:
        settings: all settings.
        stop: finish the batch at hand, then return.
        until_caught_up: return once everything that was committed when the stream began is applied.
    """

    def __init__(self, settings: Settings, stop: Stop, *, until_caught_up: bool = False) -> None:
        self.settings, self.stop, self.until_caught_up = settings, stop, until_caught_up
        self.name = settings.source.name

    def run(self, progress: Progress) -> None:
        """Work until stopped, caught up, or an error ends it.

        Raises:
            TailraceError: any; whether the same may be tried again is said by its class.
        """
        source = Source(self.settings.source)
        conn = connect(self.settings.warehouse, f"replicator {self.name}")
        try:
            with wrap_errors():
                require_migrations(conn)
                if self._wait_for_lock(conn, progress):
                    while self._run(source, conn, progress) == "again":
                        log.info("resumed", source=self.name)
        except SchemaOutdated:
            # There may be no table to note it in.
            raise
        except OperatorNeeded as error:
            self._note_failure(error)
            raise
        finally:
            source.close()
            conn.close()

    def _wait_for_lock(self, conn: Connection, progress: Progress) -> bool:
        """Become the one that writes; until then this process is a standby. False where a stop was asked for first."""
        waiting = False
        while not self.stop.requested:
            try:
                take_lock(conn, f"source {self.name}")
                return True
            except AlreadyRunning:
                if not waiting:
                    log.info("standby", source=self.name, reason="another replicator has the source's lock")
                waiting = True
                progress.note()
                self.stop.wait(REQUESTS_S)
        return False

    def _note_failure(self, error: OperatorNeeded) -> None:
        """Show in warehouse.status why the source stands still, over a fresh connection."""
        with connect(self.settings.warehouse, "replicator") as conn, wrap_errors():
            conn.execute(QUERIES["set_source_state"], self._state("Failed", str(error)))
            if isinstance(error, UnsupportedEvent):
                place, kind = str(error.context.get("position")), error.context.get("event_type")
                hold_event(conn, self.name, place, kind, error.message, error.raw)

    def _state(self, state: str, reason: str | None = None) -> dict[str, Any]:
        return {"source": self.name, "state": state, "reason": reason}

    def _run(self, source: Source, conn: Connection, progress: Progress) -> Outcome:
        # First, so that whatever is in the way shows in warehouse.status.
        self._register(source, conn)
        refuse_if_fatal(find_problems(source, conn, self.settings))
        checkpoint = self._load_checkpoint(source, conn)
        registry = Registry(source, self.name, self.settings.source.tables)
        registry.load(conn)
        applier = Applier(conn, registry, checkpoint.identity)
        target = source.position() if self.until_caught_up else None
        state = Follower(source, conn, registry, applier, checkpoint.position, checkpoint.seq, self.stop, progress)
        try:
            if self._read_requests(conn)[0]:
                # Asked for before the start, perhaps of another run.
                outcome = self._pause(state)
                if outcome == "again":
                    return outcome
            if any(table.resync for table in registry.by_number):
                with wrap_errors():
                    conn.execute(QUERIES["set_source_state"], self._state("Snapshotting"))
            state.copy_requested()
            if target is not None:
                # What was copied is only whole once the stream has passed the end of the copy.
                target = source.position()
            outcome = self._follow(state, target)
        except Interrupted:
            log.info("stopped while copying", source=self.name)
            outcome = "done"
        if outcome == "done":
            with wrap_errors():
                conn.execute(QUERIES["set_source_state"], self._state("Stopped"))
        return outcome

    def _register(self, source: Source, conn: Connection) -> None:
        variables = source.variables()
        expire_s = int(float(variables.get("binlog_expire_logs_seconds", "0") or 0))
        facts = {
            "source": self.name, "flavor": source.flavor, "version": source.version, "expire_s": expire_s or None,
            "heartbeat_s": self.settings.source.heartbeat_s,
        }  # fmt: skip
        with wrap_errors():
            conn.execute(QUERIES["register_source"], facts)

    def _load_checkpoint(self, source: Source, conn: Connection) -> _Checkpoint:
        """The position to go on from; on the first run the source's current one.

        Raises:
            PositionLost: the source cannot go on from the saved one.
        """
        identity = source.identity()
        with wrap_errors():
            row = conn.execute(QUERIES["read_checkpoint"], {"source": self.name}).fetchone()
        if row is None:
            position = source.position()
            gtid_set = None if position.gtids is None else str(position.gtids)
            facts = {
                "source": self.name,
                "identity": identity,
                "gtid_set": gtid_set,
                "file": position.file,
                "pos": position.pos,
            }
            with wrap_errors():
                conn.execute(QUERIES["create_checkpoint"], facts)
            log.info("first run", source=self.name, position=str(position))
            return _Checkpoint(position, 0, identity)
        saved_identity, gtid_set, file, pos, seq = row
        gtids = None if gtid_set is None else parse_gtids(gtid_set, source.flavor)
        position = Position(file, int(pos), gtids)
        source.check_position(position, saved_identity)
        return _Checkpoint(position, int(seq), identity)

    def _follow(self, work: Follower, target: Position | None) -> Outcome:
        """Apply what the stream brings; "again" where it must be opened anew after a pause."""
        prepared, skipped = read_prepared(work.conn, self.name), read_skipped(work.conn, self.name)
        stream = Stream(
            work.source, self.settings.replicator, work.position, work.seq, work.registry, prepared, skipped
        )  # fmt: skip
        ahead = Prefetch(stream)
        work.follow(stream, ahead)
        log.info("streaming", source=self.name, position=str(work.position))
        try:
            # Said only now, because opening the dump can fail.
            with wrap_errors():
                work.conn.execute(QUERIES["set_source_state"], self._state("Streaming"))
            saved_at = asked_at = time.monotonic()
            for item in ahead.items():
                now = time.monotonic()
                work.take(item, save=now - saved_at > self.settings.replicator.checkpoint_idle_s or target is not None)
                if work.saved:
                    saved_at = now
                if self.stop.requested:
                    break
                if target is not None and work.position.covers(target):
                    break
                if now - asked_at > REQUESTS_S and not work.applier.is_open:
                    asked_at = now
                    outcome = self._heed_requests(work)
                    if outcome == "again":
                        return "again"
                    if outcome == "done":
                        break
            work.applier.abandon()
            work.save()
            return "done"
        finally:
            ahead.close()

    def _heed_requests(self, work: Follower) -> Outcome | None:
        """Look for what was asked in SQL: a pause, a copy; None where the stream just goes on."""
        pause, names = self._read_requests(work.conn)
        for name in names:
            table = work.registry.tables.get(name)
            if table is not None:
                table.resync = True
        work.seq = retry_rows(work.conn, work.registry, work.seq)
        work.copy_requested()
        return self._pause(work) if pause else None

    def _read_requests(self, conn: Connection) -> tuple[bool, list[str]]:
        """Whether a pause is asked for, and of which tables a copy."""
        with wrap_errors():
            row = conn.execute(QUERIES["read_requests"], {"source": self.name}).fetchone()
        if row is None:
            raise OperatorNeeded(f"source {self.name} was removed from warehouse.sources while it was replicated")
        return bool(row[0]), list(row[1])

    def _pause(self, work: Follower) -> Outcome:
        """Hold still until somebody resumes; the source has given up on the stream by then."""
        work.save()
        with wrap_errors():
            work.conn.execute(QUERIES["set_source_state"], self._state("Paused", "asked for by warehouse.pause"))
        log.info("paused", source=self.name)
        paused = True
        while paused and not self.stop.wait(REQUESTS_S):
            work.progress.note()
            with wrap_errors():
                row = work.conn.execute(QUERIES["read_requests"], {"source": self.name}).fetchone()
            paused = bool(row and row[0])
        return "done" if paused else "again"
