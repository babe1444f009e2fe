"""A Postgres that stands still, kills sessions and is in the way with locks: equal afterwards, no table wrongly Failed."""

import os
import signal
import threading
import time
from typing import Any

import psycopg

from tests.fixtures.churn import Churn, assert_same
from tests.fixtures.pipeline import SOURCE, Pipeline

BIG_ROWS = 150


def find_sessions(pipeline: Pipeline) -> list[int]:
    """The process ids of the replicator's sessions that hold locks of its work."""
    rows = pipeline.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = %s", f"tailrace replicator {SOURCE}")
    return [int(pid) for (pid,) in rows]


def find_dump(pipeline: Pipeline) -> list[int]:
    """The ids of the source's dump connections."""
    return [int(row[0]) for row in pipeline.source.execute("SHOW PROCESSLIST") if "Binlog Dump" in str(row[4])]


def test_warehouse_stands_still_for_longer_than_the_source_waits(mysql_pipeline: Pipeline) -> None:
    """net_write_timeout of 1 s, more than the socket holds, Postgres frozen for 4 s: the dump is still the same connection."""
    pipeline = mysql_pipeline
    pipeline.configure(replicator={"batch_rows": 20})
    source = pipeline.source
    before = source.execute("SELECT @@global.net_write_timeout")[0][0]
    source.execute("CREATE TABLE t (id INT PRIMARY KEY, pad LONGBLOB)", "SET GLOBAL net_write_timeout = 1")
    try:
        service = pipeline.start("replicator", "run")
        pipeline.wait_until(lambda: pipeline.status("state") == "Streaming")
        source.execute("INSERT INTO t VALUES (0, '')")
        pipeline.sync()
        (session,), dumps = find_sessions(pipeline), find_dump(pipeline)
        os.kill(session, signal.SIGSTOP)
        try:
            with source.connect() as conn, conn.cursor() as cursor:
                for number in range(1, BIG_ROWS):
                    cursor.execute("INSERT INTO t VALUES (%s, REPEAT('x', 200000))", (number,))
            time.sleep(4)
            assert find_dump(pipeline) == dumps
        finally:
            os.kill(session, signal.SIGCONT)
        pipeline.sync()
        assert find_dump(pipeline) == dumps
        assert service.stop() == 0
        assert "retry" not in service.read_log()
        assert pipeline.fetch(f"SELECT count(*), sum(length(pad)) FROM {source.name}.t") == [
            (BIG_ROWS, (BIG_ROWS - 1) * 200_000)
        ]
    finally:
        source.execute(f"SET GLOBAL net_write_timeout = {before}")


class Bully(threading.Thread):
    """Takes row locks of a mirror, and now and then ends the replicator's session."""

    def __init__(self, pipeline: Pipeline, rounds: int) -> None:
        super().__init__(name="bully", daemon=True)
        self.pipeline, self.rounds, self.ended = pipeline, rounds, 0

    def run(self) -> None:
        """Do so many rounds."""
        mirror = f"{self.pipeline.source.name}.keyed"
        with self.pipeline.database.connect() as conn, self.pipeline.database.connect(autocommit=True) as other:
            conn.execute("SET deadlock_timeout = '20s'")
            for number in range(self.rounds):
                try:
                    for order in ("id > 200 ORDER BY id DESC", "id <= 200 ORDER BY id DESC"):
                        conn.execute(f"SELECT id FROM {mirror} WHERE {order} FOR UPDATE")  # type: ignore[arg-type]
                        time.sleep(0.1)
                except psycopg.errors.DeadlockDetected:
                    pass
                conn.rollback()
                if number % 4 == 3:
                    ended = other.execute(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s",
                        (f"tailrace replicator {SOURCE}",),
                    ).fetchone()
                    self.ended += ended[0] if ended else 0
                time.sleep(0.1)


