"""The oracle for the types that only one of the servers has, or that are more than one number or text."""

import json
import math
import struct
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.column_types import KEYS, TEXTS, Table, Type, texts
from tests.fixtures.pipeline import Pipeline
from tests.oracle import EXAMPLES, check

# ---------------------------------------------------------------------------------------------------- values
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([0, -1, 32767, 32768, 65535, 65536, -32769, 2**31, 2**32, 2**63, 2**64 - 1, 1e15, 1e-15, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5), max_leaves=20
)
JSON = Type("JSON", "json", DOCUMENTS.map(json.dumps))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTOR = Type(
    "VECTOR(16)", "vector", st.lists(FLOATS, min_size=1, max_size=16).map(lambda row: struct.pack(f"<{len(row)}f", *row))
)
# Longitude and latitude, so that they are valid for every SRID below.
POINTS = st.tuples(st.floats(-180, 180).map(lambda x: x or 180.0), st.floats(-89, 89)).filter(lambda p: p[0] > -180)


def write_shape(kind: int, body: bytes) -> bytes:
    """WKB, the lowest byte first."""
    return struct.pack("<BI", 1, kind) + body


def write_points(points: list[tuple[float, float]]) -> bytes:
    """Coordinates behind their number."""
    return struct.pack("<I", len(points)) + b"".join(struct.pack("<dd", *point) for point in points)


SHAPES = st.recursive(
    POINTS.map(lambda point: write_shape(1, struct.pack("<dd", *point)))
    | st.lists(POINTS, min_size=2, max_size=5).map(lambda points: write_shape(2, write_points(points))),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(
        lambda shapes: write_shape(7, struct.pack("<I", len(shapes)) + b"".join(shapes))
    ),
    max_leaves=5,
)
GEOMETRY = Type(
    "GEOMETRY",
    "geometry",
    st.tuples(st.sampled_from([0, 4326, 3857]), SHAPES).map(lambda pair: struct.pack("<I", pair[0]) + pair[1]),
)
LONG_TEXTS = TEXTS | TEXTS.map(lambda text: text * 40) | st.text(max_size=400)
LONG_BYTES = st.binary(max_size=300) | st.binary(min_size=1, max_size=3).map(lambda raw: raw * 90)


@st.composite
def compressed(draw: st.DrawFn) -> Type:
    """A column that MariaDB stores packed; values short of the threshold and well beyond it."""
    if draw(st.booleans()):
        sql = draw(st.sampled_from(["VARBINARY(200)", "VARBINARY(300)", "TINYBLOB", "BLOB", "MEDIUMBLOB", "LONGBLOB"]))
        return Type(f"{sql} COMPRESSED", "bytes", LONG_BYTES)
    sql = draw(st.sampled_from(["VARCHAR(60)", "VARCHAR(500)", "TINYTEXT", "TEXT", "MEDIUMTEXT", "LONGTEXT"]))
    charset = draw(st.sampled_from(["utf8mb4", "latin1", "utf16", "gbk", "cp1251", "ujis"]))
    return Type(f"{sql} COMPRESSED CHARACTER SET {charset}", "text", LONG_TEXTS)


@st.composite
def byte_labels(draw: st.DrawFn) -> Type:
    """An ENUM or SET whose labels are bytes."""
    # MySQL cannot make a SET whose labels are not UTF-8
    codec = draw(st.sampled_from(["latin-1", "utf-8"]))
    text = st.text(st.sampled_from("abcxyz\x80\x9f\xa1\xe9\xff"), min_size=1, max_size=4)
    labels = draw(st.lists(text.map(lambda text: text.encode(codec)), min_size=1, max_size=8, unique=True))
    listed = ",".join(f"x'{label.hex()}'" for label in labels)
    if codec == "latin-1":
        return Type(f"ENUM({listed}) CHARACTER SET binary", "bytes", st.integers(0, len(labels)))
    return Type(f"SET({listed}) CHARACTER SET binary", "bytes", st.integers(0, (1 << len(labels)) - 1))


