"""Every way to alter a table, met while streaming and after being away: both sides equal, and in place where that is exact."""

from dataclasses import dataclass

from tests.fixtures.pipeline import Pipeline

CREATE = (
    "CREATE TABLE {t} (id INT PRIMARY KEY, n INT, word VARCHAR(20) CHARACTER SET latin1, d DECIMAL(8,2) NOT NULL,"
    " e ENUM('a','b') DEFAULT 'a', at DATETIME NULL)"
)
ROWS = (
    "INSERT INTO {t} (id, n, word, d, e, at) VALUES (1, 1, 'ä', 1.50, 'a', '2024-01-01 00:00:00'),"
    " (2, NULL, 'two', 2, 'b', NULL), (3, 3, '', -3.25, NULL, '2024-02-29 12:00:00')"
)


@dataclass(frozen=True)
class Change:
    """An ALTER TABLE.

    Attributes:
        clauses: what stands behind ALTER TABLE t.
        after: statements that follow. key: the key's column then.
        copies: the table has to be copied afresh.
        only: the server that has it.
    """

    clauses: str
    after: tuple[str, ...] = ()
    key: str = "id"
    copies: bool = False
    only: str = ""


IN_PLACE = {
    "add": Change("ADD COLUMN c INT"),
    "add_first": Change("ADD c VARCHAR(10) FIRST, ADD c2 DATE AFTER n, ADD COLUMN (c3 INT NULL, c4 JSON)"),
    "add_numbers": Change(
        "ADD COLUMN c INT NOT NULL DEFAULT 5, ADD c2 DECIMAL(7,3) DEFAULT -1.5, ADD c3 DOUBLE DEFAULT 1e-3,"
        " ADD COLUMN c4 FLOAT DEFAULT 0.1, ADD c5 BIGINT UNSIGNED DEFAULT 18446744073709551615, ADD c6 YEAR DEFAULT 1999,"
        " ADD COLUMN c7 INT NOT NULL"
    ),
    "add_texts": Change(
        "ADD c VARCHAR(20) CHARACTER SET utf8mb4 DEFAULT 'it''s ä €', ADD c2 CHAR(5) NOT NULL DEFAULT 'x  ',"
        " ADD COLUMN c3 ENUM('x','y') NOT NULL DEFAULT 'y', ADD c4 SET('p','q') DEFAULT 'p,q', ADD c5 BINARY(4) DEFAULT 'xy',"
        " ADD c6 VARCHAR(9) NOT NULL, ADD c7 ENUM('u','v') NOT NULL, ADD c8 BLOB"
    ),
    "add_times": Change(
        "ADD COLUMN c DATE DEFAULT '2024-02-29', ADD c2 DATETIME(6) DEFAULT '2024-01-01 01:02:03.000004',"
        " ADD COLUMN c3 TIMESTAMP NULL, ADD c4 TIMESTAMP(3) NOT NULL DEFAULT '2024-01-01 01:02:03.004'"
    ),
    "add_instant": Change("ADD COLUMN c INT DEFAULT 7, ALGORITHM=INSTANT", ("ALTER TABLE {t} ADD c2 INT, LOCK=NONE",)),
    "add_uuid": Change("ADD COLUMN c UUID, ADD c2 INET6, ADD COLUMN IF NOT EXISTS n INT", only="mariadb"),
    "add_again": Change("ADD COLUMN c INT DEFAULT 1", ("ALTER TABLE {t} DROP c", "ALTER TABLE {t} ADD c INT DEFAULT 2")),
    "drop": Change("DROP COLUMN n"),
    "drop_and_add": Change("DROP COLUMN n, ADD COLUMN n VARCHAR(5) DEFAULT '9'"),
    "rename": Change("RENAME COLUMN n TO e, RENAME COLUMN e TO n", ("ALTER TABLE {t} CHANGE e `the %s` BIGINT FIRST",)),
    "rename_key": Change("RENAME COLUMN id TO ident", key="ident"),
    "widen": Change(
        "MODIFY n BIGINT, MODIFY d DECIMAL(12,4) NOT NULL, MODIFY word VARCHAR(300) CHARACTER SET latin1,"
        " MODIFY at DATETIME(6) NULL, MODIFY e ENUM('a','b','c') DEFAULT 'a'",
        ("ALTER TABLE {t} MODIFY word MEDIUMTEXT CHARACTER SET latin1, MODIFY d DECIMAL(12,4) NULL",),
    ),
    "widen_key": Change("MODIFY id BIGINT NOT NULL AUTO_INCREMENT"),
    "reorder": Change("MODIFY at DATETIME NULL FIRST, MODIFY n INT AFTER d"),
    "key": Change("DROP PRIMARY KEY, ADD PRIMARY KEY (d)", key="d"),
    "key_of_two": Change("DROP PRIMARY KEY, ADD PRIMARY KEY (id, d)"),
    "charset": Change("MODIFY word VARCHAR(20) CHARACTER SET utf8mb4"),
    "convert": Change("CONVERT TO CHARACTER SET utf8mb4", ("ALTER TABLE {t} DEFAULT CHARACTER SET latin1",)),
    "nothing": Change(
        "COMMENT 'ADD COLUMN x INT', MODIFY n INT COMMENT 'DROP COLUMN y', ALTER COLUMN word SET DEFAULT 8",
        ("ALTER TABLE {t} ADD INDEX i (n), ADD UNIQUE KEY u (id, n)", "DROP INDEX i ON {t}", "CREATE INDEX j ON {t} (n, d)",
         "ALTER TABLE {t} FORCE", "OPTIMIZE TABLE {t}", "ALTER TABLE {t} PARTITION BY HASH(id) PARTITIONS 3",
         "ALTER TABLE {t} ADD PARTITION PARTITIONS 1", "ALTER TABLE {t} REMOVE PARTITIONING"),
    ),
}  # fmt: skip

