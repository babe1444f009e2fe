"""The oracle: a value that came by the stream, the same value copied by a snapshot, and what the server prints are one."""

import dataclasses
import datetime
import decimal
import ipaddress
import itertools
import json
import math
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from replicator.charsets import Charsets
from tests.fixtures.pipeline import Pipeline
from tests.fixtures.servers import SourceServer

NUMBERS = itertools.count(1)
# Nothing is shrunk: every example asks real servers, and a failing one is printed whole anyway.
EXAMPLES = settings(
    max_examples=int(os.environ.get("TAILRACE_EXPLORE", "5")), deadline=None, print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate), suppress_health_check=list(HealthCheck),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Type:
    """A column type with values to insert.

    Attributes:
        sql: as in CREATE TABLE. kind: how both sides print it, see PRINT.
        values: what is inserted; the server may change it on the way in.
    """

    sql: str
    kind: str
    values: st.SearchStrategy[Any]


# What the source prints, and what the mirror prints; `{}` is the column. Both then go through NORMAL.
PRINT = {
    "number": ("CAST({} AS CHAR)", "{}::text"),
    "year": ("CAST({} + 0 AS CHAR)", "{}::text"),
    "float": ("{} * 1e0", "{}::float8"),
    "date": ("CAST({} AS CHAR)", "to_char({}, 'YYYY-MM-DD')"),
    "instant": ("CAST({} AS CHAR)", "to_char({}, 'YYYY-MM-DD HH24:MI:SS.US')"),
    "span": ("CAST({} AS CHAR)", "(extract(epoch FROM {}) * 1000000)::bigint::text"),
    "text": ("HEX(CONVERT({} USING utf8mb4))", "upper(encode(convert_to({}, 'UTF8'), 'hex'))"),
    "bytes": ("HEX({})", "upper(encode({}, 'hex'))"),
    "bit": ("CAST({} + 0 AS CHAR)", "{}::text"),
    "json": ("CAST({} AS CHAR)", "{}::text"),
    "geometry": ("HEX({})", "upper(encode({}, 'hex'))"),
    "vector": ("HEX({})", "{}::float8[]"),
    "uuid": ("CAST({} AS CHAR)", "{}::text"),
    "inet": ("CAST({} AS CHAR)", "host({})"),
}
_SPAN = re.compile(r"(-?)(\d+):(\d\d):(\d\d)(?:\.(\d+))?")


def normal_source(kind: str, printed: Any, width: int) -> Any:
    """What the source printed, in the form that the mirror prints."""
    if printed is None:
        return None
    if kind == "float":
        return struct.pack("!d", printed)
    if kind == "instant":
        seconds, _, fraction = printed.partition(".")
        return f"{seconds}.{fraction:0<6}"
    if kind == "span":
        match = _SPAN.fullmatch(printed)
        assert match, printed
        sign, hours, minutes, seconds, fraction = match.groups()
        us = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1_000_000 + int((fraction or "").ljust(6, "0"))
        return str(-us if sign else us)
    if kind == "bit":
        return f"{int(printed):0{width}b}"
    if kind == "text":
        return bytes.fromhex(printed).replace(b"\0", "␀".encode()).hex().upper()
    if kind == "json":
        return read_json(printed, nul="␀")
    if kind == "geometry":
        srid, wkb = bytes.fromhex(printed[:8]), bytes.fromhex(printed[8:])
        return (wkb if srid == bytes(4) else wkb[:4] + bytes([wkb[4] | 0x20]) + srid + wkb[5:]).hex().upper()
    if kind == "vector":
        return struct.unpack(f"<{len(printed) // 8}f", bytes.fromhex(printed))
    if kind == "inet":
        return ipaddress.ip_address(printed)
    return printed


def normal_mirror(kind: str, value: Any) -> Any:
    """What the mirror printed, in a form that can be compared."""
    if value is None:
        return None
    if kind == "float":
        return struct.pack("!d", value)
    if kind == "json":
        return read_json(value)
    if kind == "vector":
        return tuple(value)
    return ipaddress.ip_address(value) if kind == "inet" else value


