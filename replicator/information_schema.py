"""What information_schema says of a table: the questions, and what the answers mean as columns and as a key.

Pure: the questions are asked in source.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from replicator.errors import SourceUnavailable
from replicator.typemap import BINARY, INET_WIDTHS, KINDS, UUID_WIDTH, Column, Kind

# Database and table, twice.
COLUMNS_OF_TABLE = (
    "SELECT (SELECT TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s),"
    " COLUMN_NAME, LOWER(DATA_TYPE), COLUMN_TYPE, CHARACTER_SET_NAME, CHARACTER_OCTET_LENGTH,"
    " NUMERIC_PRECISION, NUMERIC_SCALE, DATETIME_PRECISION, GENERATION_EXPRESSION > '',"
    " GENERATION_EXPRESSION = 'ROW END' FROM information_schema.COLUMNS"
    " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION"
)
# Database and table. The primary key comes first.
INDEXES_OF_TABLE = (
    "SELECT INDEX_NAME, COLUMN_NAME, NULLABLE FROM information_schema.STATISTICS"
    " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0"
    " ORDER BY INDEX_NAME = 'PRIMARY' DESC, INDEX_NAME, SEQ_IN_INDEX"
)
# The columns of a versioned table that does not name them.
HIDDEN_PERIOD = tuple(
    Column(name, Kind.TIMESTAMP, scale=6, source_type="timestamp(6)", generated=True, row_end=name == "row_end")
    for name in ("row_start", "row_end")
)
_OLD_LAYOUT = "/* mariadb-5.3 */"
_OLD_KINDS = {Kind.TIME: Kind.OLD_TIME, Kind.DATETIME: Kind.OLD_DATETIME, Kind.TIMESTAMP: Kind.OLD_TIMESTAMP}
_LABEL = re.compile(r"'((?:[^']|'')*)'")


def parse_columns(rows: Iterable[Sequence[Any]]) -> tuple[Column, ...]:
    """The columns, from the answer to COLUMNS_OF_TABLE."""
    return tuple(_parse_column(*row[1:]) for row in rows)


def parse_key(rows: Iterable[tuple[str, str | None, str]], columns: Sequence[Column]) -> tuple[int, ...]:
    """Positions of the columns of the first unique index without NULLs, from the answer to INDEXES_OF_TABLE; else none.

    Raises:
        SourceUnavailable: that index has other columns than the table had when these were asked for.
    """
    indexes: dict[str, list[tuple[str | None, str]]] = {}
    for index, column, nullable in rows:
        indexes.setdefault(index, []).append((column, nullable))
    names = [column.name for column in columns]
    for parts in indexes.values():
        # an index over an expression names no column
        known = [column for column, nullable in parts if column is not None and nullable != "YES"]
        if len(known) == len(parts):
            if not set(known) <= set(names):
                raise SourceUnavailable("a table was altered while its columns and its key were asked for")
            return tuple(names.index(column) for column in known)
    return ()


def _parse_column(
    name: str, data_type: str, column_type: str, charset: str | None, octets: int | None,
    precision: int | None, scale: int | None, fraction: int | None, generated: int | None, row_end: int | None,
) -> Column:  # fmt: skip
    kind = KINDS.get(data_type, Kind.UNSUPPORTED)
    # MariaDB marks the columns that still have the layout of its version 5.3.
    if _OLD_LAYOUT in column_type and kind in _OLD_KINDS:
        kind = _OLD_KINDS[kind] if not fraction else Kind.UNSUPPORTED
    # Labels in the character set "binary" are bytes, and only the column's values bring them unchanged.
    if kind in (Kind.ENUM, Kind.SET) and (charset or BINARY) == BINARY:
        kind = Kind.BYTES
    width = {Kind.BIT: precision, Kind.UUID: UUID_WIDTH, Kind.INET: INET_WIDTHS.get(data_type)}.get(kind)
    if data_type == "binary":
        width = octets
    return Column(
        name,
        kind,
        unsigned="unsigned" in column_type.lower(),
        charset=BINARY if kind is Kind.BYTES else str(charset or ""),
        width=int(width or 0),
        precision=int(precision or 0) if kind is Kind.DECIMAL else 0,
        scale=int((scale if kind is Kind.DECIMAL else fraction) or 0),
        length_bytes=(int(precision or 0) + 7) // 8 if kind is Kind.BIT else 0,
        labels=tuple(label.replace("''", "'") for label in _LABEL.findall(column_type))
        if kind in (Kind.ENUM, Kind.SET)
        else (),
        source_type=column_type,
        generated=bool(generated),
        row_end=bool(row_end),
    )
