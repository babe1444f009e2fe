"""Events beside rows and DDL, from real servers: compressed, tagged, prepared, rolled back, refused."""

import threading
from collections.abc import Iterator

import pytest

from replicator.errors import UnsupportedEvent
from tests.fixtures.pipeline import Pipeline


@pytest.fixture
def pipeline(pipeline: Pipeline) -> Iterator[Pipeline]:
    """The same; transactions that a failed test left prepared would keep its database from being dropped."""
    yield pipeline
    recover = "XA RECOVER CONVERT XID" if pipeline.source.server.name == "mysql" else "XA RECOVER FORMAT = 'SQL'"
    for number, name_bytes, _, data in pipeline.source.execute(recover):
        if data.startswith("0x"):
            name, branch = data[2 : 2 + 2 * name_bytes], data[2 + 2 * name_bytes :]
            data = f"X'{name}', X'{branch}', {number}"
        pipeline.source.execute(f"XA ROLLBACK {data}")


def make_table(pipeline: Pipeline) -> None:
    """A table t with one row, mirrored."""
    pipeline.source.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, n INT, word VARCHAR(200))", "INSERT INTO t VALUES (1, 1, 'one')"
    )
    pipeline.catch_up()


def run_session(pipeline: Pipeline, *statements: str) -> None:
    """Run statements in one session."""
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


# ------------------------------------------------------------------------------------------------ packed events
def test_compressed_transactions(mysql_pipeline: Pipeline) -> None:
    """A session that compresses its transactions, in the middle of others that do not."""
    make_table(mysql_pipeline)
    numbers = ", ".join(f"({i}, {i}, REPEAT('x', 100))" for i in range(100, 3000))
    run_session(
        mysql_pipeline,
        "INSERT INTO t VALUES (2, 2, 'two')",
        "SET SESSION binlog_transaction_compression = ON",
        f"INSERT INTO t VALUES {numbers}",
        "BEGIN",
        "UPDATE t SET n = n + 1 WHERE id < 200",
        "SAVEPOINT s",
        "DELETE FROM t WHERE id > 2000",
        "ROLLBACK TO s",
        "DELETE FROM t WHERE id = 150",
        "COMMIT",
        "CREATE TABLE c (id INT PRIMARY KEY) AS SELECT id, n FROM t WHERE id < 120",
        "SET SESSION binlog_transaction_compression = OFF",
        "INSERT INTO t VALUES (3, 3, 'three')",
    )
    mysql_pipeline.catch_up()
    mysql_pipeline.assert_equal("t", "c")


def test_events_of_many_megabytes(pipeline: Pipeline) -> None:
    """A row of more than 16 MB, as it is and compressed, between small ones."""
    source = pipeline.source
    compress = "binlog_transaction_compression" if source.server.name == "mysql" else "log_bin_compress"
    scope = "SESSION" if source.server.name == "mysql" else "GLOBAL"
    source.execute("CREATE TABLE t (id INT PRIMARY KEY, b LONGTEXT)", "SET GLOBAL max_allowed_packet = 256 << 20")
    pipeline.catch_up()
    big = "INSERT INTO t VALUES ({}, REPEAT('0123456789abcdef', 3 << 18))"
    halves = "UPDATE t SET b = CONCAT(b, b) WHERE id = {}"
    try:
        run_session(pipeline, big.format(1), halves.format(1), "INSERT INTO t VALUES (2, 'small')")
        run_session(pipeline, f"SET {scope} {compress} = ON")
        run_session(
            pipeline, f"SET {scope} {compress} = ON", big.format(3), halves.format(3), "INSERT INTO t VALUES (4, 'small')"
        )
    finally:
        if scope == "GLOBAL":
            source.execute(f"SET GLOBAL {compress} = OFF")
    pipeline.catch_up()
    expected = source.execute("SELECT id, CHAR_LENGTH(b), SHA2(b, 256) FROM t ORDER BY 1")
    assert pipeline.read_mirror("t", "id, char_length(b), encode(sha256(convert_to(b, 'UTF8')), 'hex')") == list(expected)
    assert max(row[1] for row in expected) > 16 << 20