UUIDS = st.uuids(version=4) | st.sampled_from([uuid.UUID(int=0), uuid.UUID("01234567-89ab-1def-8123-456789ab0000")])
ADDRESSES = st.sampled_from(["::", "::ffff:1.2.3.0", "fe80::2000", "2001:db8::"])
UUID = Type("UUID", "uuid", UUIDS.map(str))
INET4 = Type("INET4", "inet", st.ip_addresses(v=4).map(str) | st.sampled_from(["0.0.0.0", "10.0.0.32", "255.255.255.0"]))
INET6 = Type("INET6", "inet", st.ip_addresses(v=6).map(str) | ADDRESSES)
FIXED = Type("BINARY(16)", "bytes", st.binary(max_size=16))

TYPES = {
    "mysql": st.one_of(st.just(JSON), st.just(VECTOR), st.just(GEOMETRY), byte_labels(), st.just(FIXED), texts()),
    "mariadb": st.one_of(
        compressed(), st.sampled_from([UUID, INET4, INET6, GEOMETRY, FIXED]), byte_labels(), texts()
    ),
}  # fmt: skip
# MySQL evaluates these; their results are values that no JSON text has.
EXPRESSIONS = [
    "NULL", "'null'", "CAST('2024-01-02' AS DATE)", "TIMESTAMP'2024-01-02 03:04:05.678'", "CAST('-838:59:59' AS TIME)",
    "CAST('30:00:00.5' AS TIME(1))", "CAST('-00:00:00.1' AS TIME(6))", "CAST(-0.001 AS DECIMAL(65,30))",
    "CAST(0 AS DECIMAL(5))", "CAST(REPEAT('x', 300) AS BINARY)", "b'101'", "CAST(2015 AS YEAR)",
    "ST_GeomFromText('POINT(1 2)')", "1e20", "-0e0", "1e15 + 0.5", "x''", "18446744073709551615",
    "CAST('{\"a\": 1, \"a\": 2}' AS JSON)", "'\\\\ \\\" / \\n \\Z'", "REPEAT('x', 70000)",
    "CAST(CONCAT(REPEAT('[', 99), REPEAT(']', 99)) AS JSON)", "JSON_OBJECT(REPEAT('k', 65535), 70000)",
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- tests
@EXAMPLES
@given(data=st.data())
def test_stream_and_copy_and_server_agree(pipeline: Pipeline, data: st.DataObject) -> None:
    """Generated tables of these types, as in the oracle of the common ones."""
    types = TYPES[pipeline.source.server.name]

    @st.composite
    def tables(draw: st.DrawFn) -> Table:
        chosen = tuple(draw(st.lists(types, min_size=1, max_size=8)))
        row = st.tuples(*(st.none() | type_.values for type_ in chosen))
        return Table(draw(st.integers(0, len(KEYS) - 1)), chosen, tuple(draw(st.lists(row, min_size=1, max_size=8))))

    check(pipeline, data.draw(st.lists(tables(), min_size=6, max_size=6)))


def test_json_is_what_mysql_prints(mysql_pipeline: Pipeline) -> None:
    """Values of SQL types inside a document, as jsonb's own text; JSON null and SQL NULL are two."""
    pipeline = mysql_pipeline
    columns = "id INT PRIMARY KEY, j JSON, n DOUBLE"
    documents = [*EXPRESSIONS[:2], *(f"JSON_ARRAY({text})" for text in EXPRESSIONS[2:])]
    rows = ", ".join(f"({n}, {text}, {n})" for n, text in enumerate(documents))
    pipeline.source.execute(f"CREATE TABLE copied ({columns})", f"INSERT INTO copied VALUES {rows}")
    pipeline.catch_up()
    pipeline.source.execute("CREATE TABLE streamed LIKE copied", "INSERT INTO streamed SELECT * FROM copied")
    pipeline.catch_up()
    expected = pipeline.source.execute("SELECT id, CAST(j AS CHAR), n FROM copied ORDER BY id")
    assert expected[0][1] is None
    assert expected[1][1] == "null"
    for table in ("copied", "streamed"):
        assert pipeline.state(table) == ("Synced", None)
        found = pipeline.read_mirror(table, "id, j::text, n, _raw")
        for (n, printed, *_), (m, text, *_) in zip(expected, found, strict=True):
            assert n == m
            assert text == pipeline.fetch("SELECT %s::jsonb::text", printed)[0][0], EXPRESSIONS[n]
        assert [row[2:] for row in found] == [(row[2], None) for row in expected]


def test_a_row_keeps_its_other_values_beside_json(mysql_pipeline: Pipeline) -> None:
    """Columns on both sides of several JSON columns, in one row and over many, and the counter of rows with a raw form."""
    pipeline = mysql_pipeline
    pipeline.source.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, a JSON, d DATETIME(3), b JSON, x DOUBLE, c JSON, s VARCHAR(20) CHARACTER SET gbk)"
    )
    pipeline.catch_up()
    dates = ("2024-00-10", "2024-01-01 00:00:00.500")
    rows = []
    for n in range(3000):
        first, second = json.dumps([n] * (n % 7)), json.dumps({"n": n, "z": "" if n % 3 else "\0"})
        rows.append((n, first, dates[n % 2], second, math.sqrt(n), None if n % 5 else "null", "你好"[: n % 3]))
    with pipeline.source.connect(autocommit=False) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        cursor.executemany("INSERT INTO t VALUES (%s, %s, %s, %s, %s, %s, %s)", rows)
        connection.commit()
    pipeline.catch_up()
    found = pipeline.read_mirror("t", "id, a::text, d::text, b, x, c::text, s, _raw", order="id")
    for row, (n, a, d, b, x, c, s, raw) in zip(rows, found, strict=True):
        assert (n, json.loads(a), x, c, s) == (row[0], json.loads(row[1]), row[4], row[5], row[6])
        assert b == {"n": n, "z": "␀" if n % 3 == 0 else ""}
        kept = ({} if n % 2 else {"d": "2024-00-10 00:00:00.000"}) | (
            {"b": f'{{"n": {n}, "z": "\\u0000"}}'} if n % 3 == 0 else {}
        )
        assert raw == (kept or None)
        assert d == ("2024-01-01 00:00:00.5" if n % 2 else None)
    raws = sum(1 for n in range(3000) if n % 2 == 0 or n % 3 == 0)
    assert pipeline.fetch("SELECT raw_rows FROM warehouse.tables") == [(raws,)]