def read_json(text: str, nul: str = "\0") -> Any:
    """A JSON text with exact numbers; NUL in its texts and names replaced by `nul`."""

    def replace(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("\0", nul)
        if isinstance(value, list):
            return [replace(item) for item in value]
        return {replace(key): replace(item) for key, item in value.items()} if isinstance(value, dict) else value

    return replace(json.loads(text, parse_float=decimal.Decimal, parse_int=decimal.Decimal))


def expected_raw(kind: str, printed: Any, raw_hex: str | None) -> str | None:
    """What must stand in _raw for a value, None where Postgres holds it as it is."""
    if printed is None:
        return None
    if kind in ("date", "instant"):
        text = printed[:10]
        try:
            datetime.date.fromisoformat(text)
        except ValueError:
            return str(printed)
    if kind == "text" and b"\0" in bytes.fromhex(printed):
        assert raw_hex is not None
        return "\\x" + raw_hex.lower()
    if kind == "json" and read_json(printed) != read_json(printed, nul="␀"):
        return str(printed)
    return None


# ---------------------------------------------------------------------------------------------------- types and values
def integers(bits: int, *, unsigned: bool) -> st.SearchStrategy[int]:
    """Integers of a width, extremes often."""
    low, high = (0, (1 << bits) - 1) if unsigned else (-(1 << bits - 1), (1 << bits - 1) - 1)
    return st.sampled_from([low, high, 0, 1, low + 1, high - 1]) | st.integers(low, high)


@st.composite
def decimals(draw: st.DrawFn) -> Type:
    """DECIMAL of any precision and scale, with values of up to all digits."""
    precision = draw(st.integers(1, 65))
    scale = draw(st.integers(0, min(30, precision)))
    unscaled = st.integers(-(10**precision) + 1, 10**precision - 1) | st.sampled_from([0, 1, -1, 10**precision - 1])
    exact = unscaled.map(lambda n: str(decimal.Decimal(n).scaleb(-scale, decimal.Context(prec=80))))
    return Type(f"DECIMAL({precision},{scale})", "number", exact)


def clocks(scale: int) -> st.SearchStrategy[str]:
    """A time of day with a fraction."""
    parts = st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 10**scale - 1))
    return parts.map(lambda p: f"{p[0]:02}:{p[1]:02}:{p[2]:02}" + (f".{p[3]:0{scale}}" if scale else ""))


DATES = st.sampled_from(["0000-00-00", "2024-00-10", "2024-02-31", "2024-05-00", "0001-01-01", "9999-12-31", "0000-01-01"]) | (
    st.dates(datetime.date(1, 1, 1)).map(str)
)
SCALES = st.integers(0, 6)
SPANS = st.tuples(st.sampled_from(["", "-"]), st.integers(0, 838) | st.just(0), st.integers(0, 59), st.integers(0, 59))


def spans(scale: int) -> st.SearchStrategy[str]:
    """TIME values, negative fractions and the extremes among them."""
    fraction = st.integers(0, 10**scale - 1).map(lambda n: f".{n:0{scale}}" if scale else "")
    made = st.tuples(SPANS, fraction).map(lambda p: f"{p[0][0]}{p[0][1]}:{p[0][2]:02}:{p[0][3]:02}{p[1]}")
    edges = ["838:59:59", "-838:59:59", "00:00:00", "-00:00:00.1", "-00:00:00.000001", "-00:00:01.5", "00:00:00.999999"]
    return st.sampled_from(edges) | made


