"""Tables without a key: the mirror is the same multiset, whatever happens on the way."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import sql

from replicator import copies, copy_pace, copy_write
from replicator.owed import write_what_is_not_owed
from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import SourceDatabase, make_source_database

COLUMNS = "a, b, c, d, e"
TABLE = (
    "CREATE TABLE {name} (a INT, b VARCHAR(20) CHARACTER SET latin1, c DOUBLE, d DATETIME, e JSON, UNIQUE KEY (a, b, c, d))"
    " ENGINE={engine}"
)
VALUES = {
    "a": ("NULL", "0", "1", "2"), "b": ("NULL", "''", "'x'", "'é'"), "c": ("NULL", "0", "-0e0", "1.5"),
    "d": ("NULL", "'0000-00-00'", "'2024-02-29 01:02:03'"), "e": ("NULL", "'null'", "'{\"k\": [1, 2.50, \"\\\\u0000\"]}'"),
}  # fmt: skip


def read_both(pipeline: Pipeline, table: str) -> tuple[Counter[Any], Counter[Any]]:
    """The rows of both sides with how often each is there; zero dates and JSON as texts."""
    rows = pipeline.source.execute(f"SELECT a, b, CAST(c AS CHAR), CAST(d AS CHAR), e FROM {table}")
    source = [(*row[:4], None if row[4] is None else json.dumps(json.loads(row[4]))) for row in rows]
    mirror = pipeline.fetch(
        f"SELECT a, b, CASE c WHEN 1.5 THEN '1.5' WHEN 0 THEN CASE WHEN c::text = '-0' THEN '-0' ELSE '0' END END,"
        f" coalesce(to_char(d, 'YYYY-MM-DD HH24:MI:SS'), _raw ->> 'd'), replace(coalesce(_raw ->> 'e', e::text), '2.50', '2.5')"
        f" FROM {pipeline.source.name}.{table}"
    )
    return Counter(source), Counter(mirror)


def assert_same(pipeline: Pipeline, table: str) -> None:
    """Both sides hold the same rows equally often, and the counters agree."""
    source, mirror = read_both(pipeline, table)
    assert mirror == source, (mirror - source, source - mirror)
    assert pipeline.state(table) == ("Synced", None)
    counted = pipeline.fetch("SELECT rows FROM warehouse.tables WHERE table_name = %s", f"{pipeline.source.name}.{table}")
    assert counted == [(source.total(),)]


class Workload:
    """Random changes of one table, several statements a transaction."""

    def __init__(self, source: SourceDatabase, table: str, seed: int) -> None:
        self.random, self.table = random.Random(seed), table
        self.connection = source.connect(autocommit=False)
        self.cursor = self.connection.cursor()
        self.cursor.execute("SET SESSION sql_mode = ''")

    def row(self) -> list[str]:
        """A row of few possible values, so that many are equal."""
        return [self.random.choice(values) for values in VALUES.values()]

    def step(self) -> None:
        """One transaction."""
        for _ in range(self.random.randint(1, 4)):
            kind = self.random.choice(("insert", "insert", "update", "delete", "again"))
            where = f"a <=> {self.random.choice(VALUES['a'])} AND b <=> {self.random.choice(VALUES['b'])}"
            if kind == "insert":
                rows = ", ".join(f"({', '.join(self.row())})" for _ in range(self.random.randint(1, 5)))
                statement = f"INSERT IGNORE INTO {self.table} VALUES {rows}"
            elif kind == "update":
                name = self.random.choice(tuple(VALUES))
                value = self.random.choice(VALUES[name])
                statement = f"UPDATE IGNORE {self.table} SET {name} = {value} WHERE {where} LIMIT 3"
            elif kind == "delete":
                statement = f"DELETE FROM {self.table} WHERE {where} LIMIT 2"
            else:
                statement = f"INSERT IGNORE INTO {self.table} SELECT * FROM {self.table} LIMIT 4"
            self.cursor.execute(statement)
        self.connection.rollback() if self.random.random() < 0.1 else self.connection.commit()

    def close(self) -> None:
        """End the connection."""
        self.connection.close()


@pytest.fixture
def workload(pipeline: Pipeline) -> Any:
    """Makes the table and changes it."""
    pipeline.source.execute(TABLE.format(name="t", engine="InnoDB"))
    made = Workload(pipeline.source, "t", 7)
    yield made
    made.close()


def test_random_changes(pipeline: Pipeline, workload: Workload) -> None:
    """Rows that are there many times come and go: copied, in single transactions, and in large batches."""
    for _ in range(40):
        workload.step()
    pipeline.catch_up()
    assert_same(pipeline, "t")
    for steps in (1, 1, 3, 60):
        for _ in range(steps):
            workload.step()
        pipeline.catch_up()
        assert_same(pipeline, "t")
    assert pipeline.fetch("SELECT count(*) FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'") == [(0,)]


def test_copy_beside_changes(pipeline: Pipeline, workload: Workload) -> None:
    """Copies are begun again and again while the table changes: each change is in the copy or comes behind it, never both.

    Small batches and large ones, so that the position of the copy lies between them and inside of them.
    """
    name = f"{pipeline.source.name}.t"
    for batch_rows in (1, 10_000):
        pipeline.configure(replicator={"batch_rows": batch_rows, "linger_ms": 0 if batch_rows == 1 else 200})
        with pipeline.following():
            for _ in range(6):
                pipeline.conn.execute("SELECT warehouse.resync(%s)", (name,))
                while pipeline.fetch("SELECT resync_requested OR state <> 'Synced' FROM warehouse.tables") == [(True,)]:
                    workload.step()
                pipeline.sync()
                pipeline.wait_until(lambda: pipeline.state("t")[0] == "Synced")
                assert_same(pipeline, "t")


def make_heap(pipeline: Pipeline) -> None:
    """Two thousand rows: some many times the same, of the others four each, two with a date that is only in _raw."""
    rows: list[Any] = [(i % 7, None, None) for i in range(1500)]
    rows += [(i // 4, i // 4, (None, "0000-00-00")[i % 2]) for i in range(500)]
    with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute("CREATE TABLE h (a INT, n INT, d DATE)")
        cursor.executemany("INSERT INTO h VALUES (%s, %s, %s)", rows)
        conn.commit()


def between_slices(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call `act` after each slice of a hundred rows, with its number."""
    numbers = itertools.count()
    monkeypatch.setattr(copies, "reach", lambda point: act(next(numbers)) if point == "between_slices" else None)
    monkeypatch.setattr(copy_pace, "_IDLE_S", 0.0)
    monkeypatch.setattr(copy_pace, "_BUSY_S", 0.0)