def test_keys_of_mariadbs_types(mariadb_pipeline: Pipeline) -> None:
    """UUID and addresses as keys: zero bytes at their end, changed, deleted, and found again."""
    pipeline = mariadb_pipeline
    pipeline.source.execute(
        "CREATE TABLE t (u UUID, a INET6, b INET4, n INT, PRIMARY KEY (u, a, b))",
        "INSERT INTO t VALUES ('00000000-0000-0000-0000-000000000000', '::', '0.0.0.0', 1),"
        " ('01234567-89ab-1def-8123-456789ab0000', '::ffff:1.2.3.0', '10.0.0.32', 2)",
    )
    pipeline.catch_up()
    pipeline.source.execute(
        "UPDATE t SET n = 3 WHERE n = 1",
        "UPDATE t SET a = 'fe80::2000' WHERE n = 2",
        "INSERT INTO t VALUES ('01234567-89ab-1def-8123-456789ab0000', '::', '10.0.0.0', 4)",
        "DELETE FROM t WHERE n = 4",
    )
    pipeline.catch_up()
    printed = "u::text, host(a), host(b), n"
    expected = [(str(u), str(a), str(b), n) for u, a, b, n in pipeline.read_source("t", order="n")]
    assert pipeline.read_mirror("t", printed, order="n") == expected
    # the key that came and went in between left no trace
    old = {"u": "01234567-89ab-1def-8123-456789ab0000", "a": "::ffff:1.2.3.0", "b": "10.0.0.32"}
    assert pipeline.deleted_keys("t") == [old]


