"""The replicator's loop: lock, preflight, copies, stream; again after every error that may pass.

Owns the order of things. Rows are decoded in stream.py, written in apply.py, copied in snapshot.py.
"""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from replicator.apply import Applier
from replicator.changes import Batch
from replicator.check import find_problems, refuse_if_fatal
from replicator.errors import SchemaChanged, UnsupportedEvent
from replicator.items import Item, Statement
from replicator.mirror import LIVE, QUERIES, MirrorTable
from replicator.position import Position, parse_gtids
from replicator.prefetch import Prefetch
from replicator.prepared import read_prepared
from replicator.quarantine import hold_event, read_skipped, retry_rows
from replicator.schema import Registry
from replicator.snapshot import Interrupted, copy_tables
from replicator.source import Source
from replicator.statements import Intent, parse_intents
from replicator.stream import Stream
from warehouse.db import Connection, connect, take_lock, wrap_errors
from warehouse.errors import AlreadyRunning, OperatorNeeded, SchemaOutdated
from warehouse.migrate import require_migrations
from warehouse.service import Progress, Stop
from warehouse.settings import Settings

log = structlog.get_logger()

Outcome = Literal["done", "again"]

REQUESTS_S = 0.5
_FOREIGN_KEY = re.compile("foreign|constraint|references", re.IGNORECASE)
REPORT_S = 10


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
        state = _Work(source, conn, registry, applier, checkpoint.position, checkpoint.seq, self.stop, progress)
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

    def _follow(self, work: _Work, target: Position | None) -> Outcome:
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

    def _heed_requests(self, work: _Work) -> Outcome | None:
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

    def _pause(self, work: _Work) -> Outcome:
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


