"""The replicator between real servers: copies, changes of rows, and resuming."""

import pytest

from tests.fixtures.pipeline import SOURCE, Pipeline


def test_snapshot_then_stream(pipeline: Pipeline) -> None:
    """Rows that were there are copied without a commit time, later ones follow with it."""
    pipeline.source.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, word VARCHAR(20))", "INSERT INTO t VALUES (1, 'one'), (2, NULL)"
    )
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.read_mirror("t", "_committed_at, _raw") == [(None, None)] * 2
    pipeline.source.execute(
        "INSERT INTO t VALUES (3, 'three')", "UPDATE t SET word = 'two' WHERE id = 2", "DELETE FROM t WHERE id = 1"
    )
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.deleted_keys("t") == [{"id": 1}]
    assert pipeline.fetch(f"SELECT id FROM {pipeline.source.name}.t WHERE _committed_at IS NULL") == []
    assert pipeline.fetch(f"SELECT bool_and(now() - _committed_at < '1 min') FROM {pipeline.source.name}.t") == [(True,)]
    assert pipeline.fetch("SELECT inserted, updated, deleted, rows FROM warehouse.tables") == [(3, 1, 1, 2)]


def test_updated_row_gets_a_higher_seq(pipeline: Pipeline) -> None:
    """Every change moves its row to the end of the source's order, across runs too."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 0), (2, 0)")
    pipeline.catch_up()
    seen = 0
    for number in (1, 2, 1):
        pipeline.source.execute(f"UPDATE t SET n = n + 1 WHERE id = {number}")
        pipeline.catch_up()
        newest = pipeline.fetch(f"SELECT id, _seq FROM {pipeline.source.name}.t ORDER BY _seq DESC LIMIT 1")[0]
        assert newest[0] == number
        assert newest[1] > seen
        seen = newest[1]
    assert pipeline.status("seq") == seen


def test_changed_keys(pipeline: Pipeline) -> None:
    """A key that changes is a deletion and a new row; keys that are swapped or shifted within a transaction end up right."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3), (4, 4)")
    pipeline.catch_up()
    pipeline.source.execute("UPDATE t SET id = 10 WHERE id = 4")
    with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        for old, new in ((1, 100), (2, 1), (100, 2)):
            cursor.execute("UPDATE t SET id = %s WHERE id = %s", (new, old))
        conn.commit()
        cursor.execute("UPDATE t SET id = id + 1 ORDER BY id DESC")
        conn.commit()
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.read_mirror("t") == [(2, 2), (3, 1), (4, 3), (11, 4)]
    # The others came back within the batch, or were never in the mirror.
    assert pipeline.deleted_keys("t") == [{"id": 1}]


def test_composite_and_text_keys(pipeline: Pipeline) -> None:
    """Keys of several columns, not in the columns' order, and keys of text, bytes and dates are found again."""
    pipeline.source.execute(
        "CREATE TABLE pair (a INT, v INT, b VARCHAR(10), PRIMARY KEY (b, a))",
        "CREATE TABLE word (k VARCHAR(30) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY, v INT)",
        "CREATE TABLE latin (k VARCHAR(30) CHARACTER SET latin1 PRIMARY KEY, v INT)",
        "CREATE TABLE raw (k VARBINARY(30) PRIMARY KEY, v INT)",
        "CREATE TABLE moment (k DATETIME(6), d DATE, v INT, PRIMARY KEY (k, d))",
        "CREATE TABLE uniq (x INT, k INT NOT NULL UNIQUE)",
        "CREATE TABLE many (k DECIMAL(20,5) PRIMARY KEY, v INT)",
    )  # fmt: skip
    with pipeline.following():
        source = pipeline.source
        source.execute("INSERT INTO pair VALUES (1, 0, 'x'), (1, 0, 'y'), (2, 0, 'x')")
        source.execute("INSERT INTO word VALUES ('é%s\\'\"', 1), ('日本', 2), ('', 3), ('tab\t\\\\N', 4)")
        source.execute("INSERT INTO latin VALUES ('é', 1), ('ÿ', 2)")
        source.execute("INSERT INTO raw VALUES (X'00FF', 1), (X'', 2), (X'0A5C', 3)")
        source.execute(
            "INSERT INTO moment VALUES ('2024-02-29 23:59:59.999999', '1000-01-01', 1), ('9999-12-31', '9999-12-31', 2)"
        )
        source.execute("INSERT INTO uniq VALUES (NULL, 1), (NULL, 2)", "INSERT INTO many VALUES (1.5, 1), (-0.00001, 2)")
        for table, change in (
            ("pair", "v = v + a"), ("word", "v = v + 1"), ("latin", "v = v + 1"), ("raw", "v = v + 1"),
            ("moment", "v = v + 1"), ("uniq", "x = 5"), ("many", "v = v + 1"),
        ):  # fmt: skip
            source.execute(f"UPDATE {table} SET {change}")
        source.execute(
            "UPDATE pair SET b = 'z' WHERE a = 2", "DELETE FROM word WHERE v = 3", "DELETE FROM raw WHERE k = X'00FF'"
        )
        source.execute("DELETE FROM moment WHERE v = 2", "DELETE FROM uniq WHERE k = 1", "DELETE FROM many WHERE k < 0")
        pipeline.sync()
        pipeline.assert_equal("pair", "word", "latin", "raw", "moment", "uniq", "many")
    assert pipeline.deleted_keys("pair") == [{"a": 2, "b": "x"}]
    assert pipeline.deleted_keys("word") == [{"k": "日本"}]


