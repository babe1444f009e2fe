"""The order in which a table's keys are paged through at the source: which keys, which conditions, which parameters.

Only the source's server ever compares keys: a page begins behind a key that is handed back with the bytes, the type and the
collation that it came with. A key for which that cannot be done exactly has no order here. Owns no connection but the question.

Source: MySQL internals, "Binary Protocol Value"; MySQL manual, "Range Optimization", "Collation Coercibility in Expressions".
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replicator.result import Parameter, quote_name
from replicator.source import Source, SourceTable
from replicator.typemap import Column, Kind

Key = tuple[bytes, ...]
"""Values of the key's columns, in the index's order, as a binary result row has them; a bound may have only the first ones."""

_LONG, _LONGLONG, _DOUBLE, _FLOAT, _BLOB, _STRING = 3, 8, 5, 4, 252, 253
_INTEGERS = {
    Kind.TINY: (1, 1),
    Kind.SHORT: (2, 2),
    Kind.INT24: (_LONG, 4),
    Kind.LONG: (_LONG, 4),
    Kind.LONGLONG: (_LONGLONG, 8),
}
_FIXED = {Kind.FLOAT: (_FLOAT, 4), Kind.DOUBLE: (_DOUBLE, 8)}
# DATE, TIME and DATETIME; a TIMESTAMP is compared in the session's time zone, which is UTC on both ways.
_TEMPORAL = {Kind.DATE: 10, Kind.TIME: 11, Kind.DATETIME: 12, Kind.TIMESTAMP: 12}
_BEHIND_LENGTH = frozenset({Kind.DECIMAL, Kind.TEXT, Kind.BYTES})
# Handed back as numbers, which they are ordered by, or as the text that the server makes the same value of.
_NUMBERED = frozenset({Kind.YEAR, Kind.BIT})
_WRITTEN = frozenset({Kind.UUID, Kind.INET})
PAGED = frozenset({*_INTEGERS, *_FIXED, *_TEMPORAL, *_BEHIND_LENGTH, *_NUMBERED, *_WRITTEN})
# Kinds that Postgres orders as the source does, so that a range of keys is the same on both sides.
COMPARABLE = frozenset({*_INTEGERS, Kind.DECIMAL, Kind.DATE, Kind.DATETIME, Kind.TIMESTAMP, Kind.BYTES, Kind.YEAR, Kind.BIT})
_SHOWN_BYTES = 64
_WORD = re.compile(r"\w+")


class NotAKey(ValueError):
    """A given value is none that the key's column can have."""


