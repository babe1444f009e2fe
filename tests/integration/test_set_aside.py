"""Rows that cannot be applied, wherever they come by: copies, tables without a key, huge transactions, cascades."""

from typing import Any

from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, make_source_database

# An index that Postgres cannot make for n = 13: such a row is refused by its own value.
REFUSING = "CREATE INDEX refusing ON {schema}.{table} ((1 / (n - 13)))"
HELD = "SELECT operation, state FROM warehouse.quarantine ORDER BY id"


def refuse(pipeline: Pipeline, table: str) -> None:
    """Make Postgres refuse rows with n = 13."""
    pipeline.conn.execute(REFUSING.format(schema=pipeline.source.name, table=table))


def states(pipeline: Pipeline) -> list[tuple[str, str]]:
    """What was set aside, and what became of it."""
    return [(operation, state) for operation, state in pipeline.fetch(HELD)]


def troubles(pipeline: Pipeline) -> int:
    """How often a table failed or was copied because something did not fit."""
    found = pipeline.fetch("SELECT count(*) FROM warehouse.state_changes WHERE new_state IN ('Failed', 'ResyncRequired')")
    return int(found[0][0])


def retry(pipeline: Pipeline, *, of: str = "state = 'Held'") -> None:
    """Have what is held tried again, and wait for the outcome."""
    pipeline.fetch(f"SELECT warehouse.retry(id) FROM warehouse.quarantine WHERE {of}")
    pipeline.wait_until(lambda: "RetryRequested" not in {state for _, state in states(pipeline)})
    pipeline.wait_until(lambda: pipeline.fetch("SELECT count(*) FROM warehouse.tables WHERE state <> 'Synced'") == [(0,)])


def verify(pipeline: Pipeline, table: str, *, repair: bool = False) -> tuple[Any, ...]:
    """Compare a table: its state, and how many rows are missing, extra, and in the quarantine."""
    number = pipeline.fetch("SELECT warehouse.verify(%s, %s)", f"{pipeline.source.name}.{table}", repair)[0][0]
    done = "SELECT state, missing, extra, quarantined FROM warehouse.verifications WHERE id = %s AND finished_at IS NOT NULL"
    pipeline.wait_until(lambda: bool(pipeline.fetch(done, number)))
    return tuple(pipeline.fetch(done, number)[0])


def test_copies_in_slices(pipeline: Pipeline) -> None:
    """Keys that no mirror can hold, one at each page's end among them, and a row that Postgres refuses: all others come."""
    pipeline.configure(replicator={"snapshot_page_rows": 2, "snapshot_slice_rows": 2})
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
        cursor.execute("CREATE TABLE t (d DATE, n INT, PRIMARY KEY (d))")
        days = ["0000-00-00", "2024-00-10", "2024-01-00", "2024-01-01", "2024-01-02", "2024-02-31", "2024-04-31", "2024-05-01"]
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", [(day, n) for n, day in enumerate(days)])
        cursor.execute("CREATE TABLE k (k VARBINARY(3000) PRIMARY KEY, n INT)")
        cursor.execute(f"INSERT INTO k VALUES (CONCAT('b', {', '.join(['RANDOM_BYTES(990)'] * 3)}), 2), ('a', 1), ('c', 3)")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "d::text, n") == [("2024-01-01", 3), ("2024-01-02", 4), ("2024-05-01", 7)]
    assert pipeline.read_mirror("k") == [(b"a", 1), (b"c", 3)]
    assert pipeline.state("t") == pipeline.state("k") == ("Synced", None)
    keys = [key for (key,) in pipeline.fetch("SELECT key FROM warehouse.quarantine WHERE table_name LIKE '%%.t' ORDER BY id")]
    assert keys == [{"d": {"raw": day}} for day in (*days[:3], *days[5:7])]
    raw, position = pipeline.fetch("SELECT raw, position FROM warehouse.quarantine WHERE form = 'result' ORDER BY id")[0]
    # A row of the binary protocol: OK, no NULLs, a date without bytes, an int.
    assert (raw, "copy" in position) == (b"\0\0\0" + bytes(4), True)
    with pipeline.following():
        assert verify(pipeline, "t", repair=True) == ("Incomplete", 0, 0, 5)
        assert verify(pipeline, "k", repair=True) == ("Incomplete", 0, 0, 1)
        # Another copy sets them aside anew, once; a change that can be applied ends it.
        pipeline.fetch("SELECT warehouse.resync(%s)", f"{pipeline.source.name}.k")
        pipeline.wait_until(lambda: pipeline.state("k")[0] == "Synced" and len(states(pipeline)) == 7)
        pipeline.source.execute("DELETE FROM k WHERE n = 2")
        pipeline.sync()
        assert verify(pipeline, "k") == ("Equal", 0, 0, 0)
        pipeline.source.execute(
            "SET SESSION sql_mode = ''", "UPDATE t SET d = '2023-01-01' WHERE n = 5", "DELETE FROM t WHERE n = 1"
        )
        pipeline.sync()
        retry(pipeline)
    assert pipeline.read_mirror("t", "n", order="1") == [(3,), (4,), (5,), (7,)]
    quarantined = pipeline.fetch("SELECT table_name, quarantined FROM warehouse.table_status ORDER BY 1")
    # zero, a day of month 0 that is still there, two days that no month has; not the one that was deleted
    assert [count for _, count in quarantined] == [0, 3]
    assert troubles(pipeline) == 0


