"""Rows and events that cannot be applied: set aside, tried again, skipped; their table and the stream go on."""

import pytest

from replicator.errors import UnsupportedEvent
from tests.fixtures.pipeline import SOURCE, Pipeline

LONG = 2000


def held(pipeline: Pipeline) -> list[tuple[int, str | None, str | None, str]]:
    """What is in the quarantine: id, table without its database, operation, state."""
    rows = pipeline.fetch("SELECT id, split_part(table_name, '.', 2), operation, state FROM warehouse.quarantine ORDER BY id")
    return [(number, table, operation, state) for number, table, operation, state in rows]


def counted(pipeline: Pipeline, table: str) -> int:
    """How many rows warehouse.table_status says are set aside."""
    name = f"{pipeline.source.name}.{table}"
    return int(pipeline.fetch("SELECT quarantined FROM warehouse.table_status WHERE table_name = %s", name)[0][0])


def test_keys_that_postgres_cannot_hold(pipeline: Pipeline) -> None:
    """A zero date in a key sets the row aside with its images; a row that gets such a key leaves the mirror; others go on."""
    source = pipeline.source
    source.execute(
        "CREATE TABLE t (d DATE, n INT, PRIMARY KEY (d))", "INSERT INTO t VALUES ('2024-01-01', 1), ('2024-01-02', 2)"
    )
    pipeline.catch_up()
    with source.connect() as conn, conn.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute("INSERT INTO t VALUES ('0000-00-00', 3), ('2024-01-03', 3)")
        cursor.execute("UPDATE t SET d = '2024-00-10' WHERE n = 2")
        cursor.execute("UPDATE t SET n = 4 WHERE d = '0000-00-00'")
        cursor.execute("DELETE FROM t WHERE n = 4")
        cursor.execute("UPDATE t SET n = 10 WHERE n = 1")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "d::text, n") == [("2024-01-01", 10), ("2024-01-03", 3)]
    assert pipeline.state("t") == ("Synced", None)
    assert [row[1:] for row in held(pipeline)] == [
        ("t", "insert", "Held"), ("t", "update", "Held"), ("t", "update", "Held"), ("t", "delete", "Held"),
    ]  # fmt: skip
    assert counted(pipeline, "t") == 4
    # A row image: no NULLs, a date of three bytes, an int.
    raw, event_type = pipeline.fetch("SELECT raw, event_type FROM warehouse.quarantine ORDER BY id")[0]
    assert (raw[1:], event_type) == (bytes(3) + b"\3\0\0\0", 30)
    assert pipeline.deleted_keys("t") == [{"d": "2024-01-02"}]
    assert pipeline.fetch("SELECT rows FROM warehouse.tables") == [(2,)]
    keys = [key for (key,) in pipeline.fetch("SELECT key FROM warehouse.quarantine ORDER BY id")]
    assert keys == [{"d": {"raw": day}} for day in ("0000-00-00", "2024-00-10", "0000-00-00", "0000-00-00")]
    # Tried again, the row is as at the source: still there under its key, or gone.
    ids = [str(row[0]) for row in held(pipeline)]
    assert pipeline.run("replicator", "retry", *ids).returncode == 0
    with pipeline.following():
        pipeline.wait_until(lambda: [row[3] for row in held(pipeline)] == ["Retried", "Held", "Retried", "Retried"])
        assert "retry" in pipeline.fetch("SELECT reason FROM warehouse.quarantine WHERE id = %s", int(ids[1]))[0][0]
        # Its key is corrected at the source: the row is in the mirror, and what was held ends.
        pipeline.source.execute("SET SESSION sql_mode = ''", "UPDATE t SET d = '2024-01-10', n = 20 WHERE n = 2")
        pipeline.sync()
        pipeline.fetch("SELECT 1 FROM warehouse.retry(%s)", int(ids[1]))
        pipeline.wait_until(lambda: {row[3] for row in held(pipeline)} == {"Retried"})
        pipeline.wait_until(lambda: pipeline.state("t") == ("Synced", None))
    assert pipeline.read_mirror("t", "d::text, n") == [("2024-01-01", 10), ("2024-01-03", 3), ("2024-01-10", 20)]
    assert counted(pipeline, "t") == 0


