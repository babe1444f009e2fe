"""MariaDB's system-versioned tables: the mirror has the rows that are there now, however they came, and no history."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.servers import MariaDBServer
from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, make_source_database

_PERIOD = "s {0} GENERATED ALWAYS AS ROW START {1}, e {0} GENERATED ALWAYS AS ROW END {1}, PERIOD FOR SYSTEM_TIME(s, e)"
NAMED, HIDDEN = _PERIOD.format("TIMESTAMP(6)", ""), _PERIOD.format("TIMESTAMP(6)", "INVISIBLE")
TABLES = {
    "plain": "(id INT PRIMARY KEY, n INT, m INT) WITH SYSTEM VERSIONING",
    "named": f"(id INT PRIMARY KEY, n INT, m INT, {NAMED}) WITH SYSTEM VERSIONING",
    "amid": f"({NAMED}, m INT, id INT, n INT, PRIMARY KEY (id)) WITH SYSTEM VERSIONING",
    "hidden": f"(id INT PRIMARY KEY, n INT, m INT, {HIDDEN}) WITH SYSTEM VERSIONING",
    "parted": "(id INT PRIMARY KEY, n INT, m INT) WITH SYSTEM VERSIONING"
    " PARTITION BY SYSTEM_TIME (PARTITION h HISTORY, PARTITION c CURRENT)",
    "some": "(id INT PRIMARY KEY, n INT, m INT WITHOUT SYSTEM VERSIONING) WITH SYSTEM VERSIONING",
    "keyless": "(id INT, n INT, m INT) WITH SYSTEM VERSIONING",
    "keyless_named": f"(id INT, n INT, m INT, {NAMED}) WITH SYSTEM VERSIONING",
}


@pytest.fixture
def mariadb_pipeline(mariadb_server: MariaDBServer, database: Database, tmp_path: Path) -> Iterator[Pipeline]:
    """From MariaDB to an empty warehouse."""
    with make_source_database(mariadb_server) as source, make_pipeline(source, database, tmp_path) as made:
        yield made


def change(pipeline: Pipeline, chance: random.Random, times: int) -> None:
    """Random statements of every kind on all of the tables, some of them in one transaction."""
    with pipeline.source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        for _ in range(times):
            i, j, n = chance.randint(1, 9), chance.randint(1, 9), chance.randint(0, 99)
            for table in TABLES:
                cursor.execute(
                    chance.choice(
                        (
                            f"INSERT IGNORE INTO {table} (id, n) VALUES ({i}, {n}), ({j}, {n})",
                            f"UPDATE {table} SET n = {n} WHERE id = {i}", f"UPDATE {table} SET m = {n} WHERE id = {i}",
                            f"UPDATE IGNORE {table} SET id = {j} WHERE id = {i}", f"DELETE FROM {table} WHERE id = {i} LIMIT 1",
                            f"REPLACE INTO {table} (id, n) VALUES ({i}, {n})", f"UPDATE {table} SET n = n WHERE id < 4",
                            f"DELETE HISTORY FROM {table}" if table != "parted" else f"DELETE FROM {table} WHERE id > 7",
                        )
                    )
                )  # fmt: skip
            if chance.random() < 0.5:
                conn.commit()
        conn.commit()


def assert_current(pipeline: Pipeline) -> None:
    """Mirrors and tables have the same rows, with the same period."""
    for table, definition in TABLES.items():
        start, end = ("s", "e") if "ROW START" in definition else ("row_start", "row_end")
        order = f"id, n, m, {start}"
        us = "CAST(UNIX_TIMESTAMP({}) * 1000000 AS UNSIGNED)"
        source = pipeline.source.execute(f"SELECT id, n, m, {us.format(start)}, {us.format(end)} FROM {table} ORDER BY {order}")
        us = "(extract(epoch FROM {}) * 1000000)::bigint"
        order = f"id, n NULLS FIRST, m NULLS FIRST, {start}"
        assert pipeline.read_mirror(table, f"id, n, m, {us.format(start)}, {us.format(end)}", order) == list(source), table
        assert pipeline.state(table) == ("Synced", None)


def test_rows_that_are_there_now(mariadb_pipeline: Pipeline) -> None:
    """Copied in pages and whole, followed, copied again, and compared."""
    pipeline, chance = mariadb_pipeline, random.Random(5)
    pipeline.configure(replicator={"snapshot_page_rows": 2, "snapshot_slice_rows": 2})
    pipeline.source.execute(*(f"CREATE TABLE {table} {definition}" for table, definition in TABLES.items()))
    change(pipeline, chance, 40)
    pipeline.catch_up()
    assert_current(pipeline)
    for _ in range(3):
        change(pipeline, chance, 25)
        pipeline.catch_up()
        assert_current(pipeline)
    with pipeline.following():
        for table in TABLES:
            pipeline.fetch("SELECT warehouse.resync(%s)", f"{pipeline.source.name}.{table}")
        change(pipeline, chance, 25)
        pipeline.sync()
        pipeline.wait_until(lambda: not pipeline.is_copying())
        for table in TABLES:
            pipeline.fetch("SELECT warehouse.verify(%s)", f"{pipeline.source.name}.{table}")
        states = "SELECT DISTINCT state FROM warehouse.verifications"
        pipeline.wait_until(lambda: pipeline.fetch(states) == [("Equal",)])
    assert_current(pipeline)
    assert pipeline.fetch("SELECT count(*) FROM warehouse.state_changes WHERE new_state IN ('Failed', 'ResyncRequired')") == [
        (0,)
    ]


def test_versioning_that_comes_and_goes(mariadb_pipeline: Pipeline) -> None:
    """A table becomes versioned and plain again, with changes before, between and after, read in one go."""
    pipeline = mariadb_pipeline
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    pipeline.catch_up()
    pipeline.source.execute(
        "UPDATE t SET n = 10 WHERE id = 1", "ALTER TABLE t ADD SYSTEM VERSIONING", "UPDATE t SET n = 11 WHERE id = 1",
        "DELETE FROM t WHERE id = 2", "INSERT INTO t (id, n) VALUES (3, 3)",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.source.execute("UPDATE t SET n = 12 WHERE id = 1")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id, n") == [(1, 12), (3, 3)]
    pipeline.source.execute(
        "UPDATE t SET n = 13 WHERE id = 1", "ALTER TABLE t DROP SYSTEM VERSIONING", "UPDATE t SET n = 14 WHERE id = 1"
    )
    pipeline.catch_up()
    pipeline.source.execute("DELETE FROM t WHERE id = 3")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id, n") == [(1, 14)]
    assert pipeline.state("t") == ("Synced", None)


def test_versions_by_transaction(mariadb_pipeline: Pipeline) -> None:
    """Changes of such a table are logged as statements: the check names it, and its state says why; the others go on."""
    pipeline = mariadb_pipeline
    period = _PERIOD.format("BIGINT UNSIGNED", "")
    pipeline.source.execute(
        f"CREATE TABLE odd (id INT PRIMARY KEY, n INT, {period}) WITH SYSTEM VERSIONING", "CREATE TABLE t (id INT PRIMARY KEY)"
    )
    done = pipeline.run("replicator", "check")
    assert "odd is versioned by transaction ids" in done.stdout + done.stderr
    pipeline.catch_up()
    pipeline.source.execute("INSERT INTO t VALUES (1)")
    pipeline.catch_up()
    pipeline.assert_equal("t", order="id")
    state, reason = pipeline.state("odd")
    assert state == "Failed"
    assert "transaction ids" in str(reason)
