"""Where in the source's binlog it goes on: by file and offset, and not at all where the binlog was reset or purged."""

from pathlib import Path
from typing import Any

from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, MakeServer, make_source_database

TABLE = "CREATE TABLE t (id INT PRIMARY KEY, n INT)"


def lose_position(pipeline: Pipeline, *statements: str) -> None:
    """Mirror a table, damage the binlog by the statements (or it is damaged), and see that the next run says why it stops."""
    if statements:
        pipeline.source.execute(TABLE, "INSERT INTO t VALUES (1, 1)")
        pipeline.catch_up()
        pipeline.source.execute("INSERT INTO t VALUES (2, 2)", *statements)
    for _ in range(2):
        done = pipeline.run("replicator", "run", "--until-caught-up")
        assert done.returncode == 3, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert pipeline.status("state") == "Failed"
    assert pipeline.status("reason")
    assert pipeline.read_mirror("t") == [(1, 1)]


def test_reset_binlog_loses_the_position(own_mysql: Pipeline) -> None:
    """RESET BINARY LOGS AND GTIDS: the source lacks what the mirror has; exit 3, the reason in the status."""
    lose_position(own_mysql, "RESET BINARY LOGS AND GTIDS", "INSERT INTO t VALUES (3, 3)")
    assert "reset" in own_mysql.status("reason")


def test_purged_binlog_loses_the_position(own_mysql: Pipeline) -> None:
    """The server purged what is still needed; exit 3, the reason in the status."""
    lose_position(own_mysql, "FLUSH BINARY LOGS", "SET @last = NOW() + INTERVAL 1 DAY", "PURGE BINARY LOGS BEFORE '2999-01-01'")
    assert "purged" in own_mysql.status("reason")


def test_reset_master_of_mariadb_loses_the_position(own_mariadb: Pipeline) -> None:
    """The same on MariaDB, whose GTIDs begin again at 1."""
    lose_position(own_mariadb, "RESET MASTER", "INSERT INTO t VALUES (3, 3)")


def test_reset_master_that_is_already_overtaken(own_mariadb: Pipeline) -> None:
    """MariaDB's numbers have grown past the old ones since the reset: the same number is another transaction now."""
    inserts = [f"INSERT INTO t VALUES {', '.join(f'({10 * number + i}, 0)' for i in range(10))}" for number in range(10, 60)]
    lose_position(own_mariadb, "RESET MASTER", *inserts)


def test_purged_binlog_of_mariadb_loses_the_position(own_mariadb: Pipeline) -> None:
    """MariaDB purged what is still needed."""
    pipeline = own_mariadb
    pipeline.source.execute(TABLE, "INSERT INTO t VALUES (1, 1)")
    pipeline.catch_up()
    pipeline.source.execute("INSERT INTO t VALUES (2, 2)", "FLUSH BINARY LOGS", "INSERT INTO t VALUES (3, 3)")

    def is_purged() -> bool:
        # The server keeps a file for as long as it takes the last reader of it to have gone.
        pipeline.source.execute("PURGE BINARY LOGS TO 'binlog.000002'")
        return len(pipeline.source.execute("SHOW BINARY LOGS")) == 1

    pipeline.wait_until(is_purged)
    lose_position(pipeline)


def test_without_gtids(make_server: MakeServer, database: Database, tmp_path: Path) -> None:
    """File and offset: following, resuming, over rotated and purged files, and while the source is idle."""
    server: Any = make_server("mysql", options={"gtid_mode": "OFF"})
    with make_source_database(server) as source, make_pipeline(source, database, tmp_path) as pipeline:
        source.execute(TABLE, "INSERT INTO t VALUES (1, 1)")
        pipeline.catch_up()
        source.execute("INSERT INTO t VALUES (2, 2)", "FLUSH BINARY LOGS", "UPDATE t SET n = 5")
        pipeline.catch_up()
        pipeline.assert_equal("t")
        # The last thing in the binlog is the end of a file.
        source.execute("DELETE FROM t WHERE id = 1", "FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
        pipeline.catch_up()
        pipeline.assert_equal("t")
        assert pipeline.fetch("SELECT gtid_set FROM warehouse.checkpoint") == [(None,)]
        with pipeline.following():
            source.execute("FLUSH BINARY LOGS")
            newest = source.execute("SHOW BINARY LOG STATUS")[0][0]
            pipeline.wait_until(lambda: pipeline.status("file") == newest)
        source.execute(f"PURGE BINARY LOGS TO '{newest}'", "INSERT INTO t VALUES (3, 3)")
        pipeline.catch_up()
        pipeline.assert_equal("t")
        source.execute("INSERT INTO t VALUES (4, 4)", "FLUSH BINARY LOGS", "PURGE BINARY LOGS BEFORE '2999-01-01'")
        done = pipeline.run("replicator", "run", "--until-caught-up")
        assert done.returncode == 3, done.stdout + done.stderr
        assert pipeline.status("state") == "Failed"