def test_whole_copies_and_later_changes(pipeline: Pipeline) -> None:
    """A key that pages cannot follow: a refused row leaves the copy, its next change brings it, or takes it for good."""
    pipeline.source.execute(
        "CREATE TABLE t (k ENUM('a', 'b', 'c') PRIMARY KEY, n INT)", "INSERT INTO t VALUES ('a', 1), ('b', 2)"
    )
    pipeline.catch_up()
    refuse(pipeline, "t")
    pipeline.source.execute("UPDATE t SET n = 13 WHERE k = 'a'", "INSERT INTO t VALUES ('c', 13)")
    pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.t",))
    pipeline.catch_up()
    assert pipeline.read_mirror("t") == [("b", 2)]
    with pipeline.following():
        assert verify(pipeline, "t", repair=True) == ("Incomplete", 0, 0, 2)
        pipeline.source.execute("UPDATE t SET n = 14 WHERE k = 'a'", "DELETE FROM t WHERE k = 'c'")
        pipeline.sync()
        assert verify(pipeline, "t", repair=True) == ("Equal", 0, 0, 0)
    pipeline.assert_equal("t", order="n")
    assert {state for _, state in states(pipeline)} == {"Skipped"}
    assert pipeline.fetch("SELECT rows FROM warehouse.tables") == [(2,)]


def test_tables_without_a_key(pipeline: Pipeline) -> None:
    """Held copies of a row are a part of the multiset: a deletion ends one, and a second try brings one back."""
    pipeline.source.execute("CREATE TABLE t (n INT, w VARCHAR(9))", "INSERT INTO t VALUES (1, 'a'), (1, 'a'), (13, 'x')")
    pipeline.catch_up()
    pipeline.source.execute("DELETE FROM t WHERE n = 13")
    pipeline.catch_up()
    refuse(pipeline, "t")
    pipeline.source.execute("INSERT INTO t VALUES (13, 'x'), (13, 'x'), (13, 'y'), (2, 'b'), (13, 'z')")
    pipeline.catch_up()
    # Deletions of rows that are held, in the same and in later transactions; a row that becomes refused, and welcome again.
    pipeline.source.execute(
        "DELETE FROM t WHERE w = 'x' LIMIT 1", "UPDATE t SET n = 13 WHERE w = 'b'", "UPDATE t SET n = 3 WHERE w = 'y'"
    )
    pipeline.catch_up()
    assert pipeline.read_mirror("t", order="1, 2") == [(1, "a"), (1, "a"), (3, "y")]
    assert states(pipeline) == [
        ("insert", "Skipped"), ("insert", "Held"), ("insert", "Skipped"), ("insert", "Held"), ("insert", "Held"),
    ]  # fmt: skip
    with pipeline.following():
        assert verify(pipeline, "t", repair=True) == ("Incomplete", 0, 0, 3)
        # A copy holds them anew.
        pipeline.fetch("SELECT warehouse.resync(%s)", f"{pipeline.source.name}.t")
        pipeline.wait_until(lambda: pipeline.state("t")[0] == "Synced" and len(states(pipeline)) == 8)
        pipeline.source.execute("DELETE FROM t WHERE w = 'b'")
        pipeline.sync()
        assert verify(pipeline, "t") == ("Incomplete", 0, 0, 2)
        pipeline.conn.execute(f"DROP INDEX {pipeline.source.name}.refusing")
        retry(pipeline, of="state = 'Held' AND operation = 'copy'")
        assert verify(pipeline, "t") == ("Equal", 0, 0, 0)
        pipeline.source.execute("DELETE FROM t WHERE w = 'x'")
        pipeline.sync()
    pipeline.assert_equal("t", order="n, w")
    assert troubles(pipeline) == 0