def test_compressed_events(mariadb_pipeline: Pipeline) -> None:
    """MariaDB compresses each event by itself: inserts, updates, deletes and statements."""
    make_table(mariadb_pipeline)
    source = mariadb_pipeline.source
    source.execute("SET GLOBAL log_bin_compress = ON", "SET GLOBAL log_bin_compress_min_len = 10")
    try:
        numbers = ", ".join(f"({i}, {i}, REPEAT('x', 100))" for i in range(100, 500))
        source.execute(
            f"INSERT INTO t VALUES {numbers}", "UPDATE t SET n = n + 1, word = 'changed' WHERE id < 200",
            "DELETE FROM t WHERE id > 450",
            "CREATE TABLE another_table_with_a_long_name (id INT PRIMARY KEY, a_column_with_a_long_name INT)",
            "INSERT INTO another_table_with_a_long_name VALUES (1, 1), (2, NULL)",
        )  # fmt: skip
    finally:
        source.execute("SET GLOBAL log_bin_compress = OFF", "SET GLOBAL log_bin_compress_min_len = 256")
    mariadb_pipeline.catch_up()
    mariadb_pipeline.assert_equal("t", "another_table_with_a_long_name")


# ------------------------------------------------------------------------------------------------ GTIDs
def test_tagged_gtids(mysql_pipeline: Pipeline) -> None:
    """Tagged transactions keep their tag in the position, and the stream resumes behind them without a gap or a repetition."""
    make_table(mysql_pipeline)
    for seen, tag in enumerate(("blue", "green", "blue"), 1):
        run_session(
            mysql_pipeline,
            f"SET GTID_NEXT = 'AUTOMATIC:{tag}'",
            f"INSERT INTO t VALUES ({10 * seen}, 0, '{tag}')",
            "SET GTID_NEXT = 'AUTOMATIC'",
            f"INSERT INTO t VALUES ({10 * seen + 1}, 0, 'none')",
        )
        mysql_pipeline.catch_up()
        mysql_pipeline.assert_equal("t")
        assert mysql_pipeline.fetch("SELECT inserted FROM warehouse.tables") == [(1 + 2 * seen,)]
        executed = mysql_pipeline.source.execute("SELECT @@global.gtid_executed")[0][0]
        assert mysql_pipeline.fetch(
            "SELECT warehouse.gtid_subset(%s, gtid_set), warehouse.gtid_subset(gtid_set, %s) FROM warehouse.checkpoint",
            executed,
            executed,
        ) == [(True, True)]
    assert ":blue:" in mysql_pipeline.status("position")


# ------------------------------------------------------------------------------------------------ XA
def prepare(pipeline: Pipeline, xid: str, *statements: str) -> None:
    """Prepare an XA transaction and leave it, as a transaction manager that crashes does."""
    run_session(pipeline, f"XA START {xid}", *statements, f"XA END {xid}", f"XA PREPARE {xid}")


def prepared(pipeline: Pipeline) -> set[str]:
    """The transactions that are held."""
    return {xid for (xid,) in pipeline.fetch("SELECT DISTINCT xid FROM warehouse.prepared_transactions")}


def test_xa_rows_appear_at_the_commit(pipeline: Pipeline) -> None:
    """Rows of a prepared transaction are held over a restart, then numbered behind everything that was committed before."""
    make_table(pipeline)
    prepare(pipeline, "'a','b',7", "INSERT INTO t VALUES (2, 2, 'held')", "UPDATE t SET n = 100 WHERE id = 1")
    pipeline.catch_up()
    assert pipeline.read_mirror("t") == [(1, 1, "one")]
    assert prepared(pipeline) == {"X'61',X'62',7"}
    pipeline.source.execute("INSERT INTO t VALUES (3, 3, 'between')")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id", order="1") == [(1,), (3,)]
    pipeline.source.execute("XA COMMIT 'a','b',7")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert [row[0] for row in pipeline.read_mirror("t", "id", order="_seq")] == [3, 2, 1]
    assert prepared(pipeline) == set()