COPIES = {
    "add_now": Change("ADD COLUMN c DATETIME DEFAULT CURRENT_TIMESTAMP"),
    "add_generated": Change("ADD COLUMN c INT AS (n + 1) STORED"),
    "narrow": Change("MODIFY word VARCHAR(3) CHARACTER SET latin1"),
    "narrow_charset": Change("MODIFY word VARCHAR(20) CHARACTER SET ascii"),
    "other_type": Change("MODIFY n VARCHAR(20)"),
    "other_labels": Change("MODIFY e ENUM('b','a')"),
    "not_null": Change("MODIFY n INT NOT NULL DEFAULT 4"),
    "no_key": Change("DROP PRIMARY KEY"),
    "versioned": Change("/*!50000 ADD COLUMN c INT DEFAULT 3 */"),
}


def all_changes(pipeline: Pipeline) -> dict[str, Change]:
    """The changes that this server knows, by the table that they are tried on."""
    flavor = "mariadb" if "mariadb" in str(pipeline.source.execute("SELECT VERSION()")).lower() else "mysql"
    found = {**IN_PLACE, **{name: Change(c.clauses, c.after, c.key, True) for name, c in COPIES.items()}}
    return {f"t_{name}": change for name, change in found.items() if change.only in ("", flavor)}


def make_tables(pipeline: Pipeline, changes: dict[str, Change]) -> dict[str, int]:
    """A mirrored table with three rows for each change; how often each was copied."""
    pipeline.source.execute(*(text.format(t=name) for name in changes for text in (CREATE, ROWS)))
    pipeline.catch_up()
    return {name: copies_of(pipeline, name) for name in changes}


def alter(pipeline: Pipeline, changes: dict[str, Change]) -> None:
    """For each table: rows, the change, and rows again."""
    statements = ["SET SESSION sql_mode = ''"]
    for name, change in changes.items():
        key = "ident" if change.key == "ident" else "id"
        statements += [
            f"INSERT INTO {name} (id, n, word, d) VALUES (4, 4, 'vier', 4)",
            f"UPDATE {name} SET n = 33 WHERE id = 3",
            f"ALTER TABLE {name} {change.clauses}",
            *(text.format(t=name) for text in change.after),
            f"INSERT INTO {name} ({key}, word, d) VALUES (5, 'fuenf', 5.5)",
            f"UPDATE {name} SET d = d + 7 WHERE {key} IN (1, 4)",
            f"DELETE FROM {name} WHERE {key} = 2",
        ]
    pipeline.source.execute(*statements)


def copies_of(pipeline: Pipeline, name: str) -> int:
    """How often a table was copied, the first time included."""
    rows = pipeline.fetch(
        "SELECT count(*) FROM warehouse.state_changes WHERE table_name = %s AND new_state = 'Snapshotting' AND reason IS NULL",
        f"{pipeline.source.name}.{name}",
    )
    return int(rows[0][0])


