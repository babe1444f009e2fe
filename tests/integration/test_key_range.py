"""Reading a source table page by page in the order of its key: every row once, in the server's own order."""

import uuid
from typing import Any

import pytest

from replicator.key_order import Key, KeyOrder, NotAKey
from replicator.key_range import Block, RangeReader
from replicator.source import Source
from tests.decoding import read_tuple
from tests.fixtures.pipeline import Pipeline

KEYS = {
    "bigs": ("k BIGINT UNSIGNED", "k", ["0", "1", "9223372036854775807", "9223372036854775808", "18446744073709551615", "77"]),
    "negatives": ("k INT", "k", ["-2147483648", "-1", "0", "5", "2147483647", "-77", "8"]),
    "tinies": ("k TINYINT", "k", ["-128", "-3", "0", "3", "127"]),
    "mediums": ("k MEDIUMINT UNSIGNED", "k", ["0", "8388608", "16777215", "9"]),
    "decimals": ("k DECIMAL(30,10)", "k", ["-5.5", "-5.4999999999", "0", "12345678901234567890.0123456789", "3"]),
    "doubles": ("k DOUBLE", "k", ["-1e300", "-0.1", "0.1", "0.30000000000000004", "1e-300"]),
    "words": ("k VARCHAR(20) CHARACTER SET utf8mb4", "k", ["'a'", "'B'", "'ö'", "'z'", "''", "'日本'", "'Zz'", "'😀'"]),
    "binaries": ("k VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", "k", ["'a'", "'A'", "'ab'", "'B'", "'ä'"]),
    "latins": ("k VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_german2_ci", "k", ["'a'", "'ä'", "'b'", "'ß'", "X'81'"]),
    "bytes": ("k VARBINARY(20)", "k", ["X''", "X'00'", "X'00FF'", "X'FF'", "X'61'", "X'6100'"]),
    "fixed": ("k BINARY(4)", "k", ["X'00'", "X'01'", "X'FFFFFFFF'", "X'61'"]),
    "days": ("k DATE", "k", ["'1000-01-01'", "'2024-02-29'", "'9999-12-31'", "'1969-12-31'"]),
    "moments": ("k DATETIME(6)", "k", ["'2024-01-01'", "'2024-01-01 00:00:00.000001'", "'1999-12-31 23:59:59.999999'"]),
    "stamps": ("k TIMESTAMP(3)", "k", ["'2024-03-31 01:30:00'", "'2024-03-31 02:30:00.001'", "'1970-01-02'", "'2038-01-01'"]),
    "spans": ("k TIME(2)", "k", ["'-838:59:59'", "'-00:00:00.10'", "'00:00:00'", "'00:00:00.01'", "'99:00:00'"]),
    "years": ("k YEAR", "k", ["0", "1901", "1999", "2000", "2155"]),
    "bits": ("k BIT(64)", "k", ["b'0'", "b'1'", "255", "256", "18446744073709551615", "9223372036854775808"]),
    "pairs": ("b VARCHAR(5), a INT, c BIGINT", "a, b, c", [f"'{b}', {a}, {c}" for a in (-1, 2) for b in "xZ" for c in (5, -9)]),
}  # fmt: skip


MARIADB_KEYS = {
    "uuids": ("k UUID", "k", [f"'{uuid.UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC834 % (1 << 128))}'" for n in range(9)]),
    "times": ("k UUID", "k", [f"'{n:08x}-{9 - n:04x}-{1 + n % 8}{n:03x}-8000-0000000000{n:02x}'" for n in range(1, 9)]),
    "fours": ("k INET4", "k", ["'0.0.0.0'", "'10.0.0.9'", "'10.0.1.0'", "'255.255.255.255'", "'127.0.0.1'"]),
    "sixes": ("k INET6", "k", ["'::'", "'::1'", "'::ffff:10.0.0.1'", "'fe80::1'", "'2001:db8::ff'", "'ffff::'"]),
}  # fmt: skip


def read_pages(pipeline: Pipeline, table: str, page: int) -> tuple[list[Any], list[Key]]:
    """The column `n` of all rows, as pages of so many bring them, and the last key of every block."""
    source = Source(pipeline.settings.source)
    found = source.describe(f"{pipeline.source.name}.{table}")
    assert found is not None
    order = KeyOrder.read(source, found)
    assert order is not None, table
    reader = RangeReader(source, found, order)
    rows: list[Any] = []
    keys: list[Key] = []
    after: Key = ()
    try:
        while True:
            blocks = list(reader.read(after, (), page))
            for block in blocks:
                rows += [int.from_bytes(fields[-4], "big") for fields in map(read_tuple, split(block))]
                keys.append(block.last)
                after = block.last
            if sum(block.rows for block in blocks) < page:
                return rows, keys
    finally:
        reader.close()
        source.close()


def split(block: Block) -> list[bytes]:
    """Each tuple of a block."""
    return [block.tuples[a:b].tobytes() for a, b in zip(block.starts, block.starts[1:], strict=False)]


