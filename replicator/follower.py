"""What the replicator's loop holds while it follows a source, and how it takes each item of the stream.

Owns the position that is applied, the last _seq, and when both are saved. Rows are written in apply.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from contextlib import nullcontext

import structlog

from replicator.apply import Applier
from replicator.changes import Batch
from replicator.checkpoint import write_head
from replicator.clock import SourceClock
from replicator.copies import Copies
from replicator.ddl import follow_statement
from replicator.items import Item, Statement
from replicator.lineage import is_whole_head
from replicator.locks import LockWait, MirrorLocked
from replicator.mirror import QUERIES, MirrorTable
from replicator.position import Position
from replicator.prefetch import Prefetch
from replicator.schema import Registry
from replicator.snapshot import copy_tables
from replicator.source import Source
from replicator.stream import Stream
from replicator.watch import Watch
from replicator.write import instant
from warehouse.db import Connection, wrap_errors
from warehouse.service import Progress, Stop
from warehouse.settings import Settings

log = structlog.get_logger()

REPORT_S = 10
# So long after a batch the stream counts as busy.
BUSY_S = 0.5
COPIED = frozenset({"Snapshotting", "Synced", "ResyncRequired"})
HEAD_S = 10


class Follower:
    """What the loop holds: where it stands, and how each kind of item is dealt with."""

    def __init__(
        self, source: Source, conn: Connection, registry: Registry, applier: Applier, position: Position, seq: int, stop: Stop,
        progress: Progress, settings: Settings,
    ) -> None:  # fmt: skip
        self.source, self.conn, self.registry, self.applier = source, conn, registry, applier
        self.position, self.seq, self.stop, self.progress = position, seq, stop, progress
        self.watch = Watch()
        self.saved = True
        self._head, self._head_at = ("", ""), 0.0
        self._commit_us: int | None = None
        self._heard_noted_at = self._reported_at = 0.0
        self._rows = self._transactions = 0
        self.wake = threading.Event()
        self.copies = Copies(source, settings, registry, applier, self.wake)
        self._busy_until = self._lag_ms = 0.0
        self.clock = SourceClock()
        self._stream: Stream | None = None
        self._ahead: Prefetch | None = None
        self._patience_s = settings.replicator.lock_patience_s
        self._waiting: LockWait | None = None

    def poll(self, ahead: Prefetch, timeout_s: float) -> Item | None:
        """The next item; while a mirror is locked that has to be altered, the statement that waits for it, now and then."""
        self.progress.note()
        if self._waiting is None:
            return ahead.poll(timeout_s)
        left = self._waiting.next_at - time.monotonic()
        if left > 0:
            self.wake.wait(min(left, timeout_s) or 0.001)
            self.wake.clear()
            return None
        return self._waiting.statement

    def follow(self, stream: Stream, ahead: Prefetch) -> None:
        """From here on items come from this stream, whose plans are numbered anew."""
        self._stream, self._ahead = stream, ahead
        self.source.liveness.stream = stream
        for table in self.registry.by_number:
            table.first_plan = 0

    def take(self, item: Item, *, save: bool) -> None:
        """Apply a batch or a statement; after a tick or a batch without changes, save the position where it is time."""
        if isinstance(item, Batch):
            if len(item.changes) or item.xa or self.applier.is_open:
                self._apply(item.after(self.seq))
            else:
                # Where other tables are busy no tick comes, and the source is heard from all the same.
                self.position, self._commit_us, self.saved = item.position, item.commit_us, False
                self._note_heard(item.commit_us)
        elif isinstance(item, Statement):
            self._take_statement(item)
        elif not self.applier.is_open:
            self._note_heard(None)
            if item.position != self.position:
                # Without GTIDs only file and offset tell that the source moved on, to another file for instance.
                self.position, self.saved = item.position, False
        if self.applier.is_open:
            return
        if self.registry.look_at is not None and self.position.covers(self.registry.look_at):
            self.registry.look_at = None
            self.registry.follow_selection(self.conn)
        self.watch.moved(self.position)
        dirty = any(table.dirty or self._is_whole(table) for table in self.registry.by_number)
        if (save and not self.saved) or dirty:
            self.save()
        self.copy_requested()
        self.copies.note(self.seq, self.position)

    def copy_on(self) -> None:
        """Write some of what is copied beside the stream."""
        if not self.copies.is_active or self.applier.is_open:
            return
        is_busy = time.monotonic() < self._busy_until
        self.seq = self.copies.write_next(self.seq, is_busy=is_busy, lag_ms=self._lag_ms if is_busy else 0.0)
        self.progress.note()
        if any(table.dirty or self._is_whole(table) for table in self.registry.by_number):
            self.save()
            self.copy_requested()

    def is_caught_up(self, target: Position) -> bool:
        """Whether everything up to a position is applied, and every copy that is due is whole."""
        if self.copies.is_active or self.applier.is_open or self.registry.look_at or not self.position.covers(target):
            return False
        return not any(table.resync or table.consistent_from for table in self.registry.by_number if table.state in COPIED)

    def _apply(self, batch: Batch) -> None:
        started = time.monotonic()
        with self.watch.applying(batch, lambda: self.applier.is_open):
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
        self._busy_until = time.monotonic() + BUSY_S
        self._lag_ms = self.clock.lag_ms(batch.commit_us)
        batch.release()
        if started - self._reported_at > REPORT_S:
            lag_ms = round(self._lag_ms, 1)
            log.info("streaming", rows=self._rows, transactions=self._transactions, lag_ms=lag_ms, position=str(batch.position))
            self._reported_at, self._rows, self._transactions = started, 0, 0

    def _is_whole(self, table: MirrorTable) -> bool:
        return table.consistent_from is not None and self.position.covers(table.consistent_from)

    def _note_heard(self, commit_us: int | None) -> None:
        """Tell the warehouse once a second that the source is alive while no rows come.

        Args:
            commit_us: of the newest transaction, none of whose rows are wanted; None: nothing at all is missing.
        """
        now = time.monotonic()
        if self._stream is None or now - self._heard_noted_at < 1:
            return
        self._heard_noted_at = now
        self.progress.note()
        with wrap_errors():
            facts = {
                "source": self.registry.name, "silent_s": now - self._stream.heard_at,
                "committed_at": None if commit_us is None else instant(commit_us),
            }  # fmt: skip
            self.conn.execute(QUERIES["note_heard"], facts)

    def measure_clock(self) -> None:
        """Compare the source's clock with the warehouse's once in a while, where the source has just been heard from."""
        heard_at = 0.0 if self._stream is None else self._stream.heard_at
        # One that has fallen silent would not answer, and the stream finds that out sooner.
        if self.clock.is_due and time.monotonic() - heard_at < self.source.settings.heartbeat_s:
            self.clock.measure(self.source, self.conn, self.registry.name)

    def note_head(self, now: float) -> None:
        """Remember the head of the binlog file at hand, once it is whole; only then a reset to the same numbers shows."""
        file, (known, head) = self.position.file, self._head
        is_known = file == known and (is_whole_head(head) or now < self._head_at + HEAD_S)
        if is_known or not self.saved or self.applier.is_open:
            return
        found = write_head(self.conn, self.registry.name, self.source, self.applier.identity, file)
        self._head, self._head_at = (file, found or ""), now

    def save(self) -> None:
        """Commit the position, if it or a table's state is not yet committed."""
        dirty = any(table.dirty or self._is_whole(table) for table in self.registry.by_number)
        if self.saved and not dirty:
            return
        self.applier.save_position(self.position, self.seq, self._commit_us)
        self.saved = True
        self.progress.note()

    def copy_requested(self, requests: Collection[str] = ()) -> None:
        """Begin the copies that are due: beside the stream where that can be, else at once, and the stream waits.

        What the stream decoded before was committed before the copy began, so a copied table may miss it; what it decodes
        after is decoded for the tables as they are then. A table that was Synced until now, and has the same columns still,
        misses nothing: rows outside of a range that is copied need it, and so do kept columns where a key moves.

        Args:
            requests: tables of which somebody asked for a copy.
        """
        asked = [table for table in self.registry.by_number if table.name in requests and self.registry.matches(table.name)]
        if not asked and not any(self._is_due(table) for table in self.registry.by_number):
            return
        with nullcontext() if self._ahead is None else self._ahead.hold():
            followed = {t.number: (t.columns, t.key) for t in asked if t.state == "Synced" and not t.resync}
            for table in asked:
                # not earlier: the stream's thread passes such a table over
                table.resync = True
            self.registry.read_foreign_keys()
            with wrap_errors():
                self.registry.refuse_taken(self.conn)
            groups = self.registry.families([table for table in self.registry.by_number if self._is_due(table)])
            for tables in groups:
                if len(tables) > 1 or tables[0].foreign_keys or not self.copies.begin(tables[0], self.seq, self.position):
                    for table in tables:
                        self.copies.cancel(table)
                    self.seq = copy_tables(self.conn, self.source, self.registry, tables, self.seq, self.stop)
                self.progress.note()
            wanted = [table for tables in groups for table in tables]
            for table in wanted:
                table.copy_after = None
            if self._stream is not None:
                first_plan = self._stream.renew_choices()
                for table in wanted:
                    if followed.get(table.number) != (table.columns, table.key):
                        table.first_plan = first_plan
                place, is_inside = self._stream.decoded_to()
                self.copies.wait_for(wanted, place, is_inside=is_inside)
        self.save()

    def _is_due(self, table: MirrorTable) -> bool:
        """Whether a table is to be copied now.

        Where the source's table is another one than the stream's, that is once the stream is past what made it so: rows
        from before would not fit the copy, and make it begin again.
        """
        if time.monotonic() < table.not_before:
            return False
        if not table.resync or table.state != "ResyncRequired" or self._stream is None:
            return table.resync
        if table.copy_after is None:
            table.copy_after = self.source.position()
        return self.position.covers(table.copy_after)

    def _take_statement(self, statement: Statement) -> None:
        waiting, refusal = self._waiting, None
        if waiting is not None and waiting.waited_s > self._patience_s:
            refusal = waiting.refusal
        try:
            followed = follow_statement(statement, self.source, self.registry, self.applier, self.seq, refusal)
        except MirrorLocked as locked:
            self._wait_for_lock(statement, locked)
            return
        self.position, self._commit_us, self.saved = statement.position, statement.commit_us, False
        self._end_wait()
        if followed.seq != self.seq:
            # a TRUNCATE commits the position with the rows that it took away
            self.seq, self.saved = followed.seq, True
        if followed.intents:
            assert self._stream is not None, "statements come from a stream"
            self._stream.renew_choices()

    def _wait_for_lock(self, statement: Statement, locked: MirrorLocked) -> None:
        """Take the statement again later. What is behind it waits, too, of all tables: rows come in the order of commits."""
        is_new = self._waiting is None
        self._waiting = self._waiting or LockWait(statement, locked)
        before = None if is_new else self._waiting.refusal.message
        self._waiting.refuse(locked)
        if locked.message != before:
            self._end_reason(before)
            log.warning("stream waits", table=locked.table.name, reason=locked.message, position=str(statement.position))
            self.registry.set_state(locked.table, locked.table.state, locked.message)
            self._show_reason(locked.message)

    def _end_wait(self) -> None:
        if self._waiting is None:
            return
        log.info("stream goes on", table=self._waiting.refusal.table.name, waited_s=round(self._waiting.waited_s, 1))
        self._end_reason(self._waiting.refusal.message)
        self._show_reason(None)
        self._waiting = None

    def _end_reason(self, message: str | None) -> None:
        for table in self.registry.by_number:
            if message is not None and table.reason == message:
                self.registry.set_state(table, table.state, None)

    def _show_reason(self, reason: str | None) -> None:
        with wrap_errors():
            facts = {"source": self.registry.name, "state": "Streaming", "reason": reason}
            self.conn.execute(QUERIES["set_source_state"], facts)