def test_xa_rollback(pipeline: Pipeline) -> None:
    """What is rolled back is forgotten, prepared before or after a restart; its xid may be used again."""
    make_table(pipeline)
    prepare(pipeline, "'a'", "INSERT INTO t VALUES (2, 2, 'never')")
    pipeline.catch_up()
    pipeline.source.execute("XA ROLLBACK 'a'")
    prepare(pipeline, "'a'", "INSERT INTO t VALUES (3, 3, 'never')")
    pipeline.source.execute("XA ROLLBACK 'a'")
    prepare(pipeline, "'a'", "INSERT INTO t VALUES (4, 4, 'at last')")
    pipeline.catch_up()
    assert prepared(pipeline) == {"X'61',X'',1"}
    assert pipeline.read_mirror("t", "id", order="1") == [(1,)]
    pipeline.source.execute("XA COMMIT 'a'")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert prepared(pipeline) == set()


def test_xa_in_one_phase_and_interleaved(pipeline: Pipeline) -> None:
    """ONE PHASE commits at once; several transactions prepared at a time are decided in any order, in one run."""
    make_table(pipeline)
    with pipeline.following():
        run_session(
            pipeline, "XA START 'one'", "INSERT INTO t VALUES (2, 2, 'one phase')", "XA END 'one'", "XA COMMIT 'one' ONE PHASE"
        )
        for i in range(3, 8):
            prepare(pipeline, f"'x{i}'", f"INSERT INTO t VALUES ({i}, {i}, 'x')")
        pipeline.source.execute("XA COMMIT 'x6'", "XA ROLLBACK 'x3'", "INSERT INTO t VALUES (100, 0, 'x')", "XA COMMIT 'x4'")
        pipeline.sync()
        assert prepared(pipeline) == {"X'7835',X'',1", "X'7837',X'',1"}
        pipeline.source.execute("XA COMMIT 'x7'", "XA COMMIT 'x5'")
        pipeline.sync()
    pipeline.assert_equal("t")
    assert prepared(pipeline) == set()


def test_xa_compressed_and_with_savepoints(pipeline: Pipeline) -> None:
    """Held events may be compressed, many, and partly rolled back."""
    make_table(pipeline)
    is_mysql = pipeline.source.server.name == "mysql"
    numbers = ", ".join(f"({i}, {i}, REPEAT('x', 100))" for i in range(100, 2000))
    statements = [
        f"INSERT INTO t VALUES {numbers}", "SAVEPOINT s", "CREATE TEMPORARY TABLE tt (a INT)", "DELETE FROM t WHERE id < 500",
        "ROLLBACK TO s", "UPDATE t SET n = -1 WHERE id > 1500",
    ]  # fmt: skip
    compress = "SET SESSION binlog_transaction_compression = ON" if is_mysql else "SET GLOBAL log_bin_compress = ON"
    try:
        # MySQL refuses temporary tables inside XA.
        wanted = [text for text in statements if not (is_mysql and "TEMPORARY" in text)]
        insert = "INSERT INTO t VALUES (9000, 9, REPEAT('y', 200))"
        run_session(pipeline, compress, "XA START 'b'", insert, "XA END 'b'", "XA COMMIT 'b' ONE PHASE")
        run_session(pipeline, compress, "XA START 'a'", *wanted, "XA END 'a'", "XA PREPARE 'a'")
    finally:
        if not is_mysql:
            pipeline.source.execute("SET GLOBAL log_bin_compress = OFF")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id", order="1") == [(1,), (9000,)]
    pipeline.source.execute("XA COMMIT 'a'")
    pipeline.catch_up()
    pipeline.assert_equal("t")