def assert_equal_heap(pipeline: Pipeline) -> None:
    """Both sides hold the same rows, and so many are counted."""
    source = Counter(pipeline.source.execute("SELECT a, n, CAST(d AS CHAR) FROM h"))
    assert Counter(pipeline.fetch(f"SELECT a, n, coalesce(d::text, _raw ->> 'd') FROM {pipeline.source.name}.h")) == source
    assert pipeline.fetch("SELECT rows, state FROM warehouse.tables") == [(source.total(), "Synced")]


def test_first_copy_goes_on_beside_deletions(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are deleted, changed and put back before the copy has brought them: each is there as often as at the source."""
    make_heap(pipeline)
    left_out = []

    def act(number: int) -> None:
        n = 120 - 6 * number
        pipeline.source.execute(
            f"DELETE FROM h WHERE n = {n} LIMIT 1",
            f"DELETE FROM h WHERE n = {n + 1}",
            f"UPDATE h SET a = a + 1 WHERE n = {n + 2}",
            f"UPDATE h SET n = NULL WHERE n = {n + 3} LIMIT 1",
            f"INSERT INTO h VALUES ({n}, {n}, NULL)",
            f"DELETE FROM h WHERE n = {n + 5} AND d IS NULL",
            "DELETE FROM h WHERE a = 3 LIMIT 2",
            f"UPDATE h SET a = -1 WHERE n = {n + 4}",
            f"UPDATE h SET a = n WHERE n = {n + 4} LIMIT 1",
        )

    def write(conn: Any, table: Any, owed: Any, stage: Any) -> int:
        left_out.append(conn.execute(sql.SQL("SELECT count(*) FROM {}").format(stage)).fetchone()[0])
        written = write_what_is_not_owed(conn, table, owed, stage)
        left_out[-1] -= written
        return written

    between_slices(monkeypatch, act)
    monkeypatch.setattr(copy_write, "write_what_is_not_owed", write)
    with pipeline.following():
        pipeline.wait_until(lambda: pipeline.state("h")[0] == "Synced")
        pipeline.sync()
        assert_equal_heap(pipeline)
    assert sum(left_out) > 0, "deletions came before their rows"
    assert pipeline.fetch("SELECT count(*) FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'") == [(0,)]


def test_deletion_that_stays_owed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody deletes a row of the mirror while it is filled, and the source deletes it, too: the table is copied afresh."""
    make_heap(pipeline)

    def act(number: int) -> None:
        if number == 1:
            pipeline.conn.execute(f"DELETE FROM {pipeline.source.name}.h WHERE a = 2")
            pipeline.source.execute("DELETE FROM h WHERE a = 2 AND n IS NULL")

    between_slices(monkeypatch, act)
    with pipeline.following():
        pipeline.wait_until(lambda: pipeline.state("h")[0] == "Synced")
        pipeline.sync()
        assert_equal_heap(pipeline)
    reasons = pipeline.fetch("SELECT reason FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'")
    assert len(reasons) == 1 and "neither in the copy" in reasons[0][0]


def test_first_copy_is_killed(pipeline: Pipeline) -> None:
    """In the middle, with deletions owed: the next run copies the table as a whole, and nothing is there twice."""
    make_heap(pipeline)
    pipeline.configure(replicator={"snapshot_slice_rows": 50, "snapshot_max_rows_per_s": 2000.0})
    service = pipeline.start("replicator", "run", TAILRACE_CRASH_AT="between_slices:6")
    pipeline.wait_until(lambda: service.process.poll() is not None)
    assert service.process.returncode == -9, service.read_log()
    pipeline.source.execute("DELETE FROM h WHERE n > 100", "INSERT INTO h SELECT * FROM h LIMIT 30")
    pipeline.catch_up()
    assert_equal_heap(pipeline)


@pytest.mark.parametrize("gtids", ["ON", "OFF"])
def test_killed_at_any_moment(make_server: Any, database: Any, tmp_path: Any, gtids: str) -> None:
    """The replicator is killed while it copies and while it follows, by GTIDs and by file and offset: nothing twice."""
    server = make_server("mysql", options={"gtid_mode": gtids, "enforce_gtid_consistency": gtids, "max_binlog_size": "64K"})
    with make_source_database(server) as source, make_pipeline(source, database, tmp_path) as pipeline:
        source.execute(TABLE.format(name="t", engine="InnoDB"))
        workload = Workload(source, "t", 11)
        for round_ in range(8):
            service = pipeline.start("replicator", "run")
            if round_ and round_ % 3 == 0:
                pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{source.name}.t",))
            for _ in range(workload.random.randint(20, 150)):
                workload.step()
            pipeline.wait_until(lambda: pipeline.status("state") == "Streaming")
            for _ in range(workload.random.randint(1, 60)):
                workload.step()
            service.kill()
        workload.close()
        pipeline.catch_up()
        assert_same(pipeline, "t")
        assert pipeline.fetch(
            "SELECT count(*) FROM warehouse.state_changes WHERE new_state IN ('ResyncRequired', 'Failed')"
        ) == [(0,)]


def test_deletions_are_recorded(pipeline: Pipeline) -> None:
    """Each copy that goes is recorded with the whole row as its key; the oldest copies go first."""
    pipeline.source.execute(
        "CREATE TABLE t (n INT, w VARCHAR(9))", "INSERT INTO t VALUES (1, 'a'), (1, 'a'), (1, 'a'), (2, NULL)"
    )
    pipeline.catch_up()
    before = pipeline.read_mirror("t", "_seq", "1")
    pipeline.source.execute("DELETE FROM t WHERE n = 1 LIMIT 2", "UPDATE t SET n = 3 WHERE n = 2")
    pipeline.catch_up()
    assert pipeline.deleted_keys("t") == [{"n": 1, "w": "a"}, {"n": 1, "w": "a"}, {"n": 2, "w": None}]
    assert pipeline.read_mirror("t", "n, w") == [(1, "a"), (3, None)]
    assert pipeline.read_mirror("t", "min(_seq)", "1") == [before[2]]
    pipeline.conn.execute(f"UPDATE {pipeline.source.name}.t SET w = 'b' WHERE n = 1")
    pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.t",))
    pipeline.catch_up()
    assert pipeline.deleted_keys("t")[3:] == [{"n": 1, "w": "b"}]
    pipeline.source.execute("INSERT INTO t VALUES (3, NULL)", "TRUNCATE TABLE t")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "n", "1") == []
    assert len(pipeline.deleted_keys("t")) == 7