STAMPS = st.datetimes(datetime.datetime(1970, 1, 1, 0, 0, 1), datetime.datetime(2038, 1, 19, 3, 14, 6)).map(
    lambda at: at.strftime("%Y-%m-%d %H:%M:%S.%f")
) | st.sampled_from(["0000-00-00 00:00:00", "1970-01-01 00:00:01", "2038-01-19 03:14:07"])
TEMPORAL = st.one_of(
    st.just(Type("DATE", "date", DATES)),
    SCALES.map(lambda n: Type(f"DATETIME({n})", "instant", st.tuples(DATES, clocks(n)).map(" ".join))),
    SCALES.map(lambda n: Type(f"TIMESTAMP({n}) NULL", "instant", STAMPS)),
    SCALES.map(lambda n: Type(f"TIME({n})", "span", spans(n))),
    st.just(Type("YEAR", "year", st.sampled_from([0, 1901, 2155, 2024]))),
)
NUMERIC = st.one_of(
    [
        st.just(Type(name + (" UNSIGNED" if unsigned else ""), "number", integers(bits, unsigned=unsigned)))
        for name, bits in (("TINYINT", 8), ("SMALLINT", 16), ("MEDIUMINT", 24), ("INT", 32), ("BIGINT", 64))
        for unsigned in (False, True)
    ]
) | st.one_of(
    st.just(Type("FLOAT", "float", st.floats(width=32, allow_nan=False, allow_infinity=False))),
    st.just(Type("DOUBLE", "float", st.floats(allow_nan=False, allow_infinity=False))),
    st.just(Type("FLOAT(9,3)", "float", st.floats(-99999, 99999, width=32))),
    decimals(),
)
CHARSETS = [
    "utf8mb4", "utf8mb3", "latin1", "utf16", "utf16le", "utf32", "ucs2", "gbk", "big5", "sjis", "cp932", "eucjpms", "ujis",
    "euckr", "gb2312", "latin2", "cp1251", "koi8r", "greek", "hebrew", "tis620", "ascii", "swe7", "cp850", "macroman",
    "armscii8",
]  # fmt: skip
# Characters of many scripts, those that codecs disagree about, and what texts end in.
ALPHABET = st.sampled_from(
    "aZ09 ?~\\|'\"%\t\n\0éßÿ€„Œ\x81\x9d¥¢£¬¦°ЖяשᚠΩώ中你好彁～〜∥‖－−①Ⅻ黑髙갂똠あアｱ㍿ไทยﬁ─😀\ue000\uffff\ufffd"
)
TEXTS = st.text(ALPHABET, max_size=12) | st.text(max_size=8) | st.sampled_from(["", " ", "a ", "a  b  ", "\0", "x\0 "])
BYTES = st.binary(max_size=12) | st.sampled_from([b"", b"\0", b"a\0\0", b"\0\0a", b"  ", b"\xff" * 12, b"a "])
LABELS = st.lists(
    st.text(st.sampled_from("abcXYZ09 😀é'\"\\中я"), min_size=1, max_size=6).map(str.strip).filter(bool),
    min_size=1, max_size=20, unique_by=str.casefold,
)  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> Type:
    """A text column in some character set, short enough and long enough for both sizes of length prefix."""
    sql = draw(
        st.sampled_from(["CHAR(12)", "CHAR(100)", "VARCHAR(12)", "VARCHAR(400)", "TINYTEXT", "TEXT", "MEDIUMTEXT", "LONGTEXT"])
    )
    return Type(f"{sql} CHARACTER SET {draw(st.sampled_from(CHARSETS))}", "text", TEXTS)


@st.composite
def choices(draw: st.DrawFn) -> Type:
    """An ENUM or SET, labels in some character set that has them."""
    labels, charset = draw(LABELS), draw(st.sampled_from(["utf8mb4", "latin1", "utf16", "gbk", "cp1251"]))
    codec = {"utf8mb4": "utf-8", "latin1": "latin-1", "utf16": "utf-16-be"}.get(charset, charset)
    labels = [label for label in labels if label.encode(codec, "ignore").decode(codec) == label] or ["only"]
    quoted = ",".join("'" + label.replace("\\", "\\\\").replace("'", "''") + "'" for label in labels)
    if draw(st.booleans()):
        return Type(f"ENUM({quoted}) CHARACTER SET {charset} COLLATE {charset}_bin", "text", st.integers(0, len(labels)))
    values = st.sampled_from([0, (1 << len(labels)) - 1]) | st.integers(0, (1 << len(labels)) - 1)
    return Type(f"SET({quoted}) CHARACTER SET {charset} COLLATE {charset}_bin", "text", values)


@st.composite
def bits(draw: st.DrawFn) -> Type:
    """BIT of 1 to 64 bits."""
    width = draw(st.integers(1, 64))
    return Type(f"BIT({width})", "bit", st.integers(0, (1 << width) - 1) | st.sampled_from([0, 1, (1 << width) - 1]))