def test_every_key_type_is_paged_exactly(pipeline: Pipeline) -> None:
    """Pages of one, two and many rows bring every row once, in the order in which the server sorts the key."""
    for table, (columns, key, values) in (KEYS | (MARIADB_KEYS if pipeline.source.server.name == "mariadb" else {})).items():
        pipeline.source.execute(
            f"CREATE TABLE `{table}` ({columns}, n INT, PRIMARY KEY ({key})) DEFAULT CHARSET utf8mb4",
            f"INSERT IGNORE INTO `{table}` VALUES " + ", ".join(f"({value}, {n})" for n, value in enumerate(values)),
        )
        expected = [n for (n,) in pipeline.source.execute(f"SELECT n FROM `{table}` ORDER BY {key}")]
        for page in (1, 2, len(values) + 1):
            rows, keys = read_pages(pipeline, table, page)
            assert rows == expected, (table, page)
        assert len(keys) == 1


def test_a_page_reads_no_more_than_itself(pipeline: Pipeline) -> None:
    """The server finds the beginning of a page in the index, also behind a text and behind a key of several columns."""
    for table, columns, key in (
        ("texts", "k VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_german2_ci", "k"),
        ("years", "k YEAR, j INT", "k, j"),
        ("bits", "k BIT(20)", "k"),
        *((("uuids", "k UUID", "k"), ("sixes", "k INET6", "k")) if pipeline.source.server.name == "mariadb" else ()),
        ("parts", "k INT, j VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci", "k, j"),
    ):
        pipeline.source.execute(f"CREATE TABLE {table} ({columns}, n INT, PRIMARY KEY ({key}))")
        with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
            value = VALUES[table]
            rows = [(n,) * (1 + value.count("%s")) for n in range(3000)]
            cursor.executemany(f"INSERT INTO {table} VALUES ({value}, %s)", rows)
            conn.commit()
        source = Source(pipeline.settings.source)
        found = source.describe(f"{pipeline.source.name}.{table}")
        assert found is not None
        order = KeyOrder.read(source, found)
        assert order is not None
        reader = RangeReader(source, found, order)
        (middle,) = reader.read((), (), 2000)
        before = read_handler(reader)
        (block,) = reader.read(middle.last, (), 10)
        assert block.rows == 10
        assert read_handler(reader) - before < 100
        reader.close()
        source.close()


VALUES = {
    "texts": "CONCAT('k', %s)", "years": "1990 + (%s DIV 100), %s", "bits": "%s * 300", "parts": "%s DIV 10, CONCAT('k', %s)",
    "uuids": "CAST(INSERT(UUID(), 1, 8, LPAD(HEX(%s), 8, '0')) AS UUID)", "sixes": "CAST(CONCAT('fe80::', HEX(%s)) AS INET6)",
}  # fmt: skip


def read_handler(reader: RangeReader) -> int:
    """How many rows this session has had read so far."""
    with reader._connection.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(value) for _, value in cursor.fetchall())


def test_keys_that_cannot_be_paged_exactly_have_no_order(pipeline: Pipeline) -> None:
    """No key, a key of beginnings, and labels, in which no server looks up where a range begins."""
    tables = {
        "none": "a INT", "prefixes": "a VARCHAR(300), PRIMARY KEY (a(10))", "labels": "a ENUM('x', 'b') PRIMARY KEY",
        "bytes": "a ENUM('x', 'y') CHARACTER SET binary PRIMARY KEY", "unions": "a SET('x', 'y') PRIMARY KEY",
    }  # fmt: skip
    source = Source(pipeline.settings.source)
    for table, columns in tables.items():
        pipeline.source.execute(f"CREATE TABLE `{table}` ({columns})")
        found = source.describe(f"{pipeline.source.name}.{table}")
        assert found is not None
        assert KeyOrder.read(source, found) is None, table
    source.close()


def test_bounds_that_somebody_writes(pipeline: Pipeline) -> None:
    """A bound is an object of the key's first columns; what is none says so."""
    pipeline.source.execute("CREATE TABLE t (a INT, b VARBINARY(9), c DATETIME, PRIMARY KEY (a, b, c))")
    pipeline.source.execute("INSERT INTO t SELECT n, X'FF', '2024-01-01' FROM (SELECT 1 n UNION SELECT 2 UNION SELECT 3) s")
    source = Source(pipeline.settings.source)
    found = source.describe(f"{pipeline.source.name}.t")
    assert found is not None
    order = KeyOrder.read(source, found)
    assert order is not None
    reader = RangeReader(source, found, order)
    low, high = order.parse({"a": 2}), order.parse({"a": 3, "b": "\\xff", "c": "2024-01-01T00:00:00"})
    assert [block.rows for block in reader.read(low, high, 10, inclusive=True)] == [2]
    assert [block.rows for block in reader.read(low, high, 10)] == [1]
    for wrong in ({}, {"b": 1}, {"a": "x"}, {"a": 1 << 40}, {"a": 1, "b": "ff"}, {"a": 1, "b": "\\xff", "c": "now"}):
        with pytest.raises(NotAKey):
            order.parse(wrong)
    reader.close()
    source.close()