def check(pipeline: Pipeline, changes: dict[str, Change], before: dict[str, int]) -> None:
    """Both sides are equal; what is said to be in place was not copied, and what is not was."""
    wrong = []
    for name, change in changes.items():
        try:
            pipeline.assert_equal(name, order=f"`{change.key}`")
            assert (copies_of(pipeline, name) > before[name]) == change.copies, "copied" if not change.copies else "not copied"
        except Exception as error:  # noqa: BLE001 - all of them are shown
            wrong.append(f"{name}: {str(error)[:500]} {pipeline.state(name)}")
    assert not wrong, "\n".join(wrong)


def test_changes_while_streaming(pipeline: Pipeline) -> None:
    """Each change as soon as it comes, a few moments behind the source."""
    changes = all_changes(pipeline)
    before = make_tables(pipeline, changes)
    with pipeline.following():
        alter(pipeline, changes)
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.fetch("SELECT bool_and(state = 'Synced') FROM warehouse.tables") == [(True,)])
        check(pipeline, changes, before)


def test_changes_while_away(pipeline: Pipeline) -> None:
    """All changes wait in the binlog, and the source's tables are already what the last of them made."""
    changes = all_changes(pipeline)
    before = make_tables(pipeline, changes)
    alter(pipeline, changes)
    pipeline.catch_up()
    check(pipeline, changes, before)


def test_swaps_of_online_schema_changes(pipeline: Pipeline) -> None:
    """The statements that gh-ost and pt-online-schema-change issue: both sides are equal, the ghost tables gone."""
    pipeline.source.execute(*(text.format(t=name) for name in ("t", "u") for text in (CREATE, ROWS)))
    pipeline.catch_up()
    ghost = (
        "CREATE TABLE _t_gho LIKE t", "ALTER TABLE _t_gho MODIFY n VARCHAR(20), ADD COLUMN c INT DEFAULT 3",
        "INSERT /* gh-ost */ IGNORE INTO _t_gho (id, n, word, d, e, at)"
        " (SELECT id, n, word, d, e, at FROM t FORCE INDEX (PRIMARY) WHERE id >= 1 AND id < 3 LOCK IN SHARE MODE)",
        "UPDATE t SET word = 'changed' WHERE id = 1",
        "REPLACE /* gh-ost */ INTO _t_gho (id, n, word, d, e, at) SELECT id, n, word, d, e, at FROM t WHERE id = 1",
        "INSERT IGNORE INTO _t_gho (id, n, word, d, e, at) (SELECT id, n, word, d, e, at FROM t WHERE id >= 3)",
        "CREATE TABLE _t_del (id INT AUTO_INCREMENT PRIMARY KEY) COMMENT='ghost-cut-over-sentry'", "DROP TABLE _t_del",
        "RENAME TABLE t TO _t_del, _t_gho TO t", "INSERT INTO t (id, word, d) VALUES (9, 'after', 9)",
        "DROP TABLE IF EXISTS _t_del",
    )  # fmt: skip
    percona = (
        "CREATE TABLE _u_new LIKE u", "ALTER TABLE _u_new DROP COLUMN e, ADD INDEX (n)",
        "CREATE TRIGGER pt_osc_del AFTER DELETE ON u FOR EACH ROW DELETE IGNORE FROM _u_new WHERE _u_new.id <=> OLD.id",
        "CREATE TRIGGER pt_osc_upd AFTER UPDATE ON u FOR EACH ROW REPLACE INTO _u_new (id, n, word, d, at)"
        " VALUES (NEW.id, NEW.n, NEW.word, NEW.d, NEW.at)",
        "CREATE TRIGGER pt_osc_ins AFTER INSERT ON u FOR EACH ROW REPLACE INTO _u_new (id, n, word, d, at)"
        " VALUES (NEW.id, NEW.n, NEW.word, NEW.d, NEW.at)",
        "INSERT LOW_PRIORITY IGNORE INTO _u_new (id, n, word, d, at) SELECT id, n, word, d, at FROM u LOCK IN SHARE MODE",
        "UPDATE u SET n = 77 WHERE id = 1", "DELETE FROM u WHERE id = 2", "INSERT INTO u (id, d) VALUES (8, 8)",
        "ANALYZE TABLE _u_new", "RENAME TABLE u TO _u_old, _u_new TO u", "DROP TABLE IF EXISTS _u_old",
        "DROP TRIGGER IF EXISTS pt_osc_del", "DROP TRIGGER IF EXISTS pt_osc_upd", "DROP TRIGGER IF EXISTS pt_osc_ins",
        "INSERT INTO u (id, d) VALUES (10, 1)", "RENAME TABLE t TO s, u TO t, s TO u",
        "UPDATE t SET d = 5 WHERE id = 1",
    )  # fmt: skip
    with pipeline.following(patient=True):
        pipeline.source.execute(*ghost)
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t") == ("Synced", None))
        pipeline.assert_equal("t")
    pipeline.source.execute(*percona)
    pipeline.catch_up()
    pipeline.assert_equal("t", "u")