BINARY = st.sampled_from(
    ["BINARY(12)", "BINARY(255)", "VARBINARY(12)", "VARBINARY(300)", "TINYBLOB", "BLOB", "MEDIUMBLOB", "LONGBLOB"]
).map(lambda sql: Type(sql, "bytes", BYTES))
TYPES = st.one_of(NUMERIC, TEMPORAL, texts(), choices(), bits(), BINARY)
# Keys are made from a row's number, so that they differ.
KEYS = [
    ("INT", lambda n: n),
    ("BIGINT UNSIGNED", lambda n: 2**64 - 1 - n),
    ("DECIMAL(20,6)", lambda n: f"{n - 5}.5"),
    ("VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", lambda n: f"ключ {n}"),
    ("CHAR(20) CHARACTER SET latin1", lambda n: f"clé {n}"),
    ("VARCHAR(40) CHARACTER SET gbk COLLATE gbk_bin", lambda n: f"键 {n}"),
    ("CHAR(9) CHARACTER SET utf16 COLLATE utf16_bin", lambda n: f"😀é {n}"),
    ("VARBINARY(20)", lambda n: bytes([255 - n, 0, n])),
    ("BINARY(8)", lambda n: bytes([n, 0, 0])),
    ("DATETIME(3)", lambda n: f"2024-01-{n + 1:02} 00:00:00.123"),
    ("TIME(6)", lambda n: f"-{n}:00:00.000001"),
    ("DOUBLE", lambda n: n + 0.1),
]


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns c0, c1, ... behind the key k, and rows."""

    key: int
    types: tuple[Type, ...]
    rows: tuple[tuple[Any, ...], ...]

    def create(self, name: str) -> str:
        """The statement that makes it."""
        columns = [f"c{n} {type_.sql}" for n, type_ in enumerate(self.types)]
        return f"CREATE TABLE {name} (k {KEYS[self.key][0]} NOT NULL, {', '.join(columns)}, PRIMARY KEY (k))"


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """A table of up to twelve columns with up to eight rows."""
    types = tuple(draw(st.lists(TYPES, min_size=1, max_size=12)))
    row = st.tuples(*(st.none() | type_.values for type_ in types))
    return Table(draw(st.integers(0, len(KEYS) - 1)), types, tuple(draw(st.lists(row, min_size=1, max_size=8))))


# ---------------------------------------------------------------------------------------------------- the check
def fill(pipeline: Pipeline, name: str, table: Table) -> None:
    """Make a table and insert its rows, impossible dates and values that do not fit too."""
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'")
        cursor.execute(table.create(name))
        for n, row in enumerate(table.rows):
            cursor.execute(f"INSERT INTO {name} VALUES ({', '.join(['%s'] * (len(row) + 1))})", [KEYS[table.key][1](n), *row])
        connection.commit()


def stream_rows(pipeline: Pipeline, origin: str, name: str, table: Table) -> None:
    """Bring the same rows into another table by way of the binlog: inserted elsewhere, moved, and some deleted on the way."""
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'")
        cursor.execute(f"INSERT INTO {name} SELECT * FROM {origin}")
        first = KEYS[table.key][1](0)
        spare = KEYS[table.key][1](20)
        # every value passes through an image before and one after, too
        cursor.execute(f"UPDATE {name} SET k = %s WHERE k = %s", (spare, first))
        cursor.execute(f"UPDATE {name} SET k = %s WHERE k = %s", (first, spare))
        cursor.execute(f"DELETE FROM {name} WHERE k = %s", (KEYS[table.key][1](len(table.rows) - 1),))
        cursor.execute(f"INSERT INTO {name} SELECT * FROM {origin} WHERE k = %s", (KEYS[table.key][1](len(table.rows) - 1),))


def read_source(pipeline: Pipeline, name: str, table: Table) -> list[tuple[list[Any], dict[str, str] | None]]:
    """Rows as the source prints them, in the mirror's form, and what must be in _raw."""
    parts = []
    for n, type_ in enumerate(table.types):
        parts += [PRINT[type_.kind][0].format(f"c{n}"), f"HEX(c{n})"]
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION time_zone = '+00:00', sql_mode = ''")
        cursor.execute(f"SELECT {', '.join(parts)} FROM {name} ORDER BY k")
        found = []
        for row in cursor.fetchall():
            values, raw = [], {}
            for n, type_ in enumerate(table.types):
                printed, raw_hex = row[2 * n], row[2 * n + 1]
                kept = expected_raw(type_.kind, printed, raw_hex)
                if kept is not None:
                    raw[f"c{n}"] = kept
                width = int(type_.sql[4:-1]) if type_.kind == "bit" else 0
                is_gone = kept is not None and type_.kind not in ("text", "json")
                values.append(None if is_gone else normal_source(type_.kind, printed, width))
            found.append((values, raw or None))
    return found


def read_mirror(pipeline: Pipeline, name: str, table: Table, order: str) -> list[tuple[list[Any], dict[str, str] | None]]:
    """Rows as the mirror prints them."""
    parts = [PRINT[type_.kind][1].format(f"c{n}") for n, type_ in enumerate(table.types)]
    rows = pipeline.fetch(f'SELECT {", ".join(parts)}, _raw FROM "{pipeline.source.name}".{name} ORDER BY {order}')
    found = []
    for row in rows:
        values = [normal_mirror(type_.kind, value) for type_, value in zip(table.types, row, strict=False)]
        found.append((values, row[-1]))
    return found