def test_rows_that_postgres_refuses(pipeline: Pipeline) -> None:
    """A key too long for an index is set aside among good rows; a later row of the key, and a second try, find their place."""
    pipeline.source.execute("CREATE TABLE t (k VARBINARY(3000) PRIMARY KEY, n INT)", "INSERT INTO t VALUES ('a', 1)")
    pipeline.catch_up()
    # Bytes that do not compress, so that the key stays too long.
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES ('b', 2)")
        cursor.execute(f"INSERT INTO t VALUES (CONCAT({', '.join(['RANDOM_BYTES(1000)'] * 3)}), 3), ('c', 3)")
        cursor.execute(f"UPDATE t SET k = CONCAT({', '.join(['RANDOM_BYTES(1000)'] * 3)}) WHERE n = 2")
        cursor.execute("INSERT INTO t VALUES ('d', 4)")
    pipeline.catch_up()
    assert pipeline.read_mirror("t") == [(b"a", 1), (b"c", 3), (b"d", 4)]
    assert pipeline.state("t") == ("Synced", None)
    assert [row[1:] for row in held(pipeline)] == [("t", "insert", "Held"), ("t", "update", "Held")]
    assert "exceeds" in pipeline.fetch("SELECT reason FROM warehouse.quarantine")[0][0]
    # Without the index the rows are welcome.
    first, second = (row[0] for row in held(pipeline))
    with pipeline.following():
        pipeline.fetch("SELECT 1 FROM warehouse.retry(%s)", first)
        pipeline.wait_until(lambda: held(pipeline)[0][3] == "Held")
        schema = pipeline.source.name
        pipeline.conn.execute(f"ALTER TABLE {schema}.t DROP CONSTRAINT t_pkey")
        assert pipeline.run("replicator", "retry", str(first), str(second)).returncode == 0
        pipeline.wait_until(lambda: {row[3] for row in held(pipeline)} == {"Retried"})
    pipeline.assert_equal("t")
    seqs = [row[0] for row in pipeline.read_mirror("t", "_seq", order="1")]
    assert len(set(seqs)) == len(seqs)
    assert counted(pipeline, "t") == 0


def test_a_second_try_brings_the_row_as_it_is(pipeline: Pipeline) -> None:
    """Entries of former versions, which know no key: the row changed again, or is not there, while an image was held."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    pipeline.catch_up()
    schema = pipeline.source.name
    for operation, row in (("update", (1, 100)), ("insert", (3, 300))):
        pipeline.conn.execute(
            "INSERT INTO warehouse.quarantine (source, table_name, position, reason, raw, operation, seq, columns)"
            " VALUES (%s, %s, 'x:4', 'test', %s, %s, 1, '[\"id\", \"n\"]')",
            (SOURCE, f"{schema}.t", _tuple(*row), operation),
        )
    pipeline.source.execute("UPDATE t SET n = 5 WHERE id = 1")
    with pipeline.following():
        pipeline.sync()
        for number, *_ in held(pipeline):
            pipeline.fetch("SELECT 1 FROM warehouse.retry(%s)", number)
        pipeline.wait_until(lambda: {row[3] for row in held(pipeline)} == {"Retried"})
        pipeline.source.execute("INSERT INTO t VALUES (4, 4)")
        pipeline.sync()
    assert pipeline.read_mirror("t") == [(1, 5), (2, 2), (4, 4)]
    assert pipeline.fetch("SELECT rows FROM warehouse.tables") == [(3,)]


def _tuple(*numbers: int) -> bytes:
    """A COPY tuple of integers, with _seq 1, no commit time and no _raw."""
    fields = [number.to_bytes(4, "big") for number in numbers]
    parts = [len(field).to_bytes(4, "big") + field for field in (*fields, (1).to_bytes(8, "big"))]
    return (len(numbers) + 3).to_bytes(2, "big") + b"".join(parts) + b"\xff" * 8


def test_an_event_that_is_skipped(pipeline: Pipeline) -> None:
    """What stops the stream is held with its bytes; once it is skipped the stream goes on, and the tables are copied afresh."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1)")
    pipeline.catch_up()
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        cursor.execute("SET SESSION binlog_format = STATEMENT")
        cursor.execute("INSERT INTO t VALUES (2, 2)")
    pipeline.source.execute("INSERT INTO t VALUES (3, 3)")
    for _ in range(2):
        with pytest.raises(UnsupportedEvent):
            pipeline.catch_up()
    rows = pipeline.fetch("SELECT id, table_name, state, raw FROM warehouse.quarantine")
    assert [(table, state) for _, table, state, _ in rows] == [(None, "Held")]
    assert b"INSERT INTO t VALUES (2, 2)" in rows[0][3]
    listed = pipeline.run("replicator", "quarantine", "--json")
    assert f'"id": {rows[0][0]}' in listed.stdout
    assert pipeline.run("replicator", "skip", str(rows[0][0])).returncode == 0
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.run("replicator", "skip", "999999").returncode != 0