def test_xa_prepared_before_the_mirror(pipeline: Pipeline) -> None:
    """Rows that were prepared before the first position are not in the stream: the tables are copied afresh at the commit."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1)")
    prepare(pipeline, "'early'", "INSERT INTO t VALUES (2, 2)")
    pipeline.catch_up()
    assert pipeline.read_mirror("t") == [(1, 1)]
    pipeline.source.execute("XA COMMIT 'early'")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    reasons = [
        reason for (reason,) in pipeline.fetch("SELECT reason FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'")
    ]
    assert len(reasons) == 1
    assert "XA transaction" in reasons[0]


# ------------------------------------------------------------------------------------------------ rollbacks
def read_statements(pipeline: Pipeline) -> set[str]:
    """The first words of what is in the binlog file at hand."""
    file = pipeline.source.execute("SHOW MASTER STATUS")[0][0]
    return {row[5].split(" ")[0] for row in pipeline.source.execute(f"SHOW BINLOG EVENTS IN '{file}'")}


def test_rollback_to_savepoint_in_the_binlog(mariadb_pipeline: Pipeline) -> None:
    """MariaDB logs rollbacks where temporary or non-transactional tables take part; the rows before them do not count."""
    make_table(mariadb_pipeline)
    mariadb_pipeline.source.execute("CREATE TABLE m (id INT PRIMARY KEY, n INT) ENGINE=MyISAM")
    run_session(
        mariadb_pipeline,
        "BEGIN",
        "INSERT INTO t VALUES (2, 2, 'kept')",
        "SAVEPOINT s",
        "INSERT INTO m VALUES (1, 1)",
        "INSERT INTO t VALUES (3, 3, 'undone')",
        "SAVEPOINT `another one`",
        "UPDATE t SET n = 0 WHERE id = 1",
        "ROLLBACK TO `another one`",
        "INSERT INTO t VALUES (4, 4, 'undone')",
        "ROLLBACK TO s",
        "INSERT INTO t VALUES (3, 30, 'kept')",
        "COMMIT",
        "BEGIN",
        "INSERT INTO t VALUES (5, 5, 'undone')",
        "CREATE TEMPORARY TABLE tt (a INT)",
        "DELETE FROM t WHERE id = 1",
        "ROLLBACK",
        "INSERT INTO t VALUES (6, 6, 'kept')",
    )
    mariadb_pipeline.catch_up()
    mariadb_pipeline.assert_equal("t", "m")
    log = read_statements(mariadb_pipeline)
    assert "ROLLBACK" in log
    seqs = [seq for (seq,) in mariadb_pipeline.read_mirror("t", "_seq", order="1")]
    assert len(set(seqs)) == len(seqs)


def test_rollback_of_a_transaction_in_parts(mariadb_pipeline: Pipeline) -> None:
    """Parts of a transaction of several batches are written before its ROLLBACK is read; none of them is seen in the end."""
    make_table(mariadb_pipeline)
    mariadb_pipeline.configure(replicator={"batch_rows": 20})
    mariadb_pipeline.catch_up()
    rows = [f"({n}, {n}, 'undone')" for n in range(1000, 1300)]
    run_session(
        mariadb_pipeline,
        "BEGIN",
        *(f"INSERT INTO t VALUES {', '.join(rows[n : n + 30])}" for n in range(0, len(rows), 30)),
        "CREATE TEMPORARY TABLE tt (a INT)",
        "DELETE FROM t WHERE id = 1",
        "ROLLBACK",
        "INSERT INTO t VALUES (6, 6, 'kept')",
    )
    log = read_statements(mariadb_pipeline)
    assert "ROLLBACK" in log
    mariadb_pipeline.catch_up()
    mariadb_pipeline.assert_equal("t")
    assert (6,) in mariadb_pipeline.read_mirror("t", "id", order="1")


# ------------------------------------------------------------------------------------------------ refused
def test_a_statement_in_place_of_rows_stops_the_stream(pipeline: Pipeline) -> None:
    """A session that logs statements stops the stream, with the statement and the position; nothing of it is applied."""
    make_table(pipeline)
    run_session(pipeline, "SET SESSION binlog_format = STATEMENT", "INSERT INTO t VALUES (2, 2, 'two')")
    with pytest.raises(UnsupportedEvent) as caught:
        pipeline.catch_up()
    assert "INSERT INTO t VALUES (2, 2" in str(caught.value)
    assert "binlog." in str(caught.value)
    assert pipeline.read_mirror("t", "id", order="1") == [(1,)]
    assert pipeline.status("state") == "Failed"


def test_partial_json(mysql_pipeline: Pipeline) -> None:
    """A session that logs parts of JSON values costs the table, with the reason; the others go on."""
    source = mysql_pipeline.source
    source.execute(
        "CREATE TABLE j (id INT PRIMARY KEY, doc JSON)", f'INSERT INTO j VALUES (1, \'{{"a": "{"x" * 100}", "b": 2}}\')'
    )
    make_table(mysql_pipeline)
    run_session(
        mysql_pipeline,
        "SET SESSION binlog_row_value_options = PARTIAL_JSON",
        "BEGIN",
        "INSERT INTO t VALUES (2, 2, 'two')",
        "UPDATE j SET doc = JSON_SET(doc, '$.b', 3)",
        "INSERT INTO t VALUES (3, 3, 'three')",
        "COMMIT",
    )
    mysql_pipeline.catch_up()
    mysql_pipeline.assert_equal("t")
    state, reason = mysql_pipeline.state("j")
    assert state == "Failed"
    assert "PARTIAL_JSON" in str(reason)


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
def test_row_images_that_are_not_full(pipeline: Pipeline, image: str) -> None:
    """A session that logs parts of rows costs the table; no row gets NULLs for what was not logged."""
    make_table(pipeline)
    pipeline.source.execute("CREATE TABLE u (id INT PRIMARY KEY, n INT, b TEXT)", "INSERT INTO u VALUES (1, 1, 'one')")
    pipeline.catch_up()
    run_session(
        pipeline, f"SET SESSION binlog_row_image = {image}", "UPDATE u SET n = 5", "INSERT INTO t VALUES (2, NULL, NULL)"
    )
    pipeline.catch_up()
    assert pipeline.state("u")[0] == "Failed"
    assert pipeline.read_mirror("u") == [(1, 1, "one")]
    pipeline.fetch("SELECT 1 FROM warehouse.resync(%s)", f"{pipeline.source.name}.u")
    pipeline.catch_up()
    pipeline.assert_equal("u")


def test_metadata_that_is_not_full(pipeline: Pipeline) -> None:
    """Table maps without the columns' names cost their tables; nothing is guessed into the mirror."""
    make_table(pipeline)
    pipeline.source.execute("SET GLOBAL binlog_row_metadata = MINIMAL")
    try:
        pipeline.source.execute("INSERT INTO t VALUES (2, 2, 'two')")
    finally:
        pipeline.source.execute("SET GLOBAL binlog_row_metadata = FULL")
    pipeline.catch_up()
    state, reason = pipeline.state("t")
    assert state == "Failed"
    assert "binlog_row_metadata" in str(reason)
    assert pipeline.read_mirror("t") == [(1, 1, "one")]
    pipeline.fetch("SELECT 1 FROM warehouse.resync(%s)", f"{pipeline.source.name}.t")
    pipeline.catch_up()
    pipeline.assert_equal("t")