def test_a_binary_that_becomes_a_uuid(mariadb_pipeline: Pipeline) -> None:
    """The binlog does not tell them apart, so the altered table is copied afresh, and rows from before stay right."""
    pipeline = mariadb_pipeline
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, b BINARY(16))", "INSERT INTO t VALUES (1, REPEAT('a', 16))")
    pipeline.catch_up()
    pipeline.source.execute(
        "INSERT INTO t VALUES (2, REPEAT('b', 16))", "ALTER TABLE t MODIFY b UUID", "INSERT INTO t VALUES (3, UUID())"
    )
    pipeline.catch_up()
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id, b::text", order="id") == [
        (n, str(value)) for n, value in pipeline.read_source("t", order="id")
    ]


@pytest.mark.parametrize("table", ["sequence", "old_fractions"])
def test_tables_that_are_refused(mariadb_pipeline: Pipeline, table: str) -> None:
    """MariaDB's special tables say why they are not mirrored, and the others go on."""
    pipeline = mariadb_pipeline
    make = {
        "sequence": ["CREATE SEQUENCE odd"],
        "old_fractions": ["SET GLOBAL mysql56_temporal_format = OFF", "CREATE TABLE odd (id INT PRIMARY KEY, t TIME(3))"],
    }[table]
    change = {
        "sequence": "DO NEXTVAL(odd)",
        "old_fractions": "INSERT INTO odd VALUES (1, '01:02:03.456')",
    }[table]
    pipeline.catch_up()
    try:
        pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", *make)
        pipeline.source.execute(change, "INSERT INTO t VALUES (1, 1)")
        pipeline.catch_up()
    finally:
        pipeline.source.execute("SET GLOBAL mysql56_temporal_format = ON")
    pipeline.assert_equal("t")
    state, reason = pipeline.state("odd") if pipeline.has_table("odd") else ("", "")
    assert state in ("Failed", "")
    assert table == "sequence" or (state == "Failed" and reason)


def test_rows_from_before_the_layout_was_changed(mariadb_pipeline: Pipeline) -> None:
    """information_schema tells the layout of now; older rows in the binlog are told apart from it, and cost the table only."""
    pipeline = mariadb_pipeline
    pipeline.catch_up()
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
    try:
        pipeline.source.execute(
            "SET GLOBAL mysql56_temporal_format = OFF", "CREATE TABLE old (id INT PRIMARY KEY, at DATETIME(4))"
        )
        pipeline.source.execute("INSERT INTO old VALUES (1, '2024-01-02 03:04:05.6789')")
    finally:
        pipeline.source.execute("SET GLOBAL mysql56_temporal_format = ON")
    pipeline.source.execute(
        "ALTER TABLE old FORCE", "INSERT INTO old VALUES (2, '2024-01-02 03:04:05.6')", "INSERT INTO t VALUES (1, 1)"
    )
    pipeline.catch_up()
    pipeline.assert_equal("t")
    state, reason = pipeline.state("old")
    assert state == "Failed"
    assert "5.3" in str(reason)
    pipeline.fetch("SELECT warehouse.resync(%s)", f"{pipeline.source.name}.old")
    pipeline.catch_up()
    pipeline.assert_equal("old", "t")


@pytest.mark.parametrize("setting", ["sql_select_limit = 1", "sql_mode = 'PAD_CHAR_TO_FULL_LENGTH'"])
def test_a_copy_is_not_bent_by_global_settings(pipeline: Pipeline, setting: str) -> None:
    """A limit or a mode that the server has for everybody neither cuts nor pads what is copied."""
    pipeline.source.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, c CHAR(5))", "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, '')"
    )
    name = setting.partition(" ")[0]
    before: Any = pipeline.source.execute(f"SELECT @@GLOBAL.{name}")[0][0]
    try:
        pipeline.source.execute(f"SET GLOBAL {setting}")
        pipeline.catch_up()
    finally:
        pipeline.source.execute(f"SET GLOBAL {name} = {before!r}")
    pipeline.assert_equal("t")