def test_transactions_are_whole(pipeline: Pipeline) -> None:
    """A transaction over several tables and many rows is seen whole or not at all by whoever reads the mirror."""
    pipeline.source.execute("CREATE TABLE a (id INT PRIMARY KEY, n INT)", "CREATE TABLE b (id INT PRIMARY KEY, n INT)")
    pipeline.source.execute("INSERT INTO a VALUES (0, 0)", "INSERT INTO b VALUES (0, 0)")
    pipeline.configure(replicator={"batch_rows": 7, "linger_ms": 0})
    with pipeline.following(), pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        schema = pipeline.source.name
        sums = set()
        for step in range(1, 60):
            rows = ", ".join(f"({step * 100 + i}, {step})" for i in range(40))
            cursor.execute(f"INSERT INTO a VALUES {rows}")
            cursor.execute("UPDATE a SET n = %s WHERE id = 0", (step,))
            cursor.execute("UPDATE b SET n = %s WHERE id = 0", (step,))
            cursor.execute(f"INSERT INTO b VALUES {rows}")
            conn.commit()
            found = pipeline.fetch(
                f"SELECT (SELECT n FROM {schema}.a WHERE id = 0), (SELECT n FROM {schema}.b WHERE id = 0),"
                f" (SELECT count(*) FROM {schema}.a), (SELECT count(*) FROM {schema}.b)"
            )[0]
            sums.add(found)
        pipeline.sync()
        pipeline.assert_equal("a", "b")
    assert all(n == m and rows == others == 1 + 40 * n for n, m, rows, others in sums), sums


def test_rolled_back_work_leaves_nothing(pipeline: Pipeline) -> None:
    """Rolled back transactions and statements back to a savepoint do not reach the mirror."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
    pipeline.catch_up()
    with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1, 1)")
        conn.rollback()
        cursor.execute("INSERT INTO t VALUES (2, 2)")
        cursor.execute("SAVEPOINT here")
        cursor.execute("INSERT INTO t VALUES (3, 3)")
        cursor.execute("ROLLBACK TO SAVEPOINT here")
        cursor.execute("INSERT INTO t VALUES (4, 4)")
        conn.commit()
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.read_mirror("t") == [(2, 2), (4, 4)]


def test_row_that_comes_and_goes_within_a_batch(pipeline: Pipeline) -> None:
    """Inserted, updated and deleted in one transaction, and deleted and inserted again: only the last image counts."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    pipeline.catch_up()
    with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (7, 1)")
        cursor.execute("UPDATE t SET n = 2 WHERE id = 7")
        cursor.execute("DELETE FROM t WHERE id = 7")
        cursor.execute("DELETE FROM t WHERE id = 1")
        cursor.execute("INSERT INTO t VALUES (1, 10)")
        cursor.execute("REPLACE INTO t VALUES (2, 20)")
        cursor.execute("INSERT INTO t VALUES (2, 0) ON DUPLICATE KEY UPDATE n = 21")
        conn.commit()
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.read_mirror("t") == [(1, 10), (2, 21)]
    assert pipeline.deleted_keys("t") == []


def test_uncovered_column_fails_one_table(pipeline: Pipeline) -> None:
    """A table with a column that the mirror cannot have says why; the others go on."""
    pipeline.source.execute(
        "CREATE TABLE good (id INT PRIMARY KEY, n INT)",
        "CREATE TABLE shape (id INT PRIMARY KEY, _seq INT)",
    )
    with pipeline.following():
        pipeline.source.execute(
            "INSERT INTO good VALUES (1, 1)", "INSERT INTO shape VALUES (1, 1)",
            "INSERT INTO good VALUES (2, 2)",
        )  # fmt: skip
        pipeline.sync()
        pipeline.assert_equal("good")
    state, reason = pipeline.state("shape")
    assert state == "Failed"
    assert "column _seq" in str(reason)
    assert pipeline.fetch("SELECT tables_in_trouble, tables_synced FROM warehouse.status") == [(1, 1)]