@dataclass(frozen=True)
class KeyOrder:
    """How to page through a table.

    Attributes:
        columns: the key's, in the index's order. positions: theirs in the table.
        collations: of each column; empty where it is no text.
        is_primary: the key is the primary key.
    """

    columns: tuple[Column, ...]
    positions: tuple[int, ...]
    collations: tuple[str, ...]
    is_primary: bool

    @classmethod
    def read(cls, source: Source, table: SourceTable) -> KeyOrder | None:
        """The order of a table's key; None where the table cannot be paged through exactly.

        That is: without a key, where the key holds only the beginning of a column, and with an ENUM or a SET in it, for which
        the servers do not look up where a range begins, so that each page would be read from the table's beginning.
        """
        columns = tuple(table.columns[i] for i in table.key)
        if not columns or any(each.kind not in PAGED or each.source_type.startswith(("enum", "set")) for each in columns):
            return None
        place = tuple(table.name.split(".", 1))
        indexes: dict[str, list[tuple[str, Any, str]]] = {}
        for index, column, part, direction in source.query(
            "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART, COLLATION FROM information_schema.STATISTICS"
            " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0 ORDER BY INDEX_NAME, SEQ_IN_INDEX",
            place,
        ):
            indexes.setdefault(index, []).append((column, part, direction))
        names = [each.name for each in columns]
        # The index of a versioned table ends with a column that is not listed where it is the server's own.
        listed = [each.name for each in columns if not each.row_end]
        fitting = {
            index: {direction for _, _, direction in parts}
            for index, parts in indexes.items()
            if [column for column, _, _ in parts] in (names, listed) and all(part is None for _, part, _ in parts)
        }
        if not any(len(directions) == 1 for directions in fitting.values()):
            return None
        rows = source.query(
            "SELECT COLUMN_NAME, COLLATION_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
            place,
        )
        collations = {str(name): str(collation or "") for name, collation in rows}
        found = tuple(
            collations.get(name, "") if each.kind is Kind.TEXT else "" for name, each in zip(names, columns, strict=True)
        )
        if any(each.kind is Kind.TEXT and not _WORD.fullmatch(name) for each, name in zip(columns, found, strict=True)):
            return None
        return cls(columns, table.key, found, len(fitting.get("PRIMARY", ())) == 1)

    @property
    def order_by(self) -> str:
        """The columns for ORDER BY."""
        return ", ".join(quote_name(each.name) for each in self.columns)

    def condition(self, parts: int, sign: str) -> str:
        """That a row's key is behind or before one of which `parts` values are given, as the range optimizer reads it.

        Args:
            sign: `>`, `>=`, `<` or `<=`.
        """
        alternatives = []
        for last in range(parts):
            equal = [f"{quote_name(self.columns[i].name)} = {self._place(i)}" for i in range(last)]
            strict = sign if last == parts - 1 else sign[0]
            alternatives.append(" AND ".join([*equal, f"{quote_name(self.columns[last].name)} {strict} {self._place(last)}"]))
        return "(" + " OR ".join(alternatives) + ")"

    def parameters(self, key: Key) -> list[Parameter]:
        """The parameters of condition() for a key, in order."""
        values = [self._parameter(i, value) for i, value in enumerate(key)]
        return [values[i] for last in range(len(key)) for i in range(last + 1)]

    def _place(self, i: int) -> str:
        column = self.columns[i]
        if column.kind is Kind.TEXT:
            # The stored bytes, said to be in the column's character set and compared as the column is.
            return f"CONVERT(CAST(? AS BINARY) USING {column.charset}) COLLATE {self.collations[i]}"
        if column.kind is Kind.BYTES:
            return "CAST(? AS BINARY)"
        if column.kind is Kind.DECIMAL:
            return f"CAST(? AS DECIMAL({column.precision},{column.scale}))"
        if column.kind in _WRITTEN:
            return f"CAST(? AS {column.source_type})"
        return "?"

    def _parameter(self, i: int, value: bytes) -> Parameter:
        column = self.columns[i]
        if column.kind in _INTEGERS:
            return Parameter(_INTEGERS[column.kind][0], value, column.unsigned)
        if column.kind in _FIXED:
            return Parameter(_FIXED[column.kind][0], value)
        if column.kind in _TEMPORAL:
            return Parameter(_TEMPORAL[column.kind], bytes([len(value)]) + value)
        if column.kind in _NUMBERED:
            number = int.from_bytes(value, "little" if column.kind is Kind.YEAR else "big")
            return Parameter(_LONGLONG, number.to_bytes(8, "little"), unsigned=True)
        if column.kind in _WRITTEN:
            return Parameter(_STRING, _with_length(_write(column, value)))
        return Parameter(_STRING if column.kind is Kind.DECIMAL else _BLOB, _with_length(value))

    def is_faithful(self, source: Source, key: Key) -> bool:
        """Whether the server, handed a key's texts back, has the same bytes again."""
        return all(
            bool(
                source.query(
                    f"SELECT CAST(CONVERT(CAST(%s AS BINARY) USING {column.charset}) AS BINARY) = CAST(%s AS BINARY)",
                    (value, value),
                )[0][0]
            )
            for column, value in zip(self.columns, key, strict=False)
            if column.kind is Kind.TEXT
        )

    # ------------------------------------------------------------------------------------------------ values
    def take(self, row: bytes, columns: Sequence[Column]) -> Key:
        """A row's key.

        Args:
            row: a binary result row, from its first byte on. columns: the table's, as they were selected.
        """
        nulls = (len(columns) + 9) // 8
        at = 1 + nulls
        values: dict[int, bytes] = {}
        for i, column in enumerate(columns):
            if row[1 + ((i + 2) >> 3)] >> ((i + 2) & 7) & 1:
                continue
            size, at = _value_size(column.kind, row, at)
            values[i] = row[at : at + size]
            at += size
        return tuple(values[i] for i in self.positions)

    def show(self, key: Key) -> str:
        """A key for people."""
        return ", ".join(_show(column, value) for column, value in zip(self.columns, key, strict=False)) or "the beginning"

    def parse(self, given: dict[str, Any]) -> Key:
        """A bound that somebody wrote as an object of column names and values, as deleted_rows has them.

        Raises:
            NotAKey: the columns are not the first ones of the key, or a value does not fit its column.
        """
        names = [each.name for each in self.columns]
        if not given or set(given) != set(names[: len(given)]):
            raise NotAKey(f"a bound names {', '.join(given) or 'nothing'}, where the key is {', '.join(names)}")
        try:
            return tuple(_parse(self.columns[i], given[names[i]]) for i in range(len(given)))
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise NotAKey(f"a bound does not fit the key's type: {error}") from None


