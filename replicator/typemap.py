"""Columns of the source and what they become in the mirror: one total table, with a failing default.

Pure. A Column is built from a TABLE_MAP event (tablemap.py) or from information_schema (source.py); both must give
the same mirror type, because the stream and the snapshot write into the same table.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

BINARY = "binary"
UTF8 = frozenset({"utf8mb4", "utf8mb3", "utf8", "ascii"})
LONGEST_NAME_BYTES = 63
# The mirror's own, and those that every Postgres table has.
OWN_COLUMNS = frozenset({"_seq", "_committed_at", "_raw", "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
OWN_SCHEMAS = frozenset({"warehouse", "scorer", "analytics", "information_schema"})


class Kind(IntEnum):
    """How a value lies in a row image. The numbers are used in decode.py's kernels."""

    UNSUPPORTED = 0
    TINY = 1
    SHORT = 2
    INT24 = 3
    LONG = 4
    LONGLONG = 5
    FLOAT = 6
    DOUBLE = 7
    DECIMAL = 8
    YEAR = 9
    DATE = 10
    TIME = 11
    DATETIME = 12
    TIMESTAMP = 13
    TEXT = 14
    BYTES = 15
    ENUM = 16
    SET = 17
    BIT = 18
    OLD_TIME = 19
    OLD_DATETIME = 20
    OLD_TIMESTAMP = 21


@dataclass(frozen=True)
class Column:
    """A column of the source.

    Attributes:
        name: as the source writes it.
        kind: layout of its values.
        unsigned: for integers.
        charset: the server's name of the character set; "binary" for bytes; "" where there is none.
        length_bytes: TEXT and BYTES: size of the length prefix in a row image (1 to 4); ENUM and SET: size of the value;
            BIT: bytes of the value.
        width: fixed length of BINARY(n), whose trailing zero bytes the binlog leaves out; 0 for all else. Bits of BIT.
        precision, scale: of DECIMAL; scale is also the fractional digits (0 to 6) of times.
        labels: of ENUM and SET, in the order of definition.
        source_type: for people, as in "decimal(12,4)".
    """

    name: str
    kind: Kind
    unsigned: bool = False
    charset: str = ""
    length_bytes: int = 0
    width: int = 0
    precision: int = 0
    scale: int = 0
    labels: tuple[str, ...] = ()
    source_type: str = ""

    @property
    def mirror_name(self) -> str:
        """The name in Postgres; see mirror_identifier."""
        return mirror_identifier(self.name)

    @property
    def mirror_type(self) -> str | None:
        """The Postgres type, or None where the column is not covered."""
        return _mirror_type(self)


_INTEGERS = {
    (Kind.TINY, False): "smallint",
    (Kind.TINY, True): "smallint",
    (Kind.SHORT, False): "smallint",
    (Kind.SHORT, True): "integer",
    (Kind.INT24, False): "integer",
    (Kind.INT24, True): "integer",
    (Kind.LONG, False): "integer",
    (Kind.LONG, True): "bigint",
    (Kind.LONGLONG, False): "bigint",
    (Kind.LONGLONG, True): "numeric(20,0)",
}

_PLAIN = {
    Kind.FLOAT: "real",
    Kind.DOUBLE: "double precision",
    Kind.YEAR: "smallint",
    Kind.DATE: "date",
    # MySQL's TIME is a span of up to 838 hours, not a time of day.
    Kind.TIME: "interval",
    Kind.OLD_TIME: "interval",
    Kind.DATETIME: "timestamp",
    Kind.OLD_DATETIME: "timestamp",
    Kind.TIMESTAMP: "timestamptz",
    Kind.OLD_TIMESTAMP: "timestamptz",
    Kind.TEXT: "text",
    Kind.BYTES: "bytea",
    Kind.ENUM: "text",
    Kind.SET: "text",
}


def _mirror_type(column: Column) -> str | None:
    if (column.kind, column.unsigned) in _INTEGERS:
        return _INTEGERS[column.kind, column.unsigned]
    if column.kind is Kind.DECIMAL:
        return f"numeric({column.precision},{column.scale})"
    if column.kind is Kind.BIT:
        return f"bit({column.width})"
    return _PLAIN.get(column.kind)


def mirror_identifier(name: str) -> str:
    """The name in Postgres: the same, but where it is longer than 63 bytes, cut and made distinct by a hash.

    Source: PostgreSQL manual, "Identifiers and Key Words": names are cut silently at 63 bytes.
    """
    raw = name.encode()
    if len(raw) <= LONGEST_NAME_BYTES:
        return name
    return raw[:54].decode("utf-8", "ignore") + "_" + hashlib.sha256(raw).hexdigest()[:8]