def test_transactions_in_parts(pipeline: Pipeline) -> None:
    """A refused row in the first, a middle and the last part of a transaction: what the other parts wrote stays."""
    pipeline.configure(replicator={"batch_rows": 20})
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "CREATE TABLE l (n INT)")
    pipeline.catch_up()
    refuse(pipeline, "t")
    pipeline.conn.execute(REFUSING.replace("refusing", "refusing_l").format(schema=pipeline.source.name, table="l"))
    rows = [(i, 13 if i in (3, 120, 121, 299) else 1000 + i) for i in range(300)]
    with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        for i in range(0, 300, 10):
            cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows[i : i + 10])
            cursor.executemany("INSERT INTO l VALUES (%s)", [(n,) for _, n in rows[i : i + 10]])
        cursor.execute("DELETE FROM l WHERE n = 13 LIMIT 1")
        cursor.execute("UPDATE t SET n = 12 WHERE id = 121")
        conn.commit()
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "count(*)", order="1") == [(297,)]
    assert pipeline.read_mirror("l", "count(*)", order="1") == [(296,)]
    assert sorted(states(pipeline)) == [("insert", "Held")] * 6 + [("insert", "Skipped")]
    assert pipeline.fetch("SELECT sum(rows)::int FROM warehouse.tables") == [(297 + 296,)]
    assert troubles(pipeline) == 0


def test_cascades(mariadb_server: Any, database: Database, tmp_path: Any) -> None:
    """Parents and children that are held: what the cascade does to the others is derived, or their tables are copied afresh."""
    with make_source_database(mariadb_server) as source, make_pipeline(source, database, tmp_path) as pipeline:
        source.execute(
            "CREATE TABLE a (id INT PRIMARY KEY, n INT)",
            "CREATE TABLE b (id INT PRIMARY KEY, a INT, n INT,"
            " FOREIGN KEY (a) REFERENCES a (id) ON DELETE CASCADE ON UPDATE CASCADE)",
            "CREATE TABLE c (id INT PRIMARY KEY, b INT, n INT, FOREIGN KEY (b) REFERENCES b (id) ON DELETE CASCADE)",
            "INSERT INTO a VALUES (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)",
            "INSERT INTO b VALUES (11, 1, 1), (12, 2, 1), (13, 3, 1), (14, 4, 1), (15, 5, 1)",
            "INSERT INTO c VALUES (111, 11, 1), (112, 12, 1), (113, 13, 1), (114, 14, 1)",
        )
        pipeline.catch_up()
        refuse(pipeline, "a")
        pipeline.conn.execute(f"CREATE INDEX ON {source.name}.b ((1 / (a - 50)), (1 / (n - 13)))")
        with source.connect(autocommit=False) as conn, conn.cursor() as cursor:
            # A refused parent that moves takes its children along, and one that goes takes them away.
            cursor.execute("UPDATE a SET id = 30, n = 13 WHERE id = 3")
            cursor.execute("UPDATE a SET n = 13 WHERE id = 1")
            cursor.execute("INSERT INTO c VALUES (115, 15, 1)")
            conn.commit()
            cursor.execute("DELETE FROM a WHERE id = 1")
            conn.commit()
        pipeline.catch_up()
        assert troubles(pipeline) == 0
        assert pipeline.read_mirror("a", "id", order="1") == [(2,), (4,), (5,)]
        assert pipeline.read_mirror("b", "id, a") == [(12, 2), (13, 30), (14, 4), (15, 5)]
        assert pipeline.read_mirror("c", "id", order="1") == [(112,), (113,), (114,), (115,)]
        # A child that is held may have children of its own, and a cascade may make a row that is refused.
        with source.connect() as conn, conn.cursor() as cursor:
            cursor.execute("UPDATE b SET n = 13 WHERE id = 12")
            cursor.execute("DELETE FROM a WHERE id = 2")
            cursor.execute("UPDATE a SET id = 50 WHERE id = 4")
        pipeline.catch_up()
        assert pipeline.read_mirror("a", "id", order="1") == [(5,), (50,)]
        assert pipeline.read_mirror("b", "id, a") == [(13, 30), (15, 5)]
        assert pipeline.read_mirror("c", "id", order="1") == [(113,), (114,), (115,)]
        assert {pipeline.state(name)[0] for name in "abc"} == {"Synced"}
        pipeline.conn.execute(f"DROP INDEX {source.name}.refusing, {source.name}.b_expr_expr1_idx")
        with pipeline.following():
            retry(pipeline)
        pipeline.assert_equal("a", "b", "c")