def wait_until_blocked(pipeline: Pipeline, conn: psycopg.Connection[Any]) -> None:
    """Return once the replicator waits for what this session has locked."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND %s = ANY (pg_blocking_pids(pid))"
    pipeline.wait_until(lambda: pipeline.fetch(query, f"tailrace replicator {SOURCE}", conn.info.backend_pid) == [(1,)])


def change(pipeline: Pipeline, number: int) -> None:
    """One transaction over all three tables."""
    with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        for table in "ab":
            cursor.execute(f"UPDATE {table} SET n = %s WHERE id = 1", (number,))
            cursor.execute(f"INSERT INTO {table} VALUES (%s, 0)", (100 + number,))
        cursor.execute("INSERT INTO keyless VALUES (1, 'x'), (1, 'x')")
        cursor.execute("DELETE FROM keyless WHERE a = 1 LIMIT 1")
        conn.commit()


def test_deadlocks_and_serialization_failures(mysql_pipeline: Pipeline) -> None:
    """Batches that are a deadlock's victim, or not serializable with what others did, are applied again, once."""
    pipeline = mysql_pipeline
    schema = pipeline.source.name
    for setting in ("default_transaction_isolation = 'serializable'", "deadlock_timeout = '100ms'"):
        pipeline.conn.execute(f"ALTER DATABASE {pipeline.database.name} SET {setting}")  # type: ignore[arg-type]
    pipeline.source.execute(
        *(f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT)" for name in "ab"), "INSERT INTO a VALUES (1, 0)",
        "INSERT INTO b VALUES (1, 0)", "CREATE TABLE keyless (a INT, b VARCHAR(9))", "INSERT INTO keyless VALUES (1, 'x')",
    )  # fmt: skip
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: pipeline.status("state") == "Streaming" and not pipeline.is_copying())
    with pipeline.database.connect() as conn:
        # Whoever looks first whether it waits in a circle is the victim.
        conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED; SET deadlock_timeout = '60s'")
        conn.commit()
        for number in range(1, 7):
            # The replicator writes one of the two first: it deadlocks in one of the two orders.
            held, wanted = "ab" if number % 2 else "ba"
            lock = "SELECT FROM {}.{} WHERE id = 1 FOR UPDATE"
            conn.execute(lock.format(schema, held))  # type: ignore[arg-type]
            change(pipeline, number)
            wait_until_blocked(pipeline, conn)
            conn.execute(lock.format(schema, wanted))  # type: ignore[arg-type]
            conn.commit()
            pipeline.sync()
        for number in range(7, 10):
            conn.execute("UPDATE warehouse.sources SET heartbeat_s = heartbeat_s")
            change(pipeline, number)
            wait_until_blocked(pipeline, conn)
            conn.commit()
            pipeline.sync()
    printed = service.read_log()
    assert printed.count("deadlock detected") >= 3
    assert printed.count("could not serialize access") >= 3
    assert "Traceback" not in printed
    assert service.stop() == 0
    pipeline.assert_equal("a", "b")
    assert sorted(pipeline.read_mirror("keyless")) == sorted(pipeline.read_source("keyless"))
    wrong = "SELECT FROM warehouse.state_changes WHERE new_state IN ('Failed', 'ResyncRequired')"
    assert pipeline.fetch(wrong) == []


def test_warehouse_kills_and_locks(mysql_pipeline: Pipeline) -> None:
    """Sessions that are ended in the middle of a batch, and rows that are locked, again and again: applied again, once."""
    pipeline = mysql_pipeline
    churn = Churn(pipeline, seed=3, pause_s=0.005)
    service = pipeline.start("replicator", "run")
    # a table that is emptied while it is copied is rightly copied again
    pipeline.wait_until(lambda: pipeline.status("state") == "Streaming" and not pipeline.is_copying())
    churn.start()
    bully = Bully(pipeline, 16)
    bully.start()
    bully.join()
    churn.stop()
    pipeline.sync()
    assert bully.ended
    assert "WarehouseUnavailable" in service.read_log()
    assert "Traceback" not in service.read_log()
    assert service.stop() == 0
    assert_same(pipeline)