def check(pipeline: Pipeline, made: Sequence[Table]) -> None:
    """Each table twice: filled before the first copy, and by the stream."""
    pairs = [(f"s{n}", f"t{n}", table) for table in made for n in [next(NUMBERS)]]
    for copied, streamed, table in pairs:
        fill(pipeline, copied, table)
        pipeline.source.execute(f"CREATE TABLE {streamed} LIKE {copied}")
    pipeline.catch_up()
    for copied, streamed, table in pairs:
        stream_rows(pipeline, copied, streamed, table)
    pipeline.catch_up()
    for copied, streamed, table in pairs:
        expected = read_source(pipeline, copied, table)
        assert read_source(pipeline, streamed, table) == expected
        order = 'k COLLATE "C"' if "CHAR" in KEYS[table.key][0] else "k"
        assert len(expected) == len(table.rows)
        for name in (copied, streamed):
            assert pipeline.state(name) == ("Synced", None), (name, table.create(name))
            found = read_mirror(pipeline, name, table, order)
            for n, type_ in enumerate(table.types):
                assert [row[0][n] for row in found] == [row[0][n] for row in expected], (name, type_.sql)
            assert [row[1] for row in found] == [row[1] for row in expected], (name, table.create(name))
        same = pipeline.fetch(f'SELECT k::text FROM "{pipeline.source.name}".{copied} ORDER BY {order}')
        assert same == pipeline.fetch(f'SELECT k::text FROM "{pipeline.source.name}".{streamed} ORDER BY {order}')


@EXAMPLES
@given(made=st.lists(tables(), min_size=6, max_size=6))
def test_stream_and_copy_and_server_agree(pipeline: Pipeline, made: list[Table]) -> None:
    """Tables and values of all covered types."""
    check(pipeline, made)


def test_every_type_with_its_edges(pipeline: Pipeline) -> None:
    """Each kind of column, its extremes in one table each; 300 columns in another."""
    fixed = [
        [Type("TINYINT", "number", st.none()), Type("BIGINT UNSIGNED", "number", st.none())],
    ]
    rows = ((-128, 0), (127, 2**64 - 1), (None, None), (0, 2**63))
    check(pipeline, [Table(0, tuple(fixed[0]), rows), wide_table(300), latin1_table(), fraction_table()])


def wide_table(columns: int) -> Table:
    """More columns than one byte of bitmap, one byte of length."""
    types = tuple(Type("INT", "number", st.none()) for _ in range(columns))
    return Table(0, types, (tuple(range(columns)), (None,) * columns, tuple(None if n % 3 else -n for n in range(columns))))


def latin1_table() -> Table:
    """Every byte of latin1 but NUL, those without a character in cp1252 too."""
    text = bytes(range(1, 256)).decode("cp1252", "ignore")
    return Table(0, (Type("VARCHAR(300) CHARACTER SET latin1", "text", st.none()),), ((text,), ("a\0b",), ("",)))


def fraction_table() -> Table:
    """Every number of fractional digits, on both sides of zero."""
    types = tuple(Type(f"TIME({n})", "span", st.none()) for n in range(7))
    rows = tuple(
        (value,) * 7 for value in ("-00:00:00.1", "-00:00:00.9", "-01:02:03.456789", "00:00:00.5", "-838:59:59", "12:00:00")
    )
    return Table(0, types, rows)


@pytest.mark.parametrize("charset", ["big5", "eucjpms", "euckr", "gb18030", "gb2312", "gbk", "sjis", "ujis", "cp932"])
def test_every_character_is_the_servers(source_server: SourceServer, charset: str, source_database: Any) -> None:
    """Every character of the basic plane that a set of several bytes has, from the server's bytes to its text."""
    known = {name for (name,) in source_database.execute("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS")}
    if charset not in known:
        assert (source_server.name, charset) == ("mariadb", "gb18030")
        return
    limit = "max_recursive_iterations" if source_server.name == "mariadb" else "cte_max_recursion_depth"
    with source_database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SET SESSION sql_mode = '', {limit} = 70000")
        cursor.execute(
            "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 65535), c (x, b) AS ("
            f"SELECT x, CONVERT(CHAR(x USING ucs2) USING {charset}) FROM n WHERE x NOT BETWEEN 55296 AND 57343)"
            " SELECT x, HEX(b), HEX(CONVERT(b USING utf8mb4)) FROM c"
        )
        rows = cursor.fetchall()
    charsets = Charsets({}, {})
    checked = 0
    for x, stored, printed in rows:
        if stored is None or (printed == "3F" and x != 0x3F):
            continue
        text = bytes.fromhex(printed).decode()
        if text == "\N{REPLACEMENT CHARACTER}":
            # seven codes of big5, which the server itself cannot print
            continue
        assert charsets.decode(bytes.fromhex(stored), charset) == (text, True), (hex(x), stored)
        checked += 1
    assert checked > 6000