def test_resuming_repeats_and_loses_nothing(pipeline: Pipeline) -> None:
    """Run after run goes on where the last one ended: every change is counted once."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
    for step in range(5):
        pipeline.catch_up()
        pipeline.catch_up()
        pipeline.source.execute(f"INSERT INTO t VALUES ({step}, 0)", "UPDATE t SET n = n + 1", "DELETE FROM t WHERE n = 3")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.fetch("SELECT inserted, updated, deleted FROM warehouse.tables") == [(5, 12, 3)]


def test_tables_outside_the_patterns_stay_out(pipeline: Pipeline) -> None:
    """Only matching tables are mirrored, and changes of the others move the position all the same."""
    pipeline.configure(source={"tables": [f"{pipeline.source.name}.in\\_%".replace("\\", "")]})
    pipeline.source.execute("CREATE TABLE in_a (id INT PRIMARY KEY)", "CREATE TABLE out_a (id INT PRIMARY KEY)")
    pipeline.catch_up()
    pipeline.source.execute("INSERT INTO out_a VALUES (1)", "CREATE TABLE out_b (id INT)", "INSERT INTO out_b VALUES (1)")
    pipeline.catch_up()
    pipeline.source.execute("INSERT INTO in_a VALUES (1)")
    pipeline.catch_up()
    assert pipeline.fetch("SELECT table_name FROM warehouse.tables") == [(f"{pipeline.source.name}.in_a",)]
    assert pipeline.read_mirror("in_a", order="1") == [(1,)]


@pytest.mark.long
@pytest.mark.parametrize("rows", [20_000])
def test_rows_that_change_while_they_are_copied(pipeline: Pipeline, rows: int) -> None:
    """Inserts, updates and deletes during the copy: equal afterwards, no row of the past comes back."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT, pad VARCHAR(50))")
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        for first in range(0, rows, 5000):
            cursor.executemany("INSERT INTO t VALUES (%s, %s, %s)", [(i, 0, "x" * 40) for i in range(first, first + 5000)])
        service = pipeline.start("replicator", "run")
        step = 0
        while not pipeline.has_table("t") or pipeline.state("t")[0] != "Synced":
            assert service.process.poll() is None, service.read_log()
            step += 1
            cursor.execute("UPDATE t SET n = n + 1 WHERE MOD(id, 997) = %s", (step % 997,))
            cursor.execute("DELETE FROM t WHERE id = %s", (step * 31 % rows,))
            cursor.execute("INSERT INTO t VALUES (%s, 0, '') ON DUPLICATE KEY UPDATE n = 0", (rows + step,))
    pipeline.sync()
    pipeline.assert_equal("t")
    assert service.stop() == 0
    assert pipeline.status("state") == "Stopped"


def test_wait_for(pipeline: Pipeline) -> None:
    """warehouse.wait_for is false before, and true once the transactions are in the mirror."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY)")
    pipeline.catch_up()
    pipeline.source.execute("INSERT INTO t VALUES (1)")
    variable = "gtid_binlog_pos" if pipeline.source.server.name == "mariadb" else "gtid_executed"
    gtids = pipeline.source.execute(f"SELECT @@global.{variable}")[0][0]
    assert pipeline.fetch("SELECT warehouse.wait_for(%s, %s, '100 ms')", SOURCE, gtids) == [(False,)]
    pipeline.catch_up()
    assert pipeline.fetch("SELECT warehouse.wait_for(%s, %s, '0 s')", SOURCE, gtids) == [(True,)]


def test_copies_under_load(pipeline: Pipeline) -> None:
    """Copies asked for again and again while rows change leave no old value behind."""
    pipeline.source.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES " + ", ".join(f"({i}, 0)" for i in range(20))
    )
    with pipeline.following():
        pipeline.wait_until(lambda: pipeline.has_table("t"))
        with pipeline.source.connect(autocommit=True) as conn, conn.cursor() as cursor:
            for step in range(600):
                cursor.execute("UPDATE t SET n = %s WHERE id = %s", (step, step % 20))
                if step % 25 == 0:
                    cursor.execute("DELETE FROM t WHERE id = %s", (step % 20,))
                    cursor.execute("INSERT INTO t VALUES (%s, -1)", (step % 20,))
                if step % 60 == 0:
                    pipeline.fetch("SELECT warehouse.resync(%s) IS NULL", f"{pipeline.source.name}.t")
        pipeline.sync()
        pipeline.assert_equal("t")
