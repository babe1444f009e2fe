"""Verification: what somebody changed in the mirror is found, to the key, and repaired; what the stream changes is not."""

import contextlib
import random
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pymysql
import pytest

from tests.fixtures.pipeline import Pipeline

TABLE = (
    "CREATE TABLE t (id INT PRIMARY KEY, name VARCHAR(20), day DATE, amount DECIMAL(12,4), x DOUBLE, note TEXT,"
    " big BIGINT UNSIGNED)"
)


def verify_all(pipeline: Pipeline, tables: Iterable[str], *, repair: bool = False) -> list[dict[str, Any]]:
    """Ask the running replicator for comparisons and wait for them; their rows of warehouse.verifications."""
    numbers = []
    for table in tables:
        [(number,)] = pipeline.fetch("SELECT warehouse.verify(%s, %s)", f"{pipeline.source.name}.{table}", repair)
        numbers.append(number)

    def read() -> list[dict[str, Any]]:
        query = "SELECT to_jsonb(v.*) FROM warehouse.verifications v WHERE id = ANY (%s) ORDER BY id"
        return [row for (row,) in pipeline.fetch(query, numbers)]

    pipeline.wait_until(lambda: all(row["finished_at"] for row in read()))
    return read()


def verify(pipeline: Pipeline, table: str, *, repair: bool = False) -> dict[str, Any]:
    """The same for one table."""
    return verify_all(pipeline, [table], repair=repair)[0]


def drift_of(pipeline: Pipeline, found: dict[str, Any]) -> dict[str, list[Any]]:
    """What a comparison found: the kind of difference, and the keys' values."""
    rows = pipeline.fetch("SELECT what, key FROM warehouse.drift WHERE verification = %s ORDER BY id", found["id"])
    kinds: dict[str, list[Any]] = {}
    for what, key in rows:
        kinds.setdefault(what, []).append(tuple(key.values()) if len(key) > 1 else next(iter(key.values())))
    return {what: sorted(keys) for what, keys in kinds.items()}


