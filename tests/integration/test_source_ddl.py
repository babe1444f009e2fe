"""What happens to the mirror when tables of the source are created, altered, renamed, emptied and dropped."""

import pytest

from tests.fixtures.pipeline import Pipeline

ROWS = "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)"


def make_table(pipeline: Pipeline) -> None:
    """A table t with three rows, mirrored."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", ROWS)
    pipeline.catch_up()


def test_truncate(pipeline: Pipeline) -> None:
    """The mirror is emptied, every key is recorded, rows that follow are there."""
    make_table(pipeline)
    pipeline.source.execute("TRUNCATE t", "INSERT INTO t VALUES (3, 30), (4, 40)")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert {key["id"] for key in pipeline.deleted_keys("t")} == {1, 2, 3}
    newest = pipeline.fetch("SELECT max(seq) FROM warehouse.deleted_rows")[0][0]
    assert pipeline.fetch(f"SELECT bool_and(_seq > {newest}) FROM {pipeline.source.name}.t") == [(True,)]


def test_drop(pipeline: Pipeline) -> None:
    """A dropped table's mirror stays as history, and says what happened."""
    make_table(pipeline)
    pipeline.source.execute("DROP TABLE t")
    pipeline.catch_up()
    assert pipeline.state("t") == ("DroppedSource", "the source dropped the table")
    assert len(pipeline.read_mirror("t")) == 3


def test_drop_and_create_again(pipeline: Pipeline) -> None:
    """A table made anew under the same name, with other columns, is mirrored anew; keys that are gone are recorded."""
    make_table(pipeline)
    pipeline.source.execute(
        "DROP TABLE t", "CREATE TABLE t (id INT PRIMARY KEY, word VARCHAR(10))", "INSERT INTO t VALUES (3, 'c'), (9, 'i')"
    )
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id, word") == [(3, "c"), (9, "i")]
    assert pipeline.state("t") == ("Synced", None)
    pipeline.source.execute("INSERT INTO t VALUES (10, 'j')")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id, word") == [(3, "c"), (9, "i"), (10, "j")]
    assert {key["id"] for key in pipeline.deleted_keys("t")} == {1, 2}


def test_drop_database(pipeline: Pipeline) -> None:
    """All tables of a dropped database are DroppedSource."""
    make_table(pipeline)
    pipeline.source.execute(f"DROP DATABASE {pipeline.source.name}", f"CREATE DATABASE {pipeline.source.name}")
    pipeline.catch_up()
    assert pipeline.state("t")[0] == "DroppedSource"


def test_rename(pipeline: Pipeline) -> None:
    """The new name is mirrored, the old one says where the table went."""
    make_table(pipeline)
    pipeline.source.execute("RENAME TABLE t TO u", "INSERT INTO u VALUES (4, 4)")
    pipeline.catch_up()
    pipeline.assert_equal("u")
    state, reason = pipeline.state("t")
    assert state == "DroppedSource"
    assert f"{pipeline.source.name}.u" in str(reason)