# Of each set characters with codes of one, two, three and four bytes, user-defined and supplementary ones among them.
LONG_CODES = {
    "ujis": {1: "az", 2: "あｱ彁", 3: "é丂\ue3ac\ue757"},
    "eucjpms": {1: "az", 2: "あｱ①", 3: "é丂ⅰ黑\ue3ac"},
    "gb18030": {1: "az", 2: "中€", 4: "ñ㐅\ue7c7\uffff\U00010000😀\U0010ffff"},
}


@pytest.mark.parametrize("charset", LONG_CODES)
def test_keys_with_codes_of_every_length(pipeline: Pipeline, charset: str) -> None:
    """Rows are copied, inserted, changed, re-keyed and deleted by such keys; pages and comparisons go on from them."""
    source = pipeline.source
    known = {name for (name,) in source.execute("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS")}
    if charset not in known:
        assert (source.server.name, charset) == ("mariadb", "gb18030")
        return
    texts = [text for size, texts in LONG_CODES[charset].items() for text in texts if measure(pipeline, charset, text) == size]
    assert len(texts) == sum(map(len, LONG_CODES[charset].values()))
    pipeline.configure(replicator={"snapshot_page_rows": 2, "snapshot_slice_rows": 2})
    for name in ("c", "s"):
        source.execute(f"CREATE TABLE {name} (k VARCHAR(9) CHARACTER SET {charset} COLLATE {charset}_bin PRIMARY KEY, n INT)")
    insert_texts(pipeline, "c", texts)
    pipeline.catch_up()
    insert_texts(pipeline, "s", texts)
    source.execute("UPDATE s SET n = n + 1", "UPDATE s SET k = CONCAT(k, k) WHERE n % 2 = 0", "UPDATE c SET k = CONCAT(k, 'x')")
    source.execute("DELETE FROM c WHERE n % 3 = 0", "DELETE FROM s WHERE n % 3 = 0")
    with pipeline.following():
        pipeline.sync()
        for name in ("c", "s"):
            pipeline.fetch("SELECT warehouse.verify(%s)", f"{source.name}.{name}")
        pipeline.wait_until(lambda: pipeline.fetch("SELECT state FROM warehouse.verifications") == [("Equal",)] * 2)
    pipeline.assert_equal("c", "s", order="n")
    assert pipeline.fetch("SELECT count(*) FROM warehouse.quarantine") == [(0,)]


def measure(pipeline: Pipeline, charset: str, text: str) -> int:
    """How many bytes a character takes in a set."""
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT LENGTH(CONVERT(%s USING {charset}))", (text,))
        return int(cursor.fetchone()[0])


def insert_texts(pipeline: Pipeline, table: str, texts: Sequence[str]) -> None:
    """A row for each text, and one where it stands between others."""
    with pipeline.source.connect() as connection, connection.cursor() as cursor:
        for n, text in enumerate(texts):
            cursor.execute(f"INSERT INTO {table} VALUES (%s, %s), (%s, %s)", (text, n, f"q{text}q", 100 + n))


def test_twin_normalises() -> None:
    """The comparison itself: spans in microseconds, fractions to six digits, NUL as its sign."""
    assert normal_source("span", "-00:00:00.10", 0) == "-100000"
    assert normal_source("span", "838:59:59", 0) == str((838 * 3600 + 59 * 60 + 59) * 1_000_000)
    assert normal_source("instant", "2024-01-01 00:00:00.5", 0) == "2024-01-01 00:00:00.500000"
    assert normal_source("text", "610062", 0) == "61E2908062"
    assert normal_source("bit", "5", 4) == "0101"
    assert expected_raw("date", "2024-00-10", None) == "2024-00-10"
    assert expected_raw("date", "2024-02-29", None) is None
    assert math.copysign(1, struct.unpack("!d", normal_source("float", -0.0, 0))[0]) == -1
