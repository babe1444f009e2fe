"""Column types of the source with values to insert, and tables made of them, for tests that generate both."""

import dataclasses
import datetime
import decimal
from typing import Any

from hypothesis import strategies as st


@dataclasses.dataclass(frozen=True)
class Type:
    """A column type with values to insert.

    Attributes:
        sql: as in CREATE TABLE. kind: how both sides print it, see oracle.PRINT.
        values: what is inserted; the server may change it on the way in.
    """

    sql: str
    kind: str
    values: st.SearchStrategy[Any]


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
