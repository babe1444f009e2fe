"""Copies that run beside the stream: begun, written slice by slice between its batches, and ended.

Owns the writer's half, on the connection that holds the lock; reading is in copy_reader.py, what is kept in copy_plan.py.
Why the outcome is exact is in docs/architecture.md, "Copies without locks".
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace

import psycopg
import structlog

from replicator.apply import ALTERED, REFUSALS, Applier
from replicator.copy_ends import begin_copy, end_copy, may_read_as_of, may_sweep
from replicator.copy_pace import Pace
from replicator.copy_plan import TableCopy, read_copies
from replicator.copy_reader import Anchor, Found, Left, Pages, RangeDone, RangeFailed, Readers, Slice
from replicator.copy_report import CopyReport
from replicator.copy_write import find_refused_rows, write_slices
from replicator.crash import reach
from replicator.errors import LockRefused, SchemaChanged, SourceUnavailable, TableProblem
from replicator.mirror import MirrorTable
from replicator.owed import is_owed
from replicator.position import Position
from replicator.quarantine import ROW_REFUSALS
from replicator.read_view import ReadView
from replicator.schema import Registry
from replicator.snapshot import CopyRefused, describe_again, drop_request
from replicator.source import Source
from replicator.sweep import sweep
from replicator.write import MirrorDiverged
from warehouse.db import wrap_errors
from warehouse.settings import Settings

log = structlog.get_logger()

_FAILURES = 5

Place = tuple[int, int]


class Copies:
    """The copies of one source.

    Args:
        source: where the stream is read, too. settings: all. registry, applier: the stream's.
        wake: set whenever there is something to write.
    """

    def __init__(self, source: Source, settings: Settings, registry: Registry, applier: Applier, wake: threading.Event) -> None:
        self._source, self._settings, self._registry, self._applier = source, settings, registry, applier
        self._conn, self._wake = applier.conn, wake
        self._copies: dict[str, TableCopy] = {}
        self._waiting: list[TableCopy] = []
        self._places: dict[str, tuple[Place, bool] | None] = {}
        self._held: Found | None = None
        self._pages: Pages | None = None
        self._readers: Readers | None = None
        self._report = CopyReport(self._conn, registry.name)
        self._pace = Pace(settings.replicator.snapshot_max_lag_ms)
        self._position: Position | None = None

    @property
    def is_active(self) -> bool:
        """True while anything is being copied."""
        return bool(self._copies)

    def wait_s(self, longest_s: float) -> float:
        """How long the stream may be waited for until there is something to write, or a copy to be ended; seconds."""
        if self._held is None and (self._readers is None or self._readers.found.empty()) and self._find_read() is None:
            return longest_s
        return min(self._pace.rest_s(time.monotonic()), longest_s)

    def runs(self, table: MirrorTable) -> bool:
        """Whether a table is being copied."""
        return table.name in self._copies

    def close(self) -> None:
        """End the threads; what is written stays, and the next run goes on from there."""
        for copy in self._waiting:
            if copy.view is not None:
                copy.view.close()
        for copy in self._copies.values():
            copy.is_cancelled = True
        if self._readers is not None:
            self._readers.close()
        self._readers, self._held = None, None
        self._report.close()

    # ------------------------------------------------------------------------------------------------ beginning
    def resume(self) -> None:
        """Take up what an earlier run has begun; other tables whose copy came to no end are to be copied afresh."""
        with wrap_errors():
            found = read_copies(self._conn, self._source, self._registry.name, self._registry.tables)
        for copy in found:
            table = copy.table
            if table.state != "Snapshotting" or table.consistent_from is not None:
                table.touched = None
                continue
            table.resync, table.exact = False, False
            if all(part.done for part in copy.ranges):
                copy.ranges[0].done = False
            self._add(copy)
            log.info("copy goes on", table=table.name, rows=copy.rows_done, of=copy.rows_estimate)

    def begin(self, table: MirrorTable, seq: int, position: Position) -> bool:
        """Begin to copy a table beside the stream and commit that; False where that cannot be, for want of a key.

        A table that cannot be copied at all gets a state that says why.
        """
        before = self._source.position()
        found = describe_again(self._conn, self._source, self._registry, table)
        if found is None:
            return True
        if not found.key and not may_read_as_of(self._conn, self._source, table):
            return False
        self.cancel(table)
        view = None
        try:
            view = None if found.key else ReadView(self._source, [table.name])
            if view is not None and self._source.describe(table.name) != found:
                raise SourceUnavailable(f"{table.name} was altered while its copy began")
            readers = self._settings.replicator.snapshot_readers
            copy = begin_copy(self._conn, self._source, self._registry, table, found, before, seq, position, readers, view)
        except LockRefused as refused:
            drop_request(self._conn, self._registry, table)
            self._registry.reject(table.number, refused)
            return True
        except BaseException:
            if view is not None:
                view.close()
            raise
        if copy is not None:
            self._add(copy)
        elif view is not None:
            view.close()
        return True

    def _add(self, copy: TableCopy) -> None:
        self._copies[copy.table.name] = copy
        self._waiting.append(copy)
        self._places[copy.table.name] = None

    def wait_for(self, tables: list[MirrorTable], place: Place, *, is_inside: bool) -> None:
        """Read these tables only once the stream is here: what it decoded before passes them over.

        Args:
            place: how far the stream has been decoded. is_inside: that is in the middle of a transaction.
        """
        for table in tables:
            if table.name in self._copies:
                self._places[table.name] = (place, is_inside)

    def cancel(self, table: MirrorTable) -> None:
        """Write nothing more of a copy."""
        copy = self._copies.pop(table.name, None)
        if copy is not None and not self._copies:
            self._report.close()
        if copy is not None:
            copy.is_cancelled = True
            if copy in self._waiting and copy.view is not None:
                # no reader has it yet
                copy.view.close()
            self._waiting = [each for each in self._waiting if each is not copy]
            table.touched = table.read_as_of = table.owed = None

    def note(self, seq: int, position: Position) -> None:
        """The stream is applied and committed up to here."""
        self._position = position
        for copy in list(self._copies.values()):
            if copy.table.resync or copy.table.state != "Snapshotting":
                self.cancel(copy.table)
        if not self._copies:
            return
        anchor = Anchor(seq, position, time.monotonic())
        if self._pages is None:
            self._pages = Pages(anchor)
        self._pages.note(anchor)
        oldest = self._pages.oldest()
        for copy in self._copies.values():
            if copy.table.touched is not None:
                copy.table.touched.forget(oldest)
        self._start_waiting(position)

    def _start_waiting(self, position: Position) -> None:
        assert self._pages is not None
        ready = [copy for copy in self._waiting if self._is_past(self._places[copy.table.name], position)]
        if not ready:
            return
        if self._readers is None:
            self._readers = Readers(self._source, self._settings, self._pages, self._wake)
        self._waiting = [copy for copy in self._waiting if copy not in ready]
        for copy in ready:
            for part in copy.ranges:
                if not part.done:
                    self._readers.read(copy, part)

    @staticmethod
    def _is_past(place: tuple[Place, bool] | None, position: Position) -> bool:
        if place is None:
            return True
        there, is_inside = place
        return position.place > there if is_inside else position.place >= there

    # ------------------------------------------------------------------------------------------------ writing
    def write_next(self, seq: int, *, is_busy: bool, lag_ms: float) -> int:
        """Write some of what was read, or go on ending a copy of which all is written; the last _seq given out.

        Args:
            is_busy: the stream brings changes and must not wait long. lag_ms: how far it is behind.
        """
        now = time.monotonic()
        if not self._pace.may_write(now, lag_ms):
            return seq
        self._report.show(self._copies.values(), self._waits_for)
        most_rows = self._pace.most_rows(is_busy=is_busy)
        if (read := self._find_read()) is not None:
            seq = self._end_more(read, seq, most_rows)
        elif slices := self._take_slices(most_rows):
            seq = self._write(slices, seq, is_busy=is_busy)
            reach("between_slices")
        else:
            self._take_note()
        self._pace.note_write(now, time.monotonic(), is_busy=is_busy)
        return seq

    @property
    def _waits_for(self) -> str | None:
        return None if self._readers is None else self._readers.throttle.waits_for

    def _take_note(self) -> None:
        """Deal with what a reader says that is no row."""
        item, self._held = self._held, None
        if item is None or item.copy.is_cancelled:
            return
        if isinstance(item, RangeDone):
            item.range.done = True
            self._report.note(item.copy, self._waits_for)
        elif isinstance(item, Left):
            item.copy.left, item.copy.is_sought = item.rows, False
        elif isinstance(item, RangeFailed):
            self._deal_with(item)

    def _next(self) -> Found | None:
        if self._held is None and self._readers is not None:
            try:
                self._held = self._readers.found.get_nowait()
            except queue.Empty:
                return None
        return self._held

    def _take_slices(self, most_rows: int) -> list[Slice]:
        """Slices of one table with so many rows at most; of a longer one a part."""
        slices: list[Slice] = []
        rows = 0
        while isinstance(item := self._next(), Slice):
            if item.copy.is_cancelled:
                self._end_page(item)
                self._held = None
                continue
            if slices and item.copy is not slices[0].copy:
                break
            if rows + item.block.rows > most_rows:
                if rows < most_rows:
                    head, tail = item.block.cut(most_rows - rows)
                    slices.append(replace(item, block=head, is_last=False))
                    self._held = replace(item, block=tail)
                break
            rows += item.block.rows
            slices.append(item)
            self._held = None
        return slices

    def _end_page(self, item: Slice) -> None:
        if item.is_last and self._pages is not None:
            self._pages.end(item.page)

    def _write(self, slices: list[Slice], seq: int, *, is_busy: bool) -> int:
        """Commit slices of one copy; a table that does not take them gets a state that says so."""
        started = time.monotonic()
        copy, rows = slices[0].copy, sum(each.block.rows for each in slices)
        writer = self._applier.writer
        try:
            with self._registry.lock, wrap_errors(table=copy.table.name):
                refused: dict[int, str] = {}
                for attempt in (1, 2, 3):
                    writer.begin()
                    try:
                        with self._conn.transaction():
                            last = write_slices(writer, copy, slices, seq, refused)
                            reach("copy")
                        break
                    except ROW_REFUSALS:
                        writer.forget()
                        refused = refused or find_refused_rows(writer, copy, slices)
                        if not refused or attempt == 3:
                            raise
                    except psycopg.errors.UniqueViolation:
                        writer.forget()
                        if copy.is_filled or attempt == 3:
                            raise
                        # somebody wrote into the mirror
                        copy.is_filled = True
        except REFUSALS as error:
            writer.forget()
            hint = "Mend the cause, then resync the table."
            reason = f"Postgres refused the copy: {str(error).strip().splitlines()[0]}"
            self._give_up(copy, CopyRefused(reason, hint=hint))
            return seq
        except ALTERED as error:
            writer.forget()
            problem = MirrorDiverged(f"the mirror was altered while it was filled: {str(error).strip().splitlines()[0]}")
            self._registry.require_resync(copy.table, problem)
            return seq
        except BaseException:
            writer.forget()
            raise
        copy.failures = 0
        for each in slices:
            self._end_page(each)
        self._pace.note_rows(rows, time.monotonic() - started, is_busy=is_busy)
        return last

    # ------------------------------------------------------------------------------------------------ ending
    def _find_read(self) -> TableCopy | None:
        """A copy of which all is read and written."""
        for copy in self._copies.values():
            is_read = copy.drift is not None and all(part.done for part in copy.ranges)
            if is_read and not copy.is_sought and may_sweep(self._source, copy, self._position):
                return copy
        return None

    def _end_more(self, copy: TableCopy, seq: int, most_rows: int) -> int:
        """Take away rows that the source has no longer, some at a time, as a thread finds them; then end the copy."""
        if copy.is_filled and copy.left is None:
            assert self._readers is not None, "one has read all of it"
            copy.is_sought = True
            self._readers.find_left(copy)
        elif copy.is_filled and copy.left:
            # a deleted row costs more than one that is written
            rows, copy.left = copy.left[: most_rows // 2], copy.left[most_rows // 2 :] or None
            with wrap_errors(table=copy.table.name):
                seq += sweep(self._conn, self._registry.name, copy, seq, rows)
        elif copy.table.owed is not None and is_owed(self._conn, copy.table.owed):
            problem = MirrorDiverged("rows were deleted that are neither in the copy nor came since")
            self._registry.require_resync(copy.table, problem)
        else:
            end_copy(self._conn, self._source, self._registry.name, copy, seq)
            self.cancel(copy.table)
        return seq

    def _give_up(self, copy: TableCopy, problem: TableProblem) -> None:
        self.cancel(copy.table)
        drop_request(self._conn, self._registry, copy.table)
        self._registry.reject(copy.table.number, problem)

    def _deal_with(self, failed: RangeFailed) -> None:
        """Try a range again, copy its table afresh where it is another one now, or give the table up."""
        copy, error = failed.copy, failed.error
        if self._pages is not None:
            self._pages.end(failed.range.page)
        if isinstance(error, SchemaChanged):
            self._registry.require_resync(copy.table, error)
        elif isinstance(error, TableProblem):
            self._give_up(copy, error)
        elif not isinstance(error, SourceUnavailable):
            raise error
        elif copy.view is not None:
            problem = CopyRefused(f"its copy, which is read as of one position, broke off: {error.message}")
            self._registry.require_resync(copy.table, problem)
        elif self._source.describe(copy.table.name) != copy.found:
            self._registry.require_resync(copy.table, SchemaChanged("the source's table was altered while it was copied"))
        elif copy.failures >= _FAILURES or self._readers is None:
            raise error
        else:
            copy.failures += 1
            if copy.order is None:
                # from the beginning, over rows that are there already
                copy.is_filled, copy.rows_done = True, 0
            log.warning("reading goes on after an error", table=copy.table.name, reason=error.message, failures=copy.failures)
            self._readers.read(copy, failed.range)
