"""Threads that read ranges of source tables ahead of the writer, at the pace that the source allows.

Owns the threads, their connections and the hand-over in blocks. Never writes to the warehouse.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

import structlog
from psycopg import sql

from replicator.copy_plan import CopyRange, TableCopy
from replicator.key_range import Block, RangeReader
from replicator.position import Position
from replicator.source import Source
from replicator.sweep import find_left
from warehouse.db import connect, wrap_errors
from warehouse.settings import Settings

log = structlog.get_logger()

_AHEAD = 12
_ALL = 1 << 62
_FIRST_ROWS, _FEWEST_ROWS = 4096, 256
# A SELECT that takes long keeps the table from being altered and keeps undo history.
_SHORT_S, _LONG_S = 0.5, 2.0
_LOOK_S = 0.05
_LOOK_AT_LOAD_S = 1.0
_RETRY_S = 0.5
_LONGEST_CLOSE_S = 10.0


@dataclass(frozen=True)
class Anchor:
    """What the writer had committed at some moment; noted_at: in time.monotonic() seconds."""

    seq: int
    position: Position
    noted_at: float


@dataclass(frozen=True)
class Slice:
    """A block of a range on its way to the writer.

    Attributes:
        seq: what the stream had brought up to here, the read shows.
        page: the SELECT that it came from; is_last: no more comes from it.
    """

    copy: TableCopy
    range: CopyRange
    block: Block
    seq: int
    page: int
    is_last: bool


@dataclass(frozen=True)
class RangeDone:
    """Nothing more is in the range."""

    copy: TableCopy
    range: CopyRange


@dataclass(frozen=True)
class Left:
    """Where rows are, as ctids, that the copy did not find; some of them, or none."""

    copy: TableCopy
    rows: list[str]


@dataclass(frozen=True)
class RangeFailed:
    """A range could not be read to its end."""

    copy: TableCopy
    range: CopyRange
    error: Exception


Found = Slice | RangeDone | RangeFailed | Left


class Pages:
    """Which SELECTs are under way, and what the stream had brought before each: what the writer must not forget."""

    def __init__(self, anchor: Anchor) -> None:
        self._lock = threading.Lock()
        self._anchors = [anchor]
        self._open: dict[int, int] = {}
        self._next = 0

    def note(self, anchor: Anchor) -> None:
        """The writer has committed up to here."""
        with self._lock:
            self._anchors = [anchor]

    def begin(self) -> tuple[int, Anchor]:
        """A SELECT begins; its number, and what it must show at least."""
        with self._lock:
            self._next += 1
            anchor = self._anchors[-1]
            self._open[self._next] = anchor.seq
            return self._next, anchor

    def end(self, page: int) -> None:
        """All of a SELECT is written, or none of it will be."""
        with self._lock:
            self._open.pop(page, None)

    def oldest(self) -> int | None:
        """The _seq behind which changes must be known; None where no SELECT is under way."""
        with self._lock:
            return min(self._open.values(), default=None)


class Throttle:
    """How fast all readers together may read, and when not at all.

    Attributes:
        waits_for: why nothing is read just now, in words.
    """

    def __init__(self, settings: Settings) -> None:
        self._rows_per_s = settings.replicator.snapshot_max_rows_per_s
        self._most_running = settings.replicator.snapshot_max_threads_running
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._looked_at = 0.0
        self.waits_for: str | None = None

    def claim(self, rows: int) -> float:
        """Count rows; how many seconds to wait because of them."""
        if self._rows_per_s is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + rows / self._rows_per_s
            return self._free_at - now

    def cut(self, rows: int) -> int:
        """So many rows or fewer for one SELECT: none may take longer than it has to."""
        return rows if self._rows_per_s is None else min(rows, max(1, int(self._rows_per_s * _SHORT_S)))

    def is_overloaded(self, source: Source) -> bool:
        """Whether the source has too much to do; asked about once a second."""
        if self._most_running is None:
            return False
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at > _LOOK_AT_LOAD_S:
                self._looked_at = now
                # this question's own thread is one of them
                running = int(source.query("SHOW GLOBAL STATUS LIKE 'Threads_running'")[0][1]) - 1
                over = running > self._most_running
                self.waits_for = f"the source has {running} threads running, more than {self._most_running}" if over else None
            return self.waits_for is not None


class Readers:
    """Up to replicator.snapshot_readers threads that read what is asked for.

    Args:
        source: which server to read. settings: how.
        pages: shared with the writer.
        wake: set whenever something was read.

    Attributes:
        found: what was read, in the order of reading, that of one range after another.
    """

    def __init__(self, source: Source, settings: Settings, pages: Pages, wake: threading.Event) -> None:
        self._source, self._settings, self._pages, self._wake = source, settings, pages, wake
        self.found: queue.Queue[Found] = queue.Queue(maxsize=_AHEAD)
        self.throttle = Throttle(settings)
        self._jobs: queue.SimpleQueue[tuple[TableCopy, CopyRange | None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()

    def read(self, copy: TableCopy, part: CopyRange) -> None:
        """Begin to read a range as soon as a thread is free."""
        self._begin(copy, part)

    def find_left(self, copy: TableCopy) -> None:
        """Look for rows to be swept away, as soon as a thread is free."""
        self._begin(copy, None)

    def _begin(self, copy: TableCopy, part: CopyRange | None) -> None:
        with self._lock:
            self._jobs.put((copy, part))
            if len(self._threads) < self._settings.replicator.snapshot_readers:
                thread = threading.Thread(target=self._work, name="tailrace copy", daemon=True)
                self._threads.add(thread)
                thread.start()

    def close(self) -> None:
        """End the threads, wherever they are."""
        self._closing.set()
        with self._lock:
            threads = list(self._threads)
        deadline = time.monotonic() + _LONGEST_CLOSE_S
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            # they may be waiting for room
            while not self.found.empty():
                self.found.get_nowait()
            for thread in threads:
                thread.join(0.02)

    # ------------------------------------------------------------------------------------------------ the threads' side
    def _work(self) -> None:
        source = self._source.another()
        try:
            while True:
                with self._lock:
                    if self._jobs.empty() or self._closing.is_set():
                        self._threads.discard(threading.current_thread())
                        return
                    copy, part = self._jobs.get()
                try:
                    if part is None:
                        self._find_left(copy)
                    else:
                        self._read_range(source, copy, part)
                except Exception as error:  # noqa: BLE001 - it is dealt with where the slices are written
                    if copy.failures:
                        self._closing.wait(_RETRY_S)
                    self._put(copy, RangeFailed(copy, part or copy.ranges[0], error))
                if copy.is_cancelled and part is not None:
                    self._pages.end(part.page)
        finally:
            source.close()

    def _read_range(self, source: Source, copy: TableCopy, part: CopyRange) -> None:
        if copy.drift is None and not copy.is_cancelled:
            copy.drift = self._count(copy)

        def should_stop() -> bool:
            return copy.is_cancelled or self._closing.is_set()

        settings = self._settings.replicator
        reader = RangeReader(source, copy.found, copy.order, settings.snapshot_slice_rows, should_stop, copy.view)
        try:
            after, inclusive, limit = part.after, part.inclusive, min(_FIRST_ROWS, settings.snapshot_page_rows)
            while not should_stop():
                while self.throttle.is_overloaded(source) and not should_stop():
                    self._closing.wait(_LOOK_S)
                started, limit = time.monotonic(), self.throttle.cut(limit)
                if copy.order is None:
                    limit = _ALL
                rows, last = self._read_page(reader, copy, part, after, limit, inclusive=inclusive)
                if rows < limit:
                    self._put(copy, RangeDone(copy, part))
                    return
                after, inclusive = last, False
                took = time.monotonic() - started
                self._closing.wait(self.throttle.claim(rows))
                if took < _SHORT_S:
                    limit = min(2 * limit, settings.snapshot_page_rows)
                elif took > _LONG_S:
                    limit = max(limit // 2, min(_FEWEST_ROWS, settings.snapshot_page_rows))
        finally:
            reader.close()
            if copy.view is not None:
                copy.view.close()

    def _read_page(
        self, reader: RangeReader, copy: TableCopy, part: CopyRange, after: tuple[bytes, ...], limit: int, *, inclusive: bool
    ) -> tuple[int, tuple[bytes, ...]]:
        """Read and hand over one page; how many rows it had, and the last key."""
        page, anchor = self._pages.begin()
        part.page = page
        if copy.view is None:
            reader.wait_until_visible(anchor.position, anchor.noted_at)
        rows, last = 0, after
        held: Block | None = None
        for block in reader.read(after, part.upto, limit, inclusive=inclusive):
            rows, last = rows + block.rows_read, block.last
            if limit == _ALL:
                self._pace(copy, block.rows)
            if held is not None:
                self._put(copy, Slice(copy, part, held, anchor.seq, page, is_last=False))
            held = block
        if held is None or copy.is_cancelled:
            self._pages.end(page)
        else:
            self._put(copy, Slice(copy, part, held, anchor.seq, page, is_last=True))
        return rows, last

    def _pace(self, copy: TableCopy, rows: int) -> None:
        """Slow down in the middle of a SELECT that cannot be cut."""
        end = time.monotonic() + self.throttle.claim(rows)
        while time.monotonic() < end and not copy.is_cancelled and not self._closing.is_set():
            self._closing.wait(_LOOK_S)

    def _put(self, copy: TableCopy, item: Found) -> None:
        while not (copy.is_cancelled or self._closing.is_set()):
            try:
                self.found.put(item, timeout=_LOOK_S)
                self._wake.set()
                return
            except queue.Full:
                continue

    def _find_left(self, copy: TableCopy) -> None:
        with connect(self._settings.warehouse, "left rows") as conn, wrap_errors(table=copy.table.name):
            rows = find_left(conn, copy)
        self._put(copy, Left(copy, rows))

    def _count(self, copy: TableCopy) -> int:
        """How many rows the mirror has more than was counted; somebody may have written into it."""
        table = copy.table
        drift = sql.SQL(
            "SELECT (SELECT count(*) FROM {}) - t.rows FROM warehouse.tables t WHERE t.source = {} AND t.table_name = {}"
        ).format(table.identifier, sql.Literal(self._settings.source.name), sql.Literal(table.name))
        with connect(self._settings.warehouse, "count") as conn, wrap_errors():
            row = conn.execute(drift).fetchone()
        return int(row[0]) if row else 0