class _Work:
    """What the loop holds: where it stands, and how each kind of item is dealt with."""

    def __init__(
        self, source: Source, conn: Connection, registry: Registry, applier: Applier, position: Position, seq: int, stop: Stop,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.source, self.conn, self.registry, self.applier = source, conn, registry, applier
        self.position, self.seq, self.stop, self.progress = position, seq, stop, progress
        self.saved = True
        self._commit_us: int | None = None
        self._heard_noted_at = self._reported_at = 0.0
        self._rows = self._transactions = 0
        self._stream: Stream | None = None
        self._ahead: Prefetch | None = None

    def follow(self, stream: Stream, ahead: Prefetch) -> None:
        """From here on items come from this stream, whose plans are numbered anew."""
        self._stream, self._ahead = stream, ahead
        for table in self.registry.by_number:
            table.first_plan = 0

    def take(self, item: Item, *, save: bool) -> None:
        """Apply a batch or a statement; after a tick or a batch without changes, save the position where it is time."""
        if isinstance(item, Batch):
            if len(item.changes) or item.xa or self.applier.is_open:
                self._apply(item.after(self.seq))
            else:
                self.position, self._commit_us, self.saved = item.position, item.commit_us, False
        elif isinstance(item, Statement):
            self._take_statement(item)
        elif not self.applier.is_open:
            self._note_heard()
            if item.position != self.position:
                # Without GTIDs only file and offset tell that the source moved on, to another file for instance.
                self.position, self.saved = item.position, False
        if self.applier.is_open:
            return
        dirty = any(table.dirty or self._is_whole(table) for table in self.registry.by_number)
        if (save and not self.saved) or dirty:
            self.save()
        self.copy_requested()

    def _apply(self, batch: Batch) -> None:
        started = time.monotonic()
        self.seq = self.applier.apply(batch)
        self.position = batch.position
        if batch.whole:
            self.saved, self._commit_us = True, None
        self.progress.note()
        log.debug(
            "applied",
            rows=len(batch.changes),
            transactions=len(batch.transactions),
            position=str(batch.position),
            duration_ms=round(1000 * (time.monotonic() - started), 1),
        )
        self._rows += len(batch.changes)
        self._transactions += len(batch.transactions)
        batch.release()
        if started - self._reported_at > REPORT_S:
            lag_ms = round(1000 * time.time() - batch.commit_us / 1000, 1)
            log.info("streaming", rows=self._rows, transactions=self._transactions, lag_ms=lag_ms, position=str(batch.position))
            self._reported_at, self._rows, self._transactions = started, 0, 0

    def _is_whole(self, table: MirrorTable) -> bool:
        return table.consistent_from is not None and self.position.covers(table.consistent_from)

    def _note_heard(self) -> None:
        """Tell the warehouse that the source is alive and nothing is missing, once a second while it is idle."""
        now = time.monotonic()
        if self._stream is None or now - self._heard_noted_at < 1:
            return
        self._heard_noted_at = now
        self.progress.note()
        with wrap_errors():
            self.conn.execute(QUERIES["note_heard"], {"source": self.registry.name, "silent_s": now - self._stream.heard_at})

    def save(self) -> None:
        """Commit the position, if it or a table's state is not yet committed."""
        dirty = any(table.dirty or self._is_whole(table) for table in self.registry.by_number)
        if self.saved and not dirty:
            return
        self.applier.save_position(self.position, self.seq, self._commit_us)
        self.saved = True
        self.progress.note()

    def copy_requested(self) -> None:
        """Copy the tables for which that was asked, one after another; the stream waits meanwhile.

        What the stream decoded before was committed before the copy began, so a copied table may miss it; what it decodes
        after is decoded for the tables as they are then.
        """
        if not any(table.resync for table in self.registry.by_number):
            return
        with nullcontext() if self._ahead is None else self._ahead.hold():
            self.registry.read_foreign_keys()
            groups = self.registry.families([table for table in self.registry.by_number if table.resync])
            for tables in groups:
                self.seq = copy_tables(self.conn, self.source, self.registry, tables, self.seq, self.stop)
                self.progress.note()
            wanted = [table for tables in groups for table in tables]
            if self._stream is not None:
                first_plan = self._stream.renew_choices()
                for table in wanted:
                    table.first_plan = first_plan
        self.save()

    def _take_statement(self, statement: Statement) -> None:
        intents = parse_intents(statement.query.text, statement.query.database)
        self.position, self._commit_us, self.saved = statement.position, statement.commit_us, False
        for intent in intents:
            self._carry_out(intent, statement)
        if intents:
            may_alter = _FOREIGN_KEY.search(statement.query.text)
            self.registry.read_foreign_keys({i.table for i in intents if i.action == "alter" and may_alter})
            log.info("statement", intents=[f"{i.action} {i.table}" for i in intents], position=str(statement.position))
            assert self._stream is not None, "statements come from a stream"
            self._stream.renew_choices()

    def _carry_out(self, intent: Intent, statement: Statement) -> None:
        registry = self.registry
        table = registry.tables.get(intent.table)
        if intent.action == "create" and registry.matches(intent.table):
            if table is None:
                registry.discover(intent.table, is_new=True)
            elif table.state in LIVE:
                # CREATE TABLE IF NOT EXISTS is logged for a table that is there, too.
                self._compare(table, rows_changed=False)
            else:
                registry.require_resync(table, SchemaChanged("the source created the table anew"))
        elif intent.action == "drop database":
            for name, each in registry.tables.items():
                if name.partition(".")[0] == intent.table:
                    registry.set_state(each, "DroppedSource", "the source dropped the database")
        elif intent.action == "drop" and table is not None:
            registry.set_state(table, "DroppedSource", "the source dropped the table")
        elif intent.action == "rename":
            if table is not None:
                registry.set_state(table, "DroppedSource", f"the source renamed the table to {intent.new_name}")
            if registry.matches(intent.new_name):
                target = registry.tables.get(intent.new_name)
                if target is None:
                    registry.discover(intent.new_name)
                else:
                    registry.require_resync(target, SchemaChanged(f"the source renamed {intent.table} to this name"))
        elif intent.action == "truncate" and table is not None and table.state in LIVE:
            if table.exact and table.consistent_from is not None and table.consistent_from.covers(statement.position):
                return
            self.seq = self.applier.empty(table, statement.position, self.seq, statement.commit_us)
            self.saved = True
        elif intent.action in ("alter", "alter rows") and table is not None:
            self._compare(table, rows_changed=intent.action == "alter rows")

    def _compare(self, table: MirrorTable, *, rows_changed: bool) -> None:
        """An ALTER may change values without a row event: copy the table where its columns or its key are other than before.

        The state is committed with the position behind the statement, so that a crash before the copy does not lose it.
        """
        found = self.source.describe(table.name)
        if found is None:
            return
        before = [(column["name"], column["source_type"]) for column in table.columns]
        columns = [(column.name, column.source_type) for column in found.columns]
        if rows_changed or before != columns or table.key != [found.columns[i].name for i in found.key]:
            self.registry.require_resync(table, SchemaChanged("the source's table was altered"))