def test_ddl_between_rows_and_copies_by_select(pipeline: Pipeline) -> None:
    """CREATE TABLE ... SELECT, ALTER, TRUNCATE and DROP between rows of several tables, while another session writes."""
    make_table(pipeline)
    stop = threading.Event()

    def write() -> None:
        number = 1000
        while not stop.is_set():
            pipeline.source.execute(f"INSERT INTO t VALUES ({number}, 0, 'busy')")
            number += 1

    writer = threading.Thread(target=write)
    with pipeline.following():
        writer.start()
        try:
            for i in range(5):
                pipeline.source.execute(
                    f"CREATE TABLE c{i} (id INT PRIMARY KEY) AS SELECT id, n FROM t WHERE id < 1010",
                    f"ALTER TABLE c{i} ADD COLUMN more VARCHAR(10) DEFAULT 'more'",
                    f"INSERT INTO c{i} VALUES ({i} + 100000, 1, 'x')",
                    f"CREATE TABLE d{i} (id INT PRIMARY KEY) AS SELECT id, n FROM t LIMIT 3",
                    f"TRUNCATE d{i}",
                    f"INSERT INTO d{i} VALUES ({i}, 0)",
                )
        finally:
            stop.set()
            writer.join()
        pipeline.sync()
        pipeline.wait_until(lambda: all(pipeline.state(f"c{i}")[0] == "Synced" for i in range(5)))
        pipeline.sync()
    pipeline.assert_equal("t", *(f"{letter}{i}" for i in range(5) for letter in "cd"))
