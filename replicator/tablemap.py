"""TABLE_MAP events: the table's name and its columns, as they were when the rows after it were logged.

Source: MySQL source documentation, "Table_map_event" (mysql::binlog::event), with the optional metadata that
binlog_row_metadata = FULL adds. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from replicator.errors import MalformedTableMap
from replicator.typemap import BINARY, Column, Kind

TABLE_ID_BYTES = 6

# Type numbers: MySQL source, field_types.h (enum_field_types).
_KINDS = {
    1: Kind.TINY,
    2: Kind.SHORT,
    3: Kind.LONG,
    4: Kind.FLOAT,
    5: Kind.DOUBLE,
    7: Kind.OLD_TIMESTAMP,
    8: Kind.LONGLONG,
    9: Kind.INT24,
    10: Kind.DATE,
    11: Kind.OLD_TIME,
    12: Kind.OLD_DATETIME,
    13: Kind.YEAR,
    16: Kind.BIT,
    17: Kind.TIMESTAMP,
    18: Kind.DATETIME,
    19: Kind.TIME,
    246: Kind.DECIMAL,
}
_VARCHAR, _VAR_STRING, _STRING, _BLOB, _ENUM, _SET = 15, 253, 254, 252, 247, 248
_GEOMETRY, _JSON, _VECTOR, _COMPRESSED_BLOB, _COMPRESSED_VARCHAR = 255, 245, 242, 140, 141
# Each value stands behind its length; the size of that is the whole metadata.
_LONG_VALUES = {_GEOMETRY: Kind.GEOMETRY, _JSON: Kind.JSON, _VECTOR: Kind.VECTOR}
# MySQL gives the first four a character set, MariaDB all of these.
_WITH_CHARSET = frozenset({_VARCHAR, _VAR_STRING, _STRING, _BLOB})
_WITH_CHARSET_MARIADB = _WITH_CHARSET | {_GEOMETRY, _COMPRESSED_BLOB, _COMPRESSED_VARCHAR}
_NUMERIC = frozenset({1, 2, 3, 4, 5, 8, 9, 13, 246})
_METADATA_BYTES = {4: 1, 5: 1, 15: 2, 253: 2, 254: 2, 247: 2, 248: 2, 16: 2, 246: 2, 252: 1, 17: 1, 18: 1, 19: 1}
_METADATA_BYTES |= {242: 1, 245: 1, 255: 1, 140: 1, 141: 2, 20: 1}

_WITH_PREFIX = frozenset({Kind.TEXT, Kind.BYTES, *_LONG_VALUES.values()})


@dataclass(frozen=True)
class TableMap:
    """What one TABLE_MAP event says.

    Attributes:
        table_id: the number by which rows events name this map.
        database, table: names at the source.
        columns: in the source's order; None where the event lacks the names (row metadata is not FULL).
        key: positions of the primary key's columns, in the key's order; empty where there is none, or where it
            is not said (checksums switched off).
    """

    table_id: int
    database: str
    table: str
    columns: tuple[Column, ...] | None
    key: tuple[int, ...]


class _Cursor:
    """A place in bytes; reading past the end raises MalformedTableMap."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise MalformedTableMap("a TABLE_MAP event is shorter than its own lengths say")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        """A length-encoded integer."""
        first = self.take(1)[0]
        if first < 251:
            return first
        size = {252: 2, 253: 3, 254: 8}.get(first)
        if size is None:
            raise MalformedTableMap(f"a length cannot begin with {first}")
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "replace")

    def __bool__(self) -> bool:
        return self.at < len(self.data)


def parse_table_map(
    body: bytes, charsets: Mapping[int, str], decode_label: Callable[[bytes, str], str], *, mariadb: bool = False
) -> TableMap:
    """Read a TABLE_MAP event.

    Args:
        body: the event after its header, without the checksum.
        charsets: collation number -> name of its character set, as the server lists them.
        decode_label: turns a label's bytes in a character set into text.
        mariadb: MariaDB lists the character sets of more types than MySQL does.

    Raises:
        MalformedTableMap: the lengths in the event do not fit.
    """
    cursor = _Cursor(body)
    table_id = int.from_bytes(cursor.take(TABLE_ID_BYTES), "little")
    cursor.take(2)
    database = cursor.take(cursor.take(1)[0]).decode("utf-8", "replace")
    cursor.take(1)
    table = cursor.take(cursor.take(1)[0]).decode("utf-8", "replace")
    cursor.take(1)
    types = cursor.take(cursor.number())
    metadata = _Cursor(cursor.take(cursor.number()))
    details = [metadata.take(_METADATA_BYTES.get(type_, 0)) for type_ in types]
    cursor.take((len(types) + 7) // 8)
    optional: dict[int, bytes] = {}
    while cursor:
        kind = cursor.take(1)[0]
        optional[kind] = cursor.take(cursor.number())
    # 4: COLUMN_NAME
    if 4 not in optional:
        return TableMap(table_id, database, table, None, ())
    texts = _WITH_CHARSET_MARIADB if mariadb else _WITH_CHARSET
    columns = _columns(types, details, optional, charsets, decode_label, texts)
    return TableMap(table_id, database, table, columns, _key(optional))


def _columns(
    types: bytes,
    details: list[bytes],
    optional: Mapping[int, bytes],
    charsets: Mapping[int, str],
    decode_label: Callable[[bytes, str], str],
    with_charset: frozenset[int],
) -> tuple[Column, ...]:
    real = [_real_type(type_, detail) for type_, detail in zip(types, details, strict=True)]
    names = _Cursor(optional[4])
    texts = [i for i, (type_, _) in enumerate(real) if type_ in with_charset]
    enums = [i for i, (type_, _) in enumerate(real) if type_ in (_ENUM, _SET)]
    numbers = [i for i, (type_, _) in enumerate(real) if type_ in _NUMERIC]
    collations = _collations(texts, optional.get(2), optional.get(3)) | _collations(enums, optional.get(10), optional.get(11))
    bits = optional.get(1, b"")
    unsigned = {i for n, i in enumerate(numbers) if n // 8 < len(bits) and bits[n // 8] & (0x80 >> n % 8)}
    sets = _labels([i for i in enums if real[i][0] == _SET], optional.get(5))
    labels = sets | _labels([i for i in enums if real[i][0] == _ENUM], optional.get(6))
    columns = []
    for i, (type_, length) in enumerate(real):
        charset = charsets.get(collations.get(i, -1), "")
        decoded = tuple(decode_label(label, charset) for label in labels.get(i, ()))
        columns.append(_checked(_column(names.text(), type_, length, details[i], i in unsigned, charset, decoded)))
    return tuple(columns)


def _checked(column: Column) -> Column:
    """The column; the kernels rely on its sizes.

    Raises:
        MalformedTableMap: no server makes such a column.
    """
    kind, size = column.kind, column.length_bytes
    fits = {
        Kind.DECIMAL: 1 <= column.precision <= 65 and column.scale <= min(38, column.precision),
        Kind.BIT: 1 <= column.width <= 64,
        Kind.ENUM: 1 <= size <= 2,
        Kind.SET: 1 <= size <= 8,
    } | dict.fromkeys((Kind.TIME, Kind.DATETIME, Kind.TIMESTAMP), column.scale <= 6)
    if not fits.get(kind, size <= 4 and (size > 0 or kind not in _WITH_PREFIX)):
        raise MalformedTableMap(f"column {column.name} cannot be of the type {column.source_type}, size {size}")
    return column


def _real_type(type_: int, detail: bytes) -> tuple[int, int]:
    """STRING hides ENUM, SET and the upper bits of long CHAR lengths in its two bytes of metadata."""
    if type_ != _STRING:
        return type_, int.from_bytes(detail, "little")
    if detail[0] & 0x30 != 0x30:
        return detail[0] | 0x30, detail[1] | ((detail[0] & 0x30) ^ 0x30) << 4
    return detail[0], detail[1]


def _column(name: str, type_: int, length: int, detail: bytes, unsigned: bool, charset: str, labels: tuple[str, ...]) -> Column:
    if type_ in _WITH_CHARSET_MARIADB and type_ != _GEOMETRY:
        prefix = length if type_ in (_BLOB, _COMPRESSED_BLOB) else (1 if length < 256 else 2)
        compressed = type_ in (_COMPRESSED_BLOB, _COMPRESSED_VARCHAR)
        if charset == BINARY:
            padded = length if type_ == _STRING else 0
            return Column(
                name,
                Kind.BYTES,
                charset=charset,
                length_bytes=prefix,
                width=padded,
                source_type="binary",
                compressed=compressed,
            )
        return Column(
            name, Kind.TEXT, charset=charset, length_bytes=prefix, source_type=f"text in {charset}", compressed=compressed
        )
    if type_ in _LONG_VALUES:
        return Column(name, _LONG_VALUES[type_], length_bytes=length, source_type=_LONG_VALUES[type_].name.lower())
    if type_ in (_ENUM, _SET):
        kind = Kind.ENUM if type_ == _ENUM else Kind.SET
        return Column(name, kind, charset=charset, length_bytes=length, labels=labels, source_type=kind.name.lower())
    found = _KINDS.get(type_, Kind.UNSUPPORTED)
    text = ("unsigned " if unsigned else "") + found.name.lower()
    if found is Kind.DECIMAL:
        return Column(
            name, found, unsigned, precision=detail[0], scale=detail[1], source_type=f"decimal({detail[0]},{detail[1]})"
        )
    if found is Kind.BIT:
        bits = detail[0] + detail[1] * 8
        return Column(name, found, length_bytes=(bits + 7) // 8, width=bits, source_type=f"bit({bits})")
    if found in (Kind.TIME, Kind.DATETIME, Kind.TIMESTAMP):
        return Column(name, found, scale=detail[0], source_type=f"{text}({detail[0]})")
    if found is Kind.UNSUPPORTED:
        return Column(name, found, length_bytes=length, source_type=f"type {type_}")
    return Column(name, found, unsigned, source_type=text)


def _collations(of: list[int], default: bytes | None, each: bytes | None) -> dict[int, int]:
    """Collation numbers of the columns `of`: one for each, or a default with exceptions."""
    if each is not None:
        cursor = _Cursor(each)
        return {i: cursor.number() for i in of}
    if default is None:
        return {}
    cursor = _Cursor(default)
    usual = cursor.number()
    others = dict(_pairs(cursor))
    return {i: others.get(n, usual) for n, i in enumerate(of)}


def _pairs(cursor: _Cursor) -> Iterator[tuple[int, int]]:
    while cursor:
        yield cursor.number(), cursor.number()


def _labels(of: list[int], text: bytes | None) -> dict[int, list[bytes]]:
    if text is None:
        return {}
    cursor = _Cursor(text)
    found = {}
    for i in of:
        found[i] = [cursor.take(cursor.number()) for _ in range(cursor.number())]
    return found


def _key(optional: Mapping[int, bytes]) -> tuple[int, ...]:
    # 8: SIMPLE_PRIMARY_KEY, 9: PRIMARY_KEY_WITH_PREFIX (position and prefix length; 0: the whole column)
    if 8 in optional:
        cursor = _Cursor(optional[8])
        positions = []
        while cursor:
            positions.append(cursor.number())
        return tuple(positions)
    if 9 in optional:
        return tuple(position for position, _ in _pairs(_Cursor(optional[9])))
    return ()


def table_id_of(body: bytes) -> int:
    """The table id at the start of a TABLE_MAP or rows event's body."""
    low, high = struct.unpack_from("<IH", body)
    return int(low | high << 32)