def test_swapped_names(pipeline: Pipeline) -> None:
    """A copy that takes a table's place in one RENAME, as online schema changes do, is what the mirror then holds."""
    make_table(pipeline)
    pipeline.source.execute(
        "CREATE TABLE t_new (id INT PRIMARY KEY, n INT, extra INT DEFAULT 7)", "INSERT INTO t_new (id, n) SELECT * FROM t",
        "RENAME TABLE t TO t_old, t_new TO t", "INSERT INTO t VALUES (4, 4, 4)", "DROP TABLE t_old",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.assert_equal("t")


def test_create_table_select(pipeline: Pipeline) -> None:
    """The rows of CREATE TABLE ... SELECT are all there."""
    make_table(pipeline)
    with pipeline.following():
        pipeline.source.execute("CREATE TABLE u (PRIMARY KEY (id)) SELECT id, n * 2 AS n FROM t", "INSERT INTO u VALUES (9, 9)")
        pipeline.source.execute("CREATE TABLE v LIKE t", "INSERT INTO v SELECT * FROM t")
        pipeline.sync()
        pipeline.assert_equal("t", "u", "v")


def test_new_tables_are_picked_up(pipeline: Pipeline) -> None:
    """Tables that appear while the replicator runs, and while it does not, are mirrored with all their rows."""
    make_table(pipeline)
    with pipeline.following():
        pipeline.source.execute("CREATE TABLE u (id INT PRIMARY KEY, n INT)", "INSERT INTO u VALUES (1, 1)")
        pipeline.sync()
        pipeline.assert_equal("u")
    pipeline.source.execute("CREATE TABLE v (id INT PRIMARY KEY, n INT)", "INSERT INTO v VALUES (1, 1)")
    pipeline.catch_up()
    pipeline.assert_equal("t", "u", "v")


@pytest.mark.parametrize(
    "change",
    [
        "ADD COLUMN c INT NOT NULL DEFAULT 5",
        "ADD COLUMN c INT DEFAULT 5 FIRST",
        "MODIFY n BIGINT",
        "MODIFY n VARCHAR(20)",
        "DROP PRIMARY KEY, ADD PRIMARY KEY (n)",
        "DROP PRIMARY KEY, ADD PRIMARY KEY (id, n)",
    ],
)
def test_alter(pipeline: Pipeline, change: str) -> None:
    """A table that was altered equals its source again, rows before and after the change included."""
    make_table(pipeline)
    with pipeline.following():
        pipeline.source.execute("INSERT INTO t VALUES (4, 4)", f"ALTER TABLE t {change}", "INSERT INTO t (id, n) VALUES (5, 5)")
        pipeline.source.execute("UPDATE t SET n = 66 WHERE id = 1", "DELETE FROM t WHERE id = 2")
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t")[0] == "Synced")
        columns = "id, n, c" if "ADD COLUMN" in change else "id, n"
        assert sorted(pipeline.read_source("t", columns)) == sorted(pipeline.read_mirror("t", columns))


def test_dropped_and_renamed_columns_stay_as_history(pipeline: Pipeline) -> None:
    """What the source has no longer stays empty in the mirror; what it has now is right."""
    make_table(pipeline)
    pipeline.source.execute("ALTER TABLE t RENAME COLUMN n TO m", "ALTER TABLE t ADD COLUMN k INT DEFAULT 3")
    pipeline.source.execute("INSERT INTO t VALUES (4, 4, 4)")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id, m, k") == pipeline.read_source("t")
    assert pipeline.state("t") == ("Synced", None)


def test_alter_while_the_replicator_is_away(pipeline: Pipeline) -> None:
    """Rows from before and after an ALTER that wait in the binlog together: equal at the end."""
    make_table(pipeline)
    pipeline.source.execute(
        "INSERT INTO t VALUES (4, 4)", "ALTER TABLE t ADD COLUMN c VARCHAR(10) DEFAULT 'x'",
        "INSERT INTO t VALUES (5, 5, 'five')",
        "ALTER TABLE t MODIFY c VARCHAR(300), ADD COLUMN d DATE", "UPDATE t SET d = '2024-01-01' WHERE id > 3",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.assert_equal("t")


def test_key_that_moves_to_another_column(pipeline: Pipeline) -> None:
    """With another primary key, rows are found by that one; values of the old key may repeat."""
    make_table(pipeline)
    pipeline.source.execute("ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (n)")
    pipeline.catch_up()
    pipeline.source.execute("INSERT INTO t VALUES (1, 10)", "UPDATE t SET id = 7 WHERE n = 10", "DELETE FROM t WHERE n = 1")
    pipeline.catch_up()
    pipeline.assert_equal("t")


def test_table_that_loses_its_key(pipeline: Pipeline) -> None:
    """Without a key equal rows are there as often as at the source; with a key again, each row is found by it."""
    make_table(pipeline)
    with pipeline.following():
        pipeline.source.execute("ALTER TABLE t DROP PRIMARY KEY", "INSERT INTO t VALUES (4, 4), (4, 4), (1, 1)")
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t")[0] == "Synced")
        assert pipeline.read_mirror("t", "id, n") == pipeline.read_source("t")
        pipeline.source.execute("DELETE FROM t WHERE id IN (1, 4) LIMIT 2", "DELETE FROM t WHERE id = 4")
        pipeline.source.execute("DELETE FROM t WHERE id = 1", "ALTER TABLE t ADD PRIMARY KEY (id)")
        pipeline.source.execute("UPDATE t SET n = 9 WHERE id = 2")
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t")[0] == "Synced")
        assert pipeline.read_mirror("t", "id, n") == pipeline.read_source("t") == [(2, 9), (3, 3)]


@pytest.mark.parametrize(
    "change",
    ["DROP PARTITION high", "TRUNCATE PARTITION high", "EXCHANGE PARTITION high WITH TABLE spare", "REORGANIZE PARTITION"],
)
def test_partitions(pipeline: Pipeline, change: str) -> None:
    """Partitions that are dropped, emptied or exchanged take rows with them that no row event names."""
    pipeline.source.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, n INT) PARTITION BY RANGE (id)"
        " (PARTITION low VALUES LESS THAN (10), PARTITION high VALUES LESS THAN (20))",
        "CREATE TABLE spare (id INT PRIMARY KEY, n INT)",
        "INSERT INTO t VALUES (1, 1), (11, 11)",
        "INSERT INTO spare VALUES (12, 12)",
    )  # fmt: skip
    pipeline.catch_up()
    if change == "REORGANIZE PARTITION":
        change += " high INTO (PARTITION middle VALUES LESS THAN (15), PARTITION top VALUES LESS THAN (30))"
    pipeline.source.execute(f"ALTER TABLE t {change}", "INSERT INTO t VALUES (2, 2)")
    pipeline.catch_up()
    pipeline.assert_equal("t", "spare")