def _write(column: Column, value: bytes) -> bytes:
    """A UUID or an address as the server reads it."""
    if column.kind is Kind.UUID:
        return str(uuid.UUID(bytes=value)).encode()
    return str(ipaddress.ip_address(value)).encode()


def _value_size(kind: Kind, row: bytes, at: int) -> tuple[int, int]:
    """How many bytes a value of a binary result row takes, and where it begins."""
    fixed = {**{kind: size for kind, (_, size) in _INTEGERS.items()}, Kind.FLOAT: 4, Kind.DOUBLE: 8, Kind.YEAR: 2}
    if kind in fixed:
        return fixed[kind], at
    first = row[at]
    if first < 251:
        return first, at + 1
    size_bytes = {252: 2, 253: 3}.get(first, 8)
    return int.from_bytes(row[at + 1 : at + 1 + size_bytes], "little"), at + 1 + size_bytes


def _show(column: Column, value: bytes) -> str:
    if column.kind in _INTEGERS:
        return str(int.from_bytes(value, "little", signed=not column.unsigned))
    if column.kind in (Kind.DECIMAL, Kind.TEXT):
        return value[:_SHOWN_BYTES].decode("utf-8", "backslashreplace").replace("\0", "\\0")
    return "\\x" + value[:_SHOWN_BYTES].hex()


def _with_length(value: bytes) -> bytes:
    size = len(value)
    if size < 251:
        return bytes([size]) + value
    return (b"\xfc" + struct.pack("<H", size) if size < 1 << 16 else b"\xfd" + size.to_bytes(3, "little")) + value


def _parse(column: Column, value: Any) -> bytes:
    if column.kind in _INTEGERS:
        return int(value).to_bytes(_INTEGERS[column.kind][1], "little", signed=not column.unsigned)
    if column.kind is Kind.YEAR:
        return int(value).to_bytes(2, "little")
    if column.kind is Kind.DECIMAL and re.fullmatch(r"-?\d+(\.\d+)?", str(value)):
        return str(value).encode()
    if column.kind is Kind.BYTES and str(value).startswith("\\x"):
        return bytes.fromhex(str(value)[2:])
    if column.kind is Kind.DATE:
        day = datetime.date.fromisoformat(str(value))
        return struct.pack("<HBB", day.year, day.month, day.day)
    if column.kind in (Kind.DATETIME, Kind.TIMESTAMP):
        at = datetime.datetime.fromisoformat(str(value))
        at = at if at.tzinfo is None else at.astimezone(datetime.UTC)
        return struct.pack("<HBBBBBI", at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond)
    raise ValueError(f"{value!r} for {column.name} {column.source_type}")
