"""TABLE_MAP events: names, types, signs, character sets and labels, and what is refused."""

import pytest

from replicator.errors import MalformedTableMap
from replicator.tablemap import parse_table_map, table_id_of
from replicator.typemap import Column, Kind
from tests.binlog_writer import Field, pack_integer, write_table_map
from tests.decoding import CHARSETS

LATIN1, GBK, UTF8MB4, BINARY = 8, 28, 45, 63


def parse(body: bytes) -> tuple[Column, ...]:
    """The columns of a table map."""
    columns = parse_table_map(body, CHARSETS.names, CHARSETS.decode_label).columns
    assert columns is not None
    return columns


FIELDS = (
    Field("id", 8, unsigned=True),
    Field("small", 2),
    Field("name", 15, b"\x50\x00", collation=UTF8MB4),
    Field("long_name", 15, b"\x00\x04", collation=LATIN1),
    Field("fixed", 254, b"\xfe\x0c", collation=LATIN1),
    # CHAR(255) of utf8mb4: 1020 bytes, whose upper bits hide in the type's byte
    Field("wide", 254, bytes([0xFE ^ 0x30, 0xFC]), collation=UTF8MB4),
    Field("padded", 254, b"\xfe\x08", collation=BINARY),
    Field("data", 252, b"\x03", collation=BINARY),
    Field("amount", 246, b"\x41\x1e", unsigned=True),
    Field("color", 254, b"\xf7\x01", collation=GBK, labels=("红".encode("gbk"), b"green")),
    Field("flags", 254, b"\xf8\x02", collation=UTF8MB4, labels=(b"a", "ü".encode())),
    Field("bits", 16, b"\x03\x01"),
    Field("at", 18, b"\x06"),
    Field("year", 13),
    Field("ratio", 4, b"\x04"),
    Field("doc", 245, b"\x04"),
)


def test_columns_of_every_kind() -> None:
    """Each column as the rest of the replicator knows it."""
    table_map = parse_table_map(write_table_map(9, "d", "t", FIELDS, [0]), CHARSETS.names, CHARSETS.decode_label)
    assert (table_map.table_id, table_map.database, table_map.table, table_map.key) == (9, "d", "t", (0,))
    columns = {column.name: column for column in table_map.columns or ()}
    assert [*columns] == [field.name for field in FIELDS]
    assert (columns["id"].kind, columns["id"].unsigned) == (Kind.LONGLONG, True)
    assert (columns["small"].kind, columns["small"].unsigned) == (Kind.SHORT, False)
    assert columns["amount"].unsigned
    assert not columns["ratio"].unsigned
    assert [(columns[n].charset, columns[n].length_bytes) for n in ("name", "long_name", "fixed", "wide")] == [
        ("utf8mb4", 1), ("latin1", 2), ("latin1", 1), ("utf8mb4", 2),
    ]  # fmt: skip
    assert (columns["padded"].kind, columns["padded"].width) == (Kind.BYTES, 8)
    assert (columns["data"].kind, columns["data"].length_bytes, columns["data"].width) == (Kind.BYTES, 3, 0)
    assert (columns["amount"].precision, columns["amount"].scale) == (65, 30)
    assert (columns["color"].kind, columns["color"].labels, columns["color"].length_bytes) == (Kind.ENUM, ("红", "green"), 1)
    assert (columns["flags"].kind, columns["flags"].labels, columns["flags"].length_bytes) == (Kind.SET, ("a", "ü"), 2)
    assert (columns["bits"].width, columns["bits"].length_bytes) == (11, 2)
    assert (columns["at"].kind, columns["at"].scale) == (Kind.DATETIME, 6)


def test_signs_count_numbers_only() -> None:
    """The bits of the signs skip what is not a number, in both directions over a byte."""
    fields = [Field(f"c{n}", 3 if n % 2 else 10, unsigned=n % 4 == 1) for n in range(40)]
    assert [c.unsigned for c in parse(write_table_map(1, "d", "t", fields))] == [n % 4 == 1 for n in range(40)]


