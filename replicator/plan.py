"""Decoder plans: a table's columns packed into the arrays that the kernels of decode.py read.

Owns the arrays and the table of plans. Pure: no database, no logging.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.charsets import Charsets
from replicator.tablemap import TABLE_ID_BYTES
from replicator.typemap import BINARY, UTF8, Column, Kind

Bytes = NDArray[np.uint8]

# Sizes in a row image; times by their fractional digits below.
_FIXED_BYTES = {
    Kind.TINY: 1, Kind.SHORT: 2, Kind.INT24: 3, Kind.LONG: 4, Kind.LONGLONG: 8, Kind.FLOAT: 4, Kind.DOUBLE: 8,
    Kind.YEAR: 1, Kind.DATE: 3, Kind.OLD_TIME: 3, Kind.OLD_DATETIME: 8, Kind.OLD_TIMESTAMP: 4,
}  # fmt: skip
# Of the mirror's type, for signed and unsigned ones; an unsigned BIGINT becomes a numeric.
_INTEGER_BYTES = {Kind.TINY: (2, 2), Kind.SHORT: (2, 4), Kind.INT24: (4, 4), Kind.LONG: (4, 8), Kind.LONGLONG: (8, 0)}
_BEHIND_LENGTH = frozenset({Kind.TEXT, Kind.BYTES, Kind.JSON, Kind.GEOMETRY, Kind.VECTOR, Kind.UUID, Kind.INET})
_TIME_BYTES = {Kind.TIME: 3, Kind.DATETIME: 5, Kind.TIMESTAMP: 4}
TEXT_AS_IT_IS, TEXT_BY_TABLE, TEXT_BY_PYTHON, TEXT_BY_PAIRS = 0, 1, 2, 3
# Sets with codes of three and of four bytes.
_LONGER_PAIRS = {"ujis": 7, "eucjpms": 7, "gb18030": 8}
_WIDE = {"utf16": 4, "ucs2": 4, "utf16le": 5, "utf32": 6}
SLACK_BYTES = 64
# Far more than one statement can name.
_KEPT_IDS = 1 << 16


class Plans:
    """All decoder plans of a stream, as arrays.

    Attributes:
        plans: (p,) decode.PLAN. columns: (c,) decode.COLUMN. blob: (b,) uint8. labels: (2 l,) int32.
        slots: (decode.SLOTS,) decode.SLOT, from table id to plan.
        tables: for each plan the number that its owner gave, -1 for tables that are not wanted.
    """

    def __init__(self, charsets: Charsets) -> None:
        self.charsets = charsets
        self._blob = bytearray(SLACK_BYTES)
        self._labels: list[int] = []
        self._columns: list[tuple[Any, ...]] = []
        self._plans: list[tuple[Any, ...]] = []
        self._charset_at: dict[str, int] = {}
        self._bound: dict[int, int] = {}
        self.tables: list[int] = []
        self.sources: list[tuple[Column, ...]] = []
        self.slots: NDArray[np.void] = np.zeros(decode.SLOTS, decode.SLOT)
        # the table id is 6 bytes, so no event has this one
        self.slots["table_id"] = -1
        # plan 0 matches no table map
        self.add((), (), wanted=False, table=-1)

    def add(self, columns: tuple[Column, ...], key: Sequence[int], *, wanted: bool, table: int, map_body: bytes = b"") -> int:
        """Add a plan and give its number.

        Args:
            columns: in the source's order.
            key: positions of the columns that identify a row.
            wanted: False: rows of this table are passed over.
            table: a number of the caller's, kept in `tables`.
            map_body: the table map after its id; the kernel compares it with each table map that follows.
        """
        first = len(self._columns)
        fixed_out = 64
        if wanted:
            for i, column in enumerate(columns):
                packed, most = self._pack(column, is_key=i in key)
                self._columns.append(packed)
                fixed_out += most
            self._count_doubles(columns, key, first)
        map_at = self._store(map_body)
        count = len(columns) if wanted else 0
        self._plans.append((wanted, first, count, len(key), fixed_out, map_at, len(map_body)))
        self.tables.append(table)
        self.sources.append(columns)
        self._freeze()
        return len(self._plans) - 1

    def _count_doubles(self, columns: tuple[Column, ...], key: Sequence[int], first: int) -> None:
        """Note in each column how many from there on are DOUBLE and no part of the key."""
        place = (decode.COLUMN.names or ()).index("doubles")
        run = 0
        for i in range(len(columns) - 1, -1, -1):
            run = min(run + 1, decode.DOUBLES) if columns[i].kind is Kind.DOUBLE and i not in key else 0
            packed = self._columns[first + i]
            self._columns[first + i] = (*packed[:place], run, *packed[place + 1 :])

    def bind(self, table_id: int, plan: int) -> None:
        """Let rows events with this table id use a plan."""
        self._bound.pop(table_id, None)
        self._bound[table_id] = plan
        if len(self._bound) > _KEPT_IDS:
            del self._bound[next(iter(self._bound))]
        self.slots[table_id & (decode.SLOTS - 1)] = (table_id, plan)

    def restore(self, table_id: int) -> bool:
        """Bind a table id again whose slot another one has taken; False where it was not bound or still is.

        Ids that share a slot may occur in one statement.
        """
        slot = table_id & (decode.SLOTS - 1)
        if table_id not in self._bound or self.slots[slot]["table_id"] == table_id:
            return False
        self.slots[slot] = (table_id, self._bound[table_id])
        return True

    def find(self, map_body: bytes, table_id: int) -> int | None:
        """The newest plan whose table map is the same, so that a new table id alone makes no new plan."""
        rest = map_body[TABLE_ID_BYTES:]
        for number in range(len(self._plans) - 1, 0, -1):
            at, size = self._plans[number][5], self._plans[number][6]
            if size == len(rest) and self._blob[at : at + size] == rest:
                self.bind(table_id, number)
                return number
        return None

    def turn_away(self, number: int) -> None:
        """Pass over the rows of a plan from now on."""
        self._plans[number] = (False, *self._plans[number][1:])
        self._freeze()

    def drop_bindings(self) -> None:
        """Match no table map any more, so that every table is looked at again.

        Table ids stay bound: rows events may follow whose table map has been read already.
        """
        self._plans = [(*plan[:5], 0, 0) for plan in self._plans]
        self._freeze()

    def _freeze(self) -> None:
        self.plans = np.array(self._plans, decode.PLAN)
        self.columns = np.array(self._columns or [(0,) * len(decode.COLUMN.names or ())], decode.COLUMN)
        self.blob: Bytes = np.frombuffer(bytes(self._blob), np.uint8)
        self.labels = np.array(self._labels or [0, 0], np.int32)

    def _store(self, data: bytes) -> int:
        self._blob += data
        return len(self._blob) - len(data)

    def _pack(self, column: Column, *, is_key: bool) -> tuple[tuple[Any, ...], int]:
        """The column as a record of decode.COLUMN, and the most bytes of its field beside four times the image's."""
        kind = column.kind
        size, prefix, table, text, most = _FIXED_BYTES.get(kind, 0), 0, 0, 0, 48
        if kind in _TIME_BYTES:
            size = _TIME_BYTES[kind] + (column.scale + 1) // 2
        elif kind is Kind.DECIMAL:
            size = int(decode.decimal_bytes(column.precision, column.scale))
        elif kind in (Kind.ENUM, Kind.SET, Kind.BIT):
            size = column.length_bytes
        elif kind in _BEHIND_LENGTH:
            prefix = column.length_bytes
            most += column.width
        if column.compressed:
            text = TEXT_BY_PYTHON
        elif kind is Kind.TEXT:
            text, table = self._text(column.charset)
        if kind in (Kind.ENUM, Kind.SET):
            table = len(self._labels) // 2
            for label in column.labels:
                # labels in the character set "binary" are bytes, which Charsets gives as characters of latin1
                raw = label.encode("latin-1" if column.charset == BINARY else "utf-8")
                self._labels += [self._store(raw), len(raw)]
                most += len(raw) + 1
        integer = _INTEGER_BYTES.get(kind, (0, 0))[column.unsigned]
        record = (
            kind, column.unsigned, prefix, is_key, text, integer, 0, size, column.width, column.precision, column.scale, table,
            len(column.labels),
        )  # fmt: skip
        return record, most

    def _text(self, charset: str) -> tuple[int, int]:
        if charset in UTF8:
            return TEXT_AS_IT_IS, 0
        if charset in _WIDE:
            return _WIDE[charset], 0
        if not self.charsets.covers(charset):
            return TEXT_BY_PYTHON, 0
        by_table = charset in self.charsets.tables
        if charset not in self._charset_at:
            table = self.charsets.packed(charset) if by_table else self.charsets.packed_pairs(charset)
            self._charset_at[charset] = self._store(table)
        return TEXT_BY_TABLE if by_table else _LONGER_PAIRS.get(charset, TEXT_BY_PAIRS), self._charset_at[charset]
