"""Columns of the source and what they become in the mirror: one total table, with a failing default.

Pure. A Column is built from a TABLE_MAP event (tablemap.py) or from information_schema (the file of that name); both must give
the same mirror type, because the stream and the snapshot write into the same table. docs/types.md is made from RULES.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

BINARY = "binary"
UTF8 = frozenset({"utf8mb4", "utf8mb3", "utf8", "ascii"})
LONGEST_NAME_BYTES = 63
# The mirror's own, and those that every Postgres table has.
OWN_COLUMNS = frozenset({"_seq", "_committed_at", "_raw", "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
# Of tables without a key.
ROW_HASH = "_row_hash"
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
    JSON = 22
    GEOMETRY = 23
    VECTOR = 24
    UUID = 25
    INET = 26


# MariaDB's times of before its version 10.0; a table map does not say how many fractional digits they have.
OLD_LAYOUT = frozenset({Kind.OLD_TIME, Kind.OLD_DATETIME, Kind.OLD_TIMESTAMP})


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
        width: fixed length of BINARY(n), UUID and INET, whose trailing zero bytes the binlog leaves out; 0 for all else. Bits
            of BIT.
        compressed: TEXT and BYTES: the row image holds the value packed by MariaDB; the snapshot gets it unpacked.
        precision, scale: of DECIMAL; scale is also the fractional digits (0 to 6) of times.
        labels: of ENUM and SET, in the order of definition.
        source_type: for people, as in "decimal(12,4)".
        generated: the server computes it from other columns; only information_schema says so.
        row_end: of a system-versioned table, the end of the time in which the row was there; likewise.
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
    compressed: bool = False
    generated: bool = False
    row_end: bool = False

    @property
    def mirror_name(self) -> str:
        """The name in Postgres; see mirror_identifier."""
        return mirror_identifier(self.name)

    @property
    def rule(self) -> Rule | None:
        """The row of the type table for this column, or None where the column is not covered."""
        variant = "binary" if self.charset == BINARY and self.kind in (Kind.ENUM, Kind.SET) else ""
        if self.unsigned and (self.kind, "unsigned") in _RULES:
            variant = "unsigned"
        return _RULES.get((self.kind, variant))

    @property
    def mirror_type(self) -> str | None:
        """The Postgres type, or None where the column is not covered."""
        rule = self.rule
        return None if rule is None else rule.mirror.format(precision=self.precision, scale=self.scale, width=self.width)


@dataclass(frozen=True)
class Rule:
    """One row of the type table: a kind of column, the Postgres type, and what is kept of its values.

    Attributes:
        kind: whose values it is about. variant: "unsigned", or "binary" for labels that are bytes; "" otherwise.
        written: the type as CREATE TABLE has it, for people.
        data_types: its names in information_schema.COLUMNS.DATA_TYPE.
        mirror: the Postgres type; {precision}, {scale} and {width} are the column's.
        exact: what the mirror's value is, for people.
        raw: which values go to _raw, for people; empty where the Postgres type holds them all.
    """

    kind: Kind
    variant: str
    written: str
    data_types: tuple[str, ...]
    mirror: str
    exact: str
    raw: str = ""


_NUMBER = "Every value."
_TEXTS = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext")
_SHAPES = (
    "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geomcollection",
    "geometrycollection",
)  # fmt: skip
_NO_DATE = "Dates that Postgres does not have: zero (`0000-00-00`), month or day zero, year zero, 30 February and the like."
_OLD = "As the type without the comment. With fractional digits: refused, because the binlog does not say how many."

RULES: tuple[Rule, ...] = (
    Rule(Kind.TINY, "", "TINYINT, BOOL", ("tinyint",), "smallint", _NUMBER + " A BOOL is a TINYINT(1), and may hold 2."),
    Rule(Kind.TINY, "unsigned", "TINYINT UNSIGNED", (), "smallint", _NUMBER),
    Rule(Kind.SHORT, "", "SMALLINT", ("smallint",), "smallint", _NUMBER),
    Rule(Kind.SHORT, "unsigned", "SMALLINT UNSIGNED", (), "integer", _NUMBER),
    Rule(Kind.INT24, "", "MEDIUMINT", ("mediumint",), "integer", _NUMBER),
    Rule(Kind.INT24, "unsigned", "MEDIUMINT UNSIGNED", (), "integer", _NUMBER),
    Rule(Kind.LONG, "", "INT", ("int",), "integer", _NUMBER),
    Rule(Kind.LONG, "unsigned", "INT UNSIGNED", (), "bigint", _NUMBER),
    Rule(Kind.LONGLONG, "", "BIGINT", ("bigint",), "bigint", _NUMBER),
    Rule(Kind.LONGLONG, "unsigned", "BIGINT UNSIGNED, SERIAL", (), "numeric(20,0)", _NUMBER),
    Rule(Kind.DECIMAL, "", "DECIMAL(p,s), up to (65,30)", ("decimal",), "numeric({precision},{scale})", "Every digit."),
    Rule(Kind.FLOAT, "", "FLOAT", ("float",), "real", "Every bit. (The server itself prints fewer digits than it stores.)"),
    Rule(Kind.DOUBLE, "", "DOUBLE, REAL", ("double",), "double precision", "Every bit."),
    Rule(Kind.BIT, "", "BIT(n)", ("bit",), "bit({width})", "Every bit, the highest first."),
    Rule(Kind.YEAR, "", "YEAR", ("year",), "smallint", "Every value; 0000 is 0."),
    Rule(Kind.DATE, "", "DATE", ("date",), "date", "Every date from the year 1 on.", _NO_DATE),
    Rule(
        Kind.TIME, "", "TIME(f)", ("time",), "interval",
        "Microseconds and sign. An interval, because a TIME is a span of up to 838:59:59, not a time of day.",
    ),
    Rule(Kind.DATETIME, "", "DATETIME(f)", ("datetime",), "timestamp", "Microseconds; no time zone.", _NO_DATE),
    Rule(
        Kind.TIMESTAMP, "", "TIMESTAMP(f)", ("timestamp",), "timestamptz", "The instant, to the microsecond.",
        "Zero (`0000-00-00 00:00:00`), which is no instant and never becomes 1970.",
    ),
    Rule(Kind.OLD_TIME, "", "TIME /* mariadb-5.3 */", (), "interval", _OLD),
    Rule(Kind.OLD_DATETIME, "", "DATETIME /* mariadb-5.3 */", (), "timestamp", _OLD, "As DATETIME."),
    Rule(Kind.OLD_TIMESTAMP, "", "TIMESTAMP /* mariadb-5.3 */", (), "timestamptz", _OLD, "As TIMESTAMP."),
    Rule(
        Kind.TEXT, "", "CHAR, VARCHAR, TINYTEXT to LONGTEXT, any character set, COMPRESSED too; MariaDB: JSON", _TEXTS, "text",
        "Every character, as the server prints it in utf8mb4. CHAR without the spaces that pad it, as the server does.",
        "Texts with NUL, which stands as ␀ in the mirror, and bytes that are no character of the set: as hexadecimal.",
    ),
    Rule(
        Kind.BYTES, "", "BINARY, VARBINARY, TINYBLOB to LONGBLOB, COMPRESSED too",
        ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"), "bytea",
        "Every byte. BINARY(n) has its n bytes, zeros at the end included.",
    ),
    Rule(
        Kind.ENUM, "", "ENUM, labels in any character set", ("enum",), "text",
        "The label; the empty text for the error value 0, as the server prints it.",
        "Numbers without a label: the number.",
    ),
    Rule(Kind.ENUM, "binary", "ENUM CHARACTER SET binary", (), "bytea", "The label's bytes.", "As ENUM."),
    Rule(
        Kind.SET, "", "SET, labels in any character set", ("set",), "text",
        "The labels with commas between them, in the order of the definition; the empty set is the empty text.",
        "Bits without a label: the number.",
    ),
    Rule(Kind.SET, "binary", "SET CHARACTER SET binary", (), "bytea", "The labels' bytes.", "As SET."),
    Rule(
        Kind.JSON, "", "JSON (MySQL)", ("json",), "jsonb",
        "The document that the server prints, as jsonb: numbers keep every digit, but jsonb knows no difference between 1e2 and"
        " 100, nor between 0.0 and -0.0. Dates, times and decimals as the server prints them, other SQL values as"
        " `base64:typeN:...`. JSON null is `null`, SQL NULL is NULL.",
        "Documents with `\\u0000`, which jsonb refuses; it stands as ␀ in the mirror: the text that the server prints.",
    ),
    Rule(
        Kind.GEOMETRY, "", "GEOMETRY, POINT, LINESTRING, POLYGON, MULTI..., GEOMETRYCOLLECTION", _SHAPES, "bytea",
        "EWKB: the stored WKB, with the SRID where it is not 0; PostGIS casts it (`column::geometry`). MySQL stores"
        " longitude before latitude, as PostGIS expects, also where it prints latitude first.",
        "Bytes that are no geometry: as hexadecimal.",
    ),
    Rule(
        Kind.VECTOR, "", "VECTOR(n) (MySQL)", ("vector",), "real[]", "Every bit of every element.",
        "Bytes that are no vector: as hexadecimal.",
    ),
    Rule(Kind.UUID, "", "UUID (MariaDB)", ("uuid",), "uuid", "Every value."),
    Rule(Kind.INET, "", "INET4, INET6 (MariaDB)", ("inet4", "inet6"), "inet", "Every address, as a host."),
)  # fmt: skip
_RULES = {(rule.kind, rule.variant): rule for rule in RULES}

KINDS = {data_type: rule.kind for rule in RULES for data_type in rule.data_types}
"""From information_schema's DATA_TYPE to the kind."""

INET_WIDTHS = {"inet4": 4, "inet6": 16}
UUID_WIDTH = 16


def recognize(columns: Sequence[Column], known: dict[str, str]) -> tuple[Column, ...]:
    """Tell apart what a table map calls by the same type: MariaDB's UUID, INET4 and INET6 look like BINARY(4) or (16) there.

    Args:
        columns: from a table map.
        known: column name -> mirror type, as information_schema had it.
    """
    fixed = {("uuid", UUID_WIDTH): Kind.UUID} | {("inet", width): Kind.INET for width in INET_WIDTHS.values()}
    return tuple(
        replace(column, kind=fixed[known.get(column.name, ""), column.width])
        if column.kind is Kind.BYTES and (known.get(column.name, ""), column.width) in fixed
        else column
        for column in columns
    )


def mirror_identifier(name: str) -> str:
    """The name in Postgres: the same, but where it is longer than 63 bytes, cut and made distinct by a hash.

    Source: PostgreSQL manual, "Identifiers and Key Words": names are cut silently at 63 bytes.
    """
    raw = name.encode()
    if len(raw) <= LONGEST_NAME_BYTES:
        return name
    return raw[:54].decode("utf-8", "ignore") + "_" + hashlib.sha256(raw).hexdigest()[:8]
