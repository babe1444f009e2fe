"""What is copied of a table and how far it is: warehouse.table_copies, from which a copy goes on after a crash.

Owns the ranges, their division for several readers, and the form in which they are kept. Reads no rows.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pymysql

from replicator.key_order import Key, KeyOrder, NotAKey
from replicator.mirror import QUERIES, MirrorTable
from replicator.position import Position
from replicator.read_view import ReadView
from replicator.result import quote_name, quote_table
from replicator.source import Source, SourceTable, wrap_errors
from replicator.touched import Touched
from replicator.typemap import Kind
from warehouse.db import Connection

# Tables of fewer rows are read in one range.
_SPLIT_ROWS = 1_000_000
_INTEGERS = frozenset({Kind.TINY, Kind.SHORT, Kind.INT24, Kind.LONG, Kind.LONGLONG})


Bound = dict[str, Any] | None
"""Values of a key's first columns, as somebody wrote them; None: no bound."""


@dataclass(eq=False)
class CopyRange:
    """A range of keys and how far it is copied.

    Attributes:
        after: rows up to this key are written. upto: the range ends behind this key; (): with the table.
        inclusive: the row with the key `after` belongs to the range, too, because nothing is written yet.
        page: the SELECT that is under way.
    """

    after: Key
    upto: Key
    inclusive: bool = False
    done: bool = False
    page: int = 0

    def as_json(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "after": [part.hex() for part in self.after], "upto": [part.hex() for part in self.upto],
            "inclusive": self.inclusive, "done": self.done,
        }  # fmt: skip


@dataclass(eq=False)
class TableCopy:
    """A copy that runs beside the stream.

    Attributes:
        found: the table as the source described it when the copy began.
        order: of its key; None: it is read in one SELECT, which begins anew after a crash.
        base_seq: what the mirror has up to here is older than the copy.
        is_filled: the mirror may hold other rows than those that the copy and the stream wrote since.
        low, high: the keys between which the table is copied; None: all of it.
        rows_done, rows_estimate: rows read so far, and about how many there are.
        view: what a table without a key is read as of; its reader closes it.
        drift: how much the mirror's count of rows was off when the copy began; None until it is known.
        read_at: the source's position once all was read, where the stream must be before rows are swept away.
        left: where rows are that are to be swept away, once a thread has looked; is_sought: one looks just now.
        is_cancelled: nothing more is read or written for it.
    """

    table: MirrorTable
    found: SourceTable
    order: KeyOrder | None
    base_seq: int
    is_filled: bool
    ranges: list[CopyRange]
    rows_estimate: int
    low: Bound = None
    high: Bound = None
    rows_done: int = 0
    drift: int | None = None
    read_at: Position | None = None
    left: list[str] | None = None
    is_sought: bool = False
    is_cancelled: bool = False
    failures: int = 0
    view: ReadView | None = None
    rows_before: int = 0
    began_at: float = field(default_factory=time.monotonic)

    @property
    def is_whole(self) -> bool:
        """True where all of the table is copied, not a range that somebody asked for."""
        return self.low is None and self.high is None

    @property
    def rows_per_s(self) -> float:
        """Since this process took the copy up."""
        return (self.rows_done - self.rows_before) / max(1e-3, time.monotonic() - self.began_at)

    def describe(self, source: str, waits_for: str | None) -> dict[str, Any]:
        """The parameters of the queries that keep it."""
        return {
            "source": source, "table": self.table.name, "base_seq": self.base_seq, "is_filled": self.is_filled,
            "low": None if self.low is None else json.dumps(self.low),
            "high": None if self.high is None else json.dumps(self.high),
            "ranges": json.dumps([each.as_json() for each in self.ranges]), "rows_done": self.rows_done,
            "rows_estimate": max(self.rows_estimate, self.rows_done), "rows_per_s": self.rows_per_s, "waits_for": waits_for,
        }  # fmt: skip