@pytest.fixture
def following(pipeline: Pipeline) -> Iterator[Pipeline]:
    """A pipeline with the table t of 50 rows, small chunks, and a running replicator."""
    connection = pipeline.source.connect(autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute(TABLE)
        rows = ", ".join(
            f"({i}, {'NULL' if i % 5 == 0 else repr('' if i % 7 == 0 else f'n{i}')},"
            f" '{'0000-00-00' if i % 4 == 0 else '2024-02-29'}', {i}.5, {i} / 3, 'note {i}', {2**63 + i})"
            for i in range(1, 51)
        )
        cursor.execute(f"INSERT INTO t VALUES {rows}")
    connection.close()
    pipeline.configure(verify={"chunk_rows": 8})
    with pipeline.following():
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t") == ("Synced", None))
        yield pipeline


def test_changes_by_hand(following: Pipeline) -> None:
    """A row changed, deleted, added, with another _raw, or '' in the place of NULL: each is found to its key, and repaired."""
    pipeline, mirror = following, f'"{following.source.name}"."t"'
    found = verify(pipeline, "t")
    assert (found["state"], found["rows"], found["chunks"]) == ("Equal", 50, 7)
    pipeline.conn.execute(f"UPDATE {mirror} SET amount = amount + 0.0001 WHERE id = 3")
    pipeline.conn.execute(f"UPDATE {mirror} SET name = '' WHERE id = 10")
    pipeline.conn.execute(f"UPDATE {mirror} SET _raw = NULL WHERE id = 12")
    pipeline.conn.execute(f"UPDATE {mirror} SET x = '-0' WHERE id = 50")
    pipeline.conn.execute(f"DELETE FROM {mirror} WHERE id IN (1, 24)")
    pipeline.conn.execute(f"INSERT INTO {mirror} (id, _seq) VALUES (0, 1), (999, 1)")
    expected = {"missing": [1, 24], "different": [3, 10, 12, 50], "extra": [0, 999]}
    found = verify(pipeline, "t")
    assert (found["state"], drift_of(pipeline, found)) == ("Drifted", expected)
    assert [found[what] for what in ("missing", "different", "extra", "repaired", "unsettled")] == [2, 4, 2, 0, 0]
    assert pipeline.fetch("SELECT state, equal_as_of, drift FROM warehouse.verified") == [("Drifted", None, 8)]
    seq = pipeline.status("seq")
    found = verify(pipeline, "t", repair=True)
    assert (found["state"], drift_of(pipeline, found), found["repaired"]) == ("Repaired", expected, 8)
    # whoever reads changes in order sees each repaired row, and the deletion of those that never were
    assert pipeline.fetch(f"SELECT id FROM {mirror} WHERE _seq > %s ORDER BY id", seq) == [
        (1,),
        (3,),
        (10,),
        (12,),
        (24,),
        (50,),
    ]
    assert sorted(key["id"] for key in pipeline.deleted_keys("t")) == [0, 999]
    assert pipeline.fetch("SELECT state, equal_as_of IS NOT NULL, drift, repaired FROM warehouse.verified") == [
        ("Repaired", True, 8, 8)
    ]
    # the stream goes on behind the repair
    pipeline.source.execute("UPDATE t SET name = 'later' WHERE id IN (1, 3, 50)")
    pipeline.source.execute("DELETE FROM t WHERE id = 24")
    pipeline.source.execute("INSERT INTO t (id) VALUES (0), (999)")
    pipeline.sync()
    found = verify(pipeline, "t")
    assert (found["state"], found["rows"]) == ("Equal", 51)
    assert pipeline.state("t") == ("Synced", None)
    assert pipeline.fetch("SELECT rows FROM warehouse.tables") == [(51,)]


KEYS = {
    "VARCHAR(20)": "CONCAT(CHAR(97 + n MOD 26), n)",
    "VARCHAR(20) COLLATE utf8mb4_bin": "CONCAT(CHAR(65 + n MOD 26 + 32 * (n MOD 2)), 'é_', n)",
    "VARBINARY(8)": "UNHEX(LPAD(HEX(n * 257), 6, '0'))",
    "BIGINT UNSIGNED": "18446744073709551615 - n",
    "DECIMAL(10,3)": "(n - 12) / 8",
    "FLOAT": "(n - 12) / 7",
    "DATETIME(6)": "TIMESTAMP('2024-01-01') + INTERVAL n * 1000001 MICROSECOND",
    "TIME(1)": "SEC_TO_TIME((n - 12) * 5000.5)",
    "ENUM('z','y','x','w','v','u','t','s','r','q','p','o','n','m','l','k','j','i','h','g','f','e','d','c','b','a')": "n",
    "BIT(9)": "n * 17",
}


def test_keys_of_all_kinds(pipeline: Pipeline) -> None:
    """Whatever the key's type, and however the two servers order it, single and as the second part of a key."""
    numbers = "SELECT 1 AS n " + " ".join(f"UNION ALL SELECT {n}" for n in range(2, 26))
    tables = []
    for i, (type_, value) in enumerate(KEYS.items()):
        for pair in (False, True)[: 1 + (i < 2)]:
            name = f"k{i}_{int(pair)}"
            tables.append(name)
            key = "(g, k)" if pair else "(k)"
            pipeline.source.execute(f"CREATE TABLE {name} (k {type_} NOT NULL, g INT NOT NULL, v INT, PRIMARY KEY {key})")
            pipeline.source.execute(f"INSERT INTO {name} SELECT {value}, n DIV 10, n FROM ({numbers}) numbers")
    pipeline.configure(verify={"chunk_rows": 13, "rows_per_s": 1e6})
    with pipeline.following():
        pipeline.sync()
        pipeline.wait_until(lambda: all(pipeline.state(name)[0] == "Synced" for name in tables))
        for name in tables:
            mirror = f'"{pipeline.source.name}"."{name}"'
            pipeline.conn.execute(f"CREATE TEMP TABLE taken_{name} AS SELECT * FROM {mirror} WHERE v = 25")
            pipeline.conn.execute(f"DELETE FROM {mirror} WHERE v = 7")
            pipeline.conn.execute(f"UPDATE {mirror} SET v = -1 WHERE v = 13")
            pipeline.source.execute(f"DELETE FROM {name} WHERE v = 25")
        pipeline.sync()
        for name in tables:
            # a row that was deleted at the source is there again
            pipeline.conn.execute(f'INSERT INTO "{pipeline.source.name}"."{name}" SELECT * FROM taken_{name}')
        for name, found in zip(tables, verify_all(pipeline, tables, repair=True), strict=True):
            counts = [found[what] for what in ("missing", "different", "extra", "repaired", "unsettled")]
            assert (found["state"], counts) == ("Repaired", [1, 1, 1, 3, 0]), name
        for name, found in zip(tables, verify_all(pipeline, tables), strict=True):
            assert (found["state"], found["rows"]) == ("Equal", 24), name


def test_tables_without_a_key(pipeline: Pipeline) -> None:
    """Equal rows are counted: a copy too few and a copy too many are found by their content, and repaired."""
    connection = pipeline.source.connect(autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute("CREATE TABLE t (a INT, b VARCHAR(20), d DATE, j JSON)")
        rows = ", ".join(
            f"({i % 3}, {'NULL' if i % 2 else repr('')}, '{'0000-00-00' if i % 5 == 0 else '2024-02-29'}',"
            f' \'{{"k": [1e2, {i % 2}], "a": "x"}}\')'
            for i in range(60)
        )
        cursor.execute(f"INSERT INTO t VALUES {rows}")
    connection.close()
    mirror = f'"{pipeline.source.name}"."t"'
    with pipeline.following():
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t") == ("Synced", None))
        found = verify(pipeline, "t")
        assert (found["state"], found["rows"]) == ("Equal", 60)
        one = f"(SELECT ctid FROM {mirror} WHERE a = 0 AND b IS NULL AND _raw IS NULL ORDER BY _seq LIMIT 1)"
        pipeline.conn.execute(f"DELETE FROM {mirror} WHERE ctid = {one}")
        one = f"(SELECT ctid FROM {mirror} WHERE a = 1 AND _raw IS NOT NULL ORDER BY _seq LIMIT 1)"
        pipeline.conn.execute(f"UPDATE {mirror} SET _raw = NULL WHERE ctid = {one}")
        pipeline.conn.execute(f"INSERT INTO {mirror} (a, b, _seq) VALUES (77, 'by hand', 1), (77, 'by hand', 1)")
        found = verify(pipeline, "t")
        counts = [found[what] for what in ("missing", "different", "extra", "repaired", "unsettled")]
        assert (found["state"], counts) == ("Drifted", [2, 0, 3, 0, 0])
        keys = pipeline.fetch("SELECT key ->> 'b' FROM warehouse.drift WHERE what = 'extra' AND key @> '{\"a\": 77}'")
        assert keys == [("by hand",), ("by hand",)]
        found = verify(pipeline, "t", repair=True)
        assert (found["state"], found["repaired"]) == ("Repaired", 5)
        pipeline.source.execute("DELETE FROM t WHERE a = 0")
        pipeline.source.execute("UPDATE t SET b = 'later' WHERE a = 1")
        pipeline.sync()
        found = verify(pipeline, "t")
        assert (found["state"], found["rows"]) == ("Equal", 40)
        assert pipeline.state("t") == ("Synced", None)
        assert pipeline.fetch("SELECT rows FROM warehouse.tables") == [(40,)]


class Writers:
    """Threads that change a table of numbers in every way, a fixed number of transactions each."""

    STEPS = 150

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.errors = pipeline, list[BaseException]()
        self.threads = [threading.Thread(target=self.work, args=(seed,)) for seed in range(3)]

    def work(self, seed: int) -> None:
        """Updates, deletions, insertions, rows that come and go, and rows that get another key."""
        dice = random.Random(seed)
        try:
            with self.pipeline.source.connect(autocommit=True) as connection, connection.cursor() as cursor:
                for step in range(self.STEPS):
                    # each thread has keys of its own
                    key = 3 * dice.randrange(10, 60) + seed
                    for table, literal in (("t", str(key)), ("s", f"'k{key}'")):
                        other = 3 * (100 + dice.randrange(60)) + seed
                        new = str(other) if table == "t" else f"'k{other}'"
                        for statement in dice.choice(
                            [
                                [f"DELETE FROM {table} WHERE id = {literal}"],
                                [f"REPLACE INTO {table} VALUES ({literal}, {step})"],
                                [f"UPDATE {table} SET v = v + 1 WHERE id >= {literal}"],
                                [f"REPLACE INTO {table} VALUES ({literal}, 0)", f"DELETE FROM {table} WHERE id = {literal}"],
                                [f"UPDATE IGNORE {table} SET id = {new} WHERE id = {literal}"],
                            ]
                        ):
                            with contextlib.suppress(pymysql.err.OperationalError):
                                # one of two that wait for each other gives up
                                cursor.execute(statement)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            self.errors.append(error)


def test_no_false_drift_under_load(pipeline: Pipeline) -> None:
    """While other sessions write all the time, what they change is never taken for drift, and what is drift is found."""
    for table, type_ in (("t", "INT"), ("s", "VARCHAR(20)")):
        pipeline.source.execute(f"CREATE TABLE {table} (id {type_} PRIMARY KEY, v INT)")
    # the first ones are never touched, the text keys neither: they are below all that begin with k
    texts = [f"'{'a' if n < 30 else 'k'}{n}'" for n in range(180)]
    values = [", ".join(f"({key}, 0)" for key in keys) for keys in (range(180), texts)]
    for table, rows in zip("ts", values, strict=True):
        pipeline.source.execute(f"INSERT INTO {table} VALUES {rows}")
    pipeline.configure(verify={"chunk_rows": 40, "rows_per_s": 1e6}, replicator={"linger_ms": 20})
    with pipeline.following():
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t")[0] == pipeline.state("s")[0] == "Synced")
        writers = Writers(pipeline)
        for thread in writers.threads:
            thread.start()
        seen = []
        while any(thread.is_alive() for thread in writers.threads):
            seen += verify_all(pipeline, "ts")
        for thread in writers.threads:
            thread.join()
        assert not writers.errors
        assert {found["state"] for found in seen} <= {"Equal", "Unsettled"}, seen
        assert pipeline.fetch("SELECT count(*) FROM warehouse.drift") == [(0,)]
        writers = Writers(pipeline)
        for thread in writers.threads:
            thread.start()
        schema = pipeline.source.name
        pipeline.conn.execute(f'UPDATE "{schema}".t SET v = -1 WHERE id = 5')
        pipeline.conn.execute(f'DELETE FROM "{schema}".t WHERE id = 6')
        pipeline.conn.execute(f"DELETE FROM \"{schema}\".s WHERE id = 'a6'")
        pipeline.conn.execute(f"INSERT INTO \"{schema}\".s (id, _seq) VALUES ('by hand', 1)")
        first, second = verify_all(pipeline, "ts", repair=True)
        assert drift_of(pipeline, first) == {"missing": [6], "different": [5]}
        assert drift_of(pipeline, second) == {"missing": ["a6"], "extra": ["by hand"]}
        for thread in writers.threads:
            thread.join()
        pipeline.sync()
        assert [found["state"] for found in verify_all(pipeline, "ts")] == ["Equal", "Equal"]
        pipeline.assert_equal("t", "s")


def test_all_the_time(mysql_pipeline: Pipeline) -> None:
    """Where it is set, each table is compared again and again, and drift is repaired."""
    pipeline = mysql_pipeline
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT)")
    pipeline.source.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
    pipeline.source.execute("CREATE TABLE u (id INT PRIMARY KEY)")
    pipeline.configure(verify={"every_s": 1, "repair": True})
    with pipeline.following():
        query = "SELECT count(*) FROM warehouse.verified WHERE state = 'Equal' AND equal_as_of IS NOT NULL"
        pipeline.wait_until(lambda: pipeline.fetch(query) == [(2,)])
        pipeline.conn.execute(f'UPDATE "{pipeline.source.name}".t SET v = 7 WHERE id = 2')
        repaired = "SELECT key FROM warehouse.drift WHERE repaired_at IS NOT NULL"
        pipeline.wait_until(lambda: pipeline.fetch(repaired) == [({"id": 2},)])
        pipeline.wait_until(lambda: pipeline.fetch(query) == [(2,)])
    pipeline.assert_equal("t", order="1")


def test_goes_on_after_a_restart(mysql_pipeline: Pipeline) -> None:
    """Killed in the middle, a comparison goes on behind its last chunk, and still finds what lies before and behind that."""
    pipeline = mysql_pipeline
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "CREATE TABLE s (id VARCHAR(9) PRIMARY KEY, v INT)")
    numbers = range(100, 160)
    for name in "ts":
        pipeline.source.execute(f"INSERT INTO {name} VALUES " + ", ".join(f"('{number}', 1)" for number in numbers))
    pipeline.configure(verify={"chunk_rows": 5})
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: pipeline.status("state") == "Streaming" and not pipeline.is_copying())
    for name in "ts":
        mirror = f'"{pipeline.source.name}".{name}'
        pipeline.conn.execute(f"UPDATE {mirror} SET v = 2 WHERE id IN ('101', '158')")
        pipeline.conn.execute(f"INSERT INTO {mirror} (id, _seq) VALUES ('102222', 1)")
    for name in "ts":
        # a chunk in a quarter of a second
        [(number,)] = pipeline.fetch("SELECT warehouse.verify(%s, false, 20)", f"{pipeline.source.name}.{name}")
        row = "SELECT chunks, rows, missing, different, extra, state, equal_as_of FROM warehouse.verifications WHERE id = %s"
        pipeline.wait_until(lambda number=number, row=row: pipeline.fetch(row, number)[0][0] >= 3)  # type: ignore[misc]
        service.kill()
        before = pipeline.fetch(row, number)[0]
        assert before[0] < 12
        service = pipeline.start("replicator", "run")
        pipeline.wait_until(lambda number=number, row=row: pipeline.fetch(row, number)[0][5] == "Drifted")  # type: ignore[misc]
        assert "verification goes on" in service.read_log()
        assert pipeline.fetch(row, number)[0] == (13, 60, 0, 2, 1, "Drifted", before[6])
        found = "SELECT key ->> 'id' FROM warehouse.drift WHERE verification = %s ORDER BY id"
        assert sorted(key for (key,) in pipeline.fetch(found, number)) == ["101", "102222", "158"]
    assert pipeline.fetch("SELECT count(*) FROM warehouse.verification_keys") == [(0,)]
    assert service.stop() == 0