def test_character_sets_by_default_and_exceptions() -> None:
    """MySQL says the usual one and which columns differ, counted among the text columns."""
    fields = [Field("a", 15, b"\x0a\0"), Field("n", 3), Field("b", 252, b"\2"), Field("c", 15, b"\x0a\0")]
    names = b"".join(pack_integer(len(f.name)) + f.name.encode() for f in fields)
    default = pack_integer(UTF8MB4) + pack_integer(1) + pack_integer(BINARY)
    body = write_table_map(1, "d", "t", fields, full=False)
    body += b"\4" + pack_integer(len(names)) + names + b"\2" + pack_integer(len(default)) + default
    assert [(c.name, c.charset) for c in parse(body)] == [("a", "utf8mb4"), ("n", ""), ("b", "binary"), ("c", "utf8mb4")]


def test_keys_of_both_forms() -> None:
    """Positions alone, or with the length of a prefix."""
    fields = [Field(name, 3) for name in "abc"]
    body = write_table_map(1, "d", "t", fields, [2, 0])
    assert parse_table_map(body, CHARSETS.names, CHARSETS.decode_label).key == (2, 0)
    body = write_table_map(1, "d", "t", fields) + b"\x09\x04" + bytes([1, 0, 2, 5])
    assert parse_table_map(body, CHARSETS.names, CHARSETS.decode_label).key == (1, 2)


def test_without_names_there_are_no_columns() -> None:
    """Row metadata is not FULL: the columns' names would be a guess."""
    body = write_table_map(1, "d", "t", FIELDS, full=False)
    assert parse_table_map(body, CHARSETS.names, CHARSETS.decode_label).columns is None


def test_unknown_metadata_is_stepped_over() -> None:
    """A field that a later version adds has its length before it."""
    body = write_table_map(1, "d", "t", FIELDS[:2]) + b"\xc8\x03abc"
    assert [c.name for c in parse(body)] == ["id", "small"]


def test_many_columns() -> None:
    """More than 250, whose number takes three bytes."""
    assert len(parse(write_table_map(1, "d", "t", [Field(f"c{n}", 3) for n in range(1000)]))) == 1000


def test_any_cut_is_refused() -> None:
    """Wherever the event ends too early: never an IndexError, never a column made up."""
    whole = write_table_map(9, "d", "t", FIELDS, [0])
    full = parse(whole)
    for end in range(len(whole)):
        try:
            columns = parse_table_map(whole[:end], CHARSETS.names, CHARSETS.decode_label).columns
        except MalformedTableMap:
            continue
        # an end between two pieces of the optional metadata looks whole, and lacks what follows
        assert columns is None or [c.name for c in columns] == [c.name for c in full]


@pytest.mark.parametrize(
    "field",
    [
        Field("c", 246, b"\x42\x00"),
        Field("c", 246, b"\x05\x06"),
        Field("c", 246, b"\x00\x00"),
        Field("c", 252, b"\x05", collation=BINARY),
        Field("c", 252, b"\x00", collation=BINARY),
        Field("c", 18, b"\x07"),
        Field("c", 16, b"\x01\x08"),
        Field("c", 16, b"\x00\x00"),
        Field("c", 254, b"\xf7\x03", labels=(b"a",)),
        Field("c", 254, b"\xf8\x09", labels=(b"a",)),
    ],
)
def test_a_column_that_cannot_be(field: Field) -> None:
    """Sizes that no server gives are refused before a kernel relies on them."""
    with pytest.raises(MalformedTableMap):
        parse(write_table_map(1, "d", "t", [field]))


def test_table_id() -> None:
    """Six bytes, the lowest first."""
    assert table_id_of(b"\x01\x02\x03\x04\x05\x06\xff\xff") == 0x060504030201


@pytest.mark.parametrize("first", [251, 255])
def test_a_length_that_cannot_be(first: int) -> None:
    """251 is NULL and 255 an error in the protocol; neither is a length."""
    with pytest.raises(MalformedTableMap):
        parse(write_table_map(1, "d", "t", FIELDS[:1], full=False) + b"\4" + bytes([first]))