def plan_copy(
    source: Source, table: MirrorTable, found: SourceTable, order: KeyOrder | None, seq: int, readers: int, low: Bound,
    high: Bound, *, is_filled: bool,
) -> TableCopy:  # fmt: skip
    """A copy of a table that begins now, in as many ranges as it is worth.

    Args:
        seq: the last _seq given out. readers: how many ranges can be read at once. low, high: as TableCopy has them.
        is_filled: the mirror has rows.

    Raises:
        NotAKey: the bounds that were asked for are none of this key.
    """
    estimate = estimate_rows(source, found.name)
    if order is None and (low is not None or high is not None):
        raise NotAKey("its key cannot be read in ranges")
    after, upto = (order.parse(bound) if order is not None and bound else () for bound in (low, high))
    ranges = [CopyRange(after, upto, inclusive=bool(low))]
    if order is not None and low is None and high is None and readers > 1 and estimate >= _SPLIT_ROWS:
        ranges = _divide(source, found, order, readers)
    table.touched = Touched()
    return TableCopy(
        table,
        found,
        order,
        seq,
        is_filled,
        ranges,
        estimate,
        low,
        high,
        drift=None if is_filled and low is None and high is None else 0,
    )


def estimate_rows(source: Source, name: str, connection: pymysql.Connection[Any] | None = None) -> int:
    """About how many rows a table has, as the optimizer sees it.

    Args:
        connection: one that holds the table's lock, where there is one. Another reader would wait behind the writers that wait
            for that lock.
    """
    form, column = ("", 8) if source.flavor == "mariadb" else ("FORMAT=TRADITIONAL ", 9)
    text = f"EXPLAIN {form}SELECT * FROM {quote_table(name)}"  # noqa: S608 - quoted
    if connection is None:
        return int(source.query(text)[0][column] or 0)
    with wrap_errors("cannot estimate a table's rows"), connection.cursor() as cursor:
        cursor.execute(text)
        return int(cursor.fetchall()[0][column] or 0)


def _divide(source: Source, found: SourceTable, order: KeyOrder, readers: int) -> list[CopyRange]:
    """Equal spans of the key's first column, where it is an integer."""
    column = order.columns[0]
    if column.kind not in _INTEGERS:
        return [CopyRange((), ())]
    name = quote_name(column.name)
    first, last = source.query(f"SELECT MIN({name}), MAX({name}) FROM {quote_table(found.name)}")[0]  # noqa: S608 - quoted
    if first is None or last - first < readers:
        return [CopyRange((), ())]
    cuts = [order.parse({column.name: first + (last - first) * i // readers}) for i in range(1, readers)]
    return [CopyRange(after, upto) for after, upto in zip([(), *cuts], [*cuts, ()], strict=True)]


def read_copies(conn: Connection, source: Source, name: str, tables: dict[str, MirrorTable]) -> list[TableCopy]:
    """The copies that an earlier run has begun and that can go on: of tables that are as they were."""
    found = []
    for table_name, base_seq, low, high, ranges, rows_done, estimate in conn.execute(
        QUERIES["read_copies"], {"source": name}
    ).fetchall():
        table = tables.get(table_name)
        described = source.describe(table_name)
        if table is None or described is None or not table.is_described_as(described):
            continue
        order = KeyOrder.read(source, described)
        ranges_left = [_read_range(each) for each in ranges]
        if order is None and (not described.key or ranges_left[0].after):
            continue
        if order is None:
            rows_done = 0
        table.touched = Touched()
        found.append(
            TableCopy(
                table, described, order, base_seq, True, ranges_left, estimate, low, high,
                rows_done=rows_done, rows_before=rows_done, drift=None if low is None and high is None else 0,
            )
        )  # fmt: skip
    return found


def _read_range(kept: dict[str, Any]) -> CopyRange:
    after, upto = (tuple(bytes.fromhex(part) for part in kept[name]) for name in ("after", "upto"))
    return CopyRange(after, upto, kept["inclusive"], kept["done"])