def test_statements_that_change_nothing(pipeline: Pipeline) -> None:
    """Statements about other things, and such as no parser knows, neither stop the stream nor copy a table again."""
    make_table(pipeline)
    before = pipeline.read_mirror("t", "_seq", order="1")
    pipeline.source.execute(
        "CREATE TABLE IF NOT EXISTS t (id INT PRIMARY KEY, n INT)", "CREATE TABLE other (a INT PRIMARY KEY)",
        "CREATE INDEX by_n ON t (n)", "ANALYZE TABLE t",
        "OPTIMIZE TABLE t", "CREATE VIEW w AS SELECT * FROM t", "DROP VIEW w", "CREATE TABLE IF NOT EXISTS t LIKE other",
        "CREATE PROCEDURE p() BEGIN SELECT 'DROP TABLE t'; END", "DROP PROCEDURE p", "FLUSH LOGS",
        "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW SET NEW.n = NEW.n + 1", "DROP TRIGGER g",
        "CREATE TEMPORARY TABLE t2 (id INT)", "ALTER TABLE t COMMENT 'DROP TABLE t'",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.read_mirror("t", "_seq", order="1") == before


def test_create_or_replace(mariadb_pipeline: Pipeline) -> None:
    """MariaDB's CREATE OR REPLACE TABLE throws the old rows away."""
    pipeline = mariadb_pipeline
    make_table(pipeline)
    pipeline.source.execute("CREATE OR REPLACE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (9, 9)")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert {key["id"] for key in pipeline.deleted_keys("t")} == {1, 2, 3}


def test_foreign_key_cascades(mysql_pipeline: Pipeline) -> None:
    """MySQL 9.6 and later log the rows that a cascade deletes; they are gone from the mirror too."""
    pipeline = mysql_pipeline
    make_table(pipeline)
    pipeline.source.execute(
        "CREATE TABLE child (id INT PRIMARY KEY, t_id INT, FOREIGN KEY (t_id) REFERENCES t (id) ON DELETE CASCADE)",
        "INSERT INTO child VALUES (1, 1), (2, 1), (3, 2)", "DELETE FROM t WHERE id = 1",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.assert_equal("t", "child")


def test_names_that_need_care(pipeline: Pipeline) -> None:
    """Names with quotes, blanks, percent signs, capitals, and longer than Postgres takes; reserved words."""
    long = "l" * 64
    pipeline.source.execute(
        f"CREATE TABLE `{long}` (`{'é' * 40}` INT PRIMARY KEY, `select` INT)", f"INSERT INTO `{long}` VALUES (1, 1), (2, 2)",
        "CREATE TABLE `Odd \"na%me` (`Key %s` INT PRIMARY KEY, `a.b` INT, `x\"y` INT)",
        "INSERT INTO `Odd \"na%me` VALUES (1, 1, 1), (2, 2, 2)",
    )  # fmt: skip
    with pipeline.following():
        pipeline.source.execute(f"UPDATE `{long}` SET `select` = 5", f"DELETE FROM `{long}` WHERE `{'é' * 40}` = 1")
        pipeline.source.execute('UPDATE `Odd "na%me` SET `a.b` = 5', 'DELETE FROM `Odd "na%me` WHERE `Key %s` = 1')
        pipeline.sync()
    mirrors = pipeline.fetch("SELECT mirror, state, reason FROM warehouse.tables")
    assert {state for _, state, _ in mirrors} == {"Synced"}, mirrors
    for mirror, _, _ in mirrors:
        schema, _, name = mirror.partition(".")
        quoted = name.replace('"', '""')
        rows = pipeline.conn.execute(f'SELECT * FROM "{schema}"."{quoted}"').fetchall()  # type: ignore[arg-type]
        assert [row[:2] for row in rows] == [(2, 5)]


def test_key_of_another_type(pipeline: Pipeline) -> None:
    """A key whose type changes is copied afresh; old and new keys cannot be compared, so none counts as deleted."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    pipeline.catch_up()
    pipeline.source.execute("ALTER TABLE t MODIFY id VARCHAR(20)", "INSERT INTO t VALUES ('three', 3)")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.state("t")[0] == "Synced"
    assert pipeline.deleted_keys("t") == []


def test_a_renamed_table_keeps_its_mirror(pipeline: Pipeline) -> None:
    """The mirror takes the new name with its rows, their numbers, its indexes and quarantine, in place."""
    schema = pipeline.source.name
    make_table(pipeline)
    pipeline.source.execute("CREATE TABLE k (a INT, b INT)", "INSERT INTO k VALUES (1, 1), (1, 1)")
    pipeline.catch_up()
    pipeline.conn.execute(
        "INSERT INTO warehouse.quarantine (source, table_name, position, reason) SELECT source, table_name, 'x', 'y' FROM"
        " warehouse.tables WHERE table_name LIKE '%.t'"
    )
    before = pipeline.read_mirror("t", "id, n, _seq")
    pipeline.source.execute(
        "INSERT INTO t VALUES (4, 4)", "RENAME TABLE t TO x, k TO k2, x TO u", "UPDATE u SET n = 9 WHERE id = 4",
        "ALTER TABLE u RENAME AS v", "DELETE FROM v WHERE id = 2",
        "ALTER TABLE v ADD c INT DEFAULT 3", "DELETE FROM k2 LIMIT 1", "CREATE TABLE t (id INT PRIMARY KEY, n INT)",
        "INSERT INTO t VALUES (7, 7)",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.assert_equal("v", "k2", "t")
    states = "SELECT DISTINCT new_state FROM warehouse.state_changes WHERE table_name = ANY (%s) ORDER BY 1"
    assert pipeline.fetch(states, [f"{schema}.{name}" for name in ("u", "v", "k2", "x")]) == [("DroppedSource",), ("Synced",)]
    assert pipeline.read_mirror("v", "id, n, _seq")[:2] == [before[0], before[2]]
    assert pipeline.state("u") == ("DroppedSource", f"the source renamed the table to {schema}.v")
    assert pipeline.state("k")[0] == "DroppedSource"
    assert pipeline.fetch("SELECT table_name FROM warehouse.quarantine") == [(f"{schema}.v",)]
    assert pipeline.deleted_keys("v") == [{"id": 2}]
    # each mirror has its own index by _seq, and the names are free for others
    indexes = (
        "SELECT tablename, count(*) FROM pg_indexes WHERE schemaname = %s AND indexdef LIKE '%%(_seq)' GROUP BY 1 ORDER BY 1"
    )
    assert pipeline.fetch(indexes, schema) == [("k2", 1), ("t", 1), ("v", 1)]


def test_what_hangs_on_a_mirror_stays_with_its_name(pipeline: Pipeline) -> None:
    """A view, a right or an index of somebody's: the table is copied under its new name, and the mirror stays."""
    schema = pipeline.source.name
    hang = {
        "a": "CREATE VIEW {s}.w AS SELECT id FROM {s}.a", "b": "GRANT SELECT ON {s}.b TO pg_monitor",
        "c": "CREATE INDEX mine ON {s}.c (n)",
    }  # fmt: skip
    for name in hang:
        pipeline.source.execute(f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT)", f"INSERT INTO {name} VALUES (1, 1)")
    pipeline.catch_up()
    for statement in hang.values():
        pipeline.conn.execute(statement.format(s=schema))  # type: ignore[arg-type]
    with pipeline.following():
        for name in hang:
            pipeline.source.execute(f"RENAME TABLE {name} TO {name}2", f"INSERT INTO {name}2 VALUES (2, 2)")
        pipeline.sync()
        for name in hang:
            assert pipeline.state(name) == ("DroppedSource", f"the source renamed the table to {schema}.{name}2")
            assert pipeline.read_mirror(name) == [(1, 1)]
        pipeline.assert_equal(*(f"{name}2" for name in hang))


def test_a_swap_keeps_views_and_the_old_rows(pipeline: Pipeline) -> None:
    """Under a swap, in one statement or two, a name's mirror stays with its views and rights, and gets the other's rows."""
    schema = pipeline.source.name
    make_table(pipeline)
    pipeline.conn.execute(f"CREATE MATERIALIZED VIEW {schema}.w AS SELECT sum(n) AS n FROM {schema}.t")  # type: ignore[arg-type]
    pipeline.conn.execute(f"GRANT SELECT ON {schema}.t TO pg_monitor")  # type: ignore[arg-type]
    swaps = ("RENAME TABLE t TO t_old, t_new TO t",), ("RENAME TABLE t TO t_old", "RENAME TABLE t_new TO t")
    for i, swap in enumerate(swaps):
        pipeline.source.execute(
            "CREATE TABLE t_new LIKE t", f"ALTER TABLE t_new MODIFY id BIGINT, ADD c{i} INT DEFAULT 1",
            f"INSERT INTO t_new SELECT t.*, {i} FROM t", *swap, "UPDATE t SET n = n + 10", "DROP TABLE t_old",
        )  # fmt: skip
        seen = set()
        with pipeline.following():
            while pipeline.is_copying():
                seen.add(pipeline.fetch(f"SELECT count(*) FROM {schema}.t")[0][0])
            pipeline.sync()
        assert seen <= {3}
        pipeline.assert_equal("t")
        pipeline.conn.execute(f"REFRESH MATERIALIZED VIEW {schema}.w")  # type: ignore[arg-type]
        assert pipeline.fetch(f"SELECT n FROM {schema}.w") == [(6 + 30 * (i + 1),)]
        assert pipeline.fetch(f"SELECT has_table_privilege('pg_monitor', '{schema}.t', 'SELECT')") == [(True,)]