def test_what_the_source_dropped_is_kept(pipeline: Pipeline) -> None:
    """A dropped column keeps its values; added again it is another one, and the old one has another name."""
    schema = pipeline.source.name
    pipeline.source.execute(CREATE.format(t="t"), ROWS.format(t="t"))
    pipeline.catch_up()
    pipeline.source.execute("ALTER TABLE t DROP n", "INSERT INTO t (id, d) VALUES (4, 4)")
    pipeline.catch_up()
    assert pipeline.read_mirror("t", "id, n") == [(1, 1), (2, None), (3, 3), (4, None)]
    pipeline.source.execute(
        "ALTER TABLE t ADD n VARCHAR(3) DEFAULT 'new'", "ALTER TABLE t DROP n", "ALTER TABLE t ADD n INT DEFAULT 1"
    )
    pipeline.catch_up()
    pipeline.assert_equal("t")
    columns = pipeline.read_mirror("t", "id, n, n__old, n__old2")
    assert columns == [(1, 1, 1, "new"), (2, 1, None, "new"), (3, 1, 3, "new"), (4, 1, None, "new")]
    assert pipeline.fetch(f"SELECT count(*) FROM {schema}.t WHERE _seq > 4") == [(0,)], "no row was written again"


def test_views_do_not_stop_a_wider_type(pipeline: Pipeline) -> None:
    """A view of the user's holds a column's type: a new column takes its place, in place and with a copy."""
    schema = pipeline.source.name
    pipeline.source.execute(CREATE.format(t="t"), ROWS.format(t="t"))
    pipeline.catch_up()
    pipeline.conn.execute(f"CREATE VIEW {schema}.mine AS SELECT id, n, word FROM {schema}.t")  # type: ignore[arg-type]
    pipeline.source.execute("ALTER TABLE t MODIFY n BIGINT", "UPDATE t SET n = 5000000000 WHERE id = 1")
    pipeline.source.execute("ALTER TABLE t MODIFY id BIGINT", "INSERT INTO t (id, d) VALUES (6000000000, 1)")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert (2, None, "two") in pipeline.fetch(f"SELECT * FROM {schema}.mine")
    pipeline.source.execute("ALTER TABLE t MODIFY word VARBINARY(50)")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert len(pipeline.fetch(f"SELECT * FROM {schema}.mine")) == 4


def test_another_key_names_the_rows_anew(pipeline: Pipeline) -> None:
    """What was kept by the old keys learns that these are gone, and every row is there again under its new one."""
    pipeline.source.execute(CREATE.format(t="t"), ROWS.format(t="t"))
    pipeline.catch_up()
    before = pipeline.fetch("SELECT max(_seq) FROM " + pipeline.source.name + ".t")[0][0]
    pipeline.source.execute("ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (d)", "DELETE FROM t WHERE id = 2")
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.deleted_keys("t") == [{"id": 1}, {"id": 2}, {"id": 3}, {"d": 2.0}]
    assert pipeline.fetch(f"SELECT count(*) FROM {pipeline.source.name}.t WHERE _seq > {before}") == [(2,)]
    pipeline.source.execute("SET SESSION sql_mode = ''", "ALTER TABLE t CHANGE d amount DECIMAL(8,2) NOT NULL")
    pipeline.catch_up()
    assert pipeline.deleted_keys("t")[4:] == [{"d": 1.5}, {"d": -3.25}]


def test_dropped_columns_can_be_dropped_here_too(pipeline: Pipeline) -> None:
    """With the setting, a column that nothing here reads goes with that of the source."""
    pipeline.configure(replicator={"dropped_columns": "drop"})
    pipeline.source.execute(CREATE.format(t="t"), ROWS.format(t="t"))
    pipeline.catch_up()
    pipeline.conn.execute(f"CREATE VIEW {pipeline.source.name}.mine AS SELECT n FROM {pipeline.source.name}.t")  # type: ignore[arg-type]
    pipeline.source.execute("ALTER TABLE t DROP n, DROP word")
    pipeline.catch_up()
    columns = pipeline.fetch("SELECT column_name FROM information_schema.columns WHERE table_name = 't'")
    assert ("n",) in columns and ("word",) not in columns