def test_row_that_is_missing(pipeline: Pipeline) -> None:
    """A deletion that finds no row means that somebody wrote into the mirror: the table is copied afresh."""
    pipeline.source.execute("CREATE TABLE t (n INT, w VARCHAR(9))", "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    with pipeline.following():
        pipeline.sync()
        pipeline.conn.execute(f"DELETE FROM {pipeline.source.name}.t WHERE n = 1")
        pipeline.source.execute("DELETE FROM t WHERE n = 1")
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t") == ("Synced", None))
        assert pipeline.read_mirror("t") == [(2, "b")]
    reasons = pipeline.fetch("SELECT reason FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'")
    assert reasons == [("1 deleted rows are not in the mirror",)]


def test_key_comes_and_goes(pipeline: Pipeline) -> None:
    """A table loses its key and gets one again, with changes before, between and after, read in one go and step by step."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    pipeline.catch_up()
    for step_by_step in (False, True):
        for statement in (
            "UPDATE t SET n = n + 1", "ALTER TABLE t DROP PRIMARY KEY", "INSERT INTO t VALUES (1, 2), (1, 2), (5, 5)",
            "DELETE FROM t WHERE n = 2 LIMIT 1", "DELETE FROM t WHERE id = 1 LIMIT 1", "DELETE FROM t WHERE id = 1",
            "ALTER TABLE t ADD PRIMARY KEY (id)", "UPDATE t SET id = id + 10 ORDER BY id DESC", "INSERT INTO t VALUES (1, 1)",
        ):  # fmt: skip
            pipeline.source.execute(statement)
            if step_by_step:
                pipeline.catch_up()
        pipeline.catch_up()
        pipeline.assert_equal("t")


def test_table_that_keeps_no_versions(pipeline: Pipeline) -> None:
    """MyISAM shows a transaction whatever is there, so its lock is held until the copy is read."""
    pipeline.source.execute(TABLE.format(name="t", engine="MyISAM").replace("e JSON", "e LONGTEXT"))
    workload = Workload(pipeline.source, "t", 3)
    with pipeline.following():
        for _ in range(3):
            pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.t",))
            while pipeline.fetch("SELECT resync_requested OR state <> 'Synced' FROM warehouse.tables") == [(True,)]:
                workload.step()
            pipeline.sync()
            pipeline.wait_until(lambda: pipeline.state("t")[0] == "Synced")
            assert_same(pipeline, "t")
    workload.close()


def test_right_that_is_needed(pipeline: Pipeline) -> None:
    """Without LOCK TABLES or RELOAD preflight names the grant and the table fails with the reason; either is enough."""
    source = pipeline.source
    source.execute(
        "CREATE TABLE t (n INT)", "INSERT INTO t VALUES (1), (1)",
        f"CREATE USER {source.name}@'%' IDENTIFIED BY 'secret'", f"GRANT SELECT ON {source.name}.* TO {source.name}@'%'",
        f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {source.name}@'%'",
    )  # fmt: skip
    try:
        pipeline.configure(source={"user": source.name, "password_file": pipeline._write_secret("reader.password", "secret")})
        done = pipeline.run("replicator", "check")
        assert f"GRANT LOCK TABLES ON `{source.name}`.* TO" in done.stdout + done.stderr
        pipeline.catch_up()
        assert pipeline.state("t")[0] == "Failed"
        assert "LOCK TABLES" in str(pipeline.state("t")[1])
        for grant in (f"LOCK TABLES ON {source.name}.*", "RELOAD ON *.*"):
            source.execute(f"GRANT {grant} TO {source.name}@'%'")
            done = pipeline.run("replicator", "check")
            assert "LOCK TABLES" not in done.stdout + done.stderr
            pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{source.name}.t",))
            pipeline.catch_up()
            assert pipeline.state("t") == ("Synced", None)
            assert pipeline.read_mirror("t", "n", "1") == [(1,), (1,)]
            source.execute(f"REVOKE {grant} FROM {source.name}@'%'")
    finally:
        source.execute(f"DROP USER {source.name}@'%'")


def test_huge_transactions(pipeline: Pipeline, workload: Workload) -> None:
    """A transaction that is written in parts, with a copy whose position lies before and behind it."""
    pipeline.configure(replicator={"batch_rows": 20})
    values = ", ".join(f"({', '.join(workload.row())})" for _ in range(400))
    changes = (
        f"INSERT IGNORE INTO t VALUES {values}", "UPDATE t SET b = NULL WHERE a = 1", "DELETE FROM t WHERE a IS NULL LIMIT 300",
    )  # fmt: skip
    for is_copied in (False, True, True):
        if is_copied:
            pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.t",))
        for statement in (*changes, *changes):
            workload.cursor.execute(statement)
        workload.connection.commit()
        pipeline.catch_up()
        workload.cursor.execute("UPDATE IGNORE t SET b = 'x' WHERE b IS NULL")
        workload.connection.commit()
        pipeline.catch_up()
        assert_same(pipeline, "t")
