"""Random DDL mixed with random rows, until both sides are compared: the stream never stops, and every table ends equal.

    python -m tests.faults.ddl_fuzz --statements 400 [--seed 1] [--source mysql|mariadb]

A short round with a fixed seed is among the tests; this is the long version. It ends with 1 at the first difference.
"""

import argparse
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pymysql

from demo.servers import MariaDBServer, MySQLServer, PostgresServer, cache_folder, provide
from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, make_source_database

TABLES = ("t0", "t1", "t2", "t3")
NAMES = ("a", "b", "c", "d", "e f", "Zeit")
TYPES = (
    "TINYINT", "SMALLINT", "INT", "INT UNSIGNED", "BIGINT", "BIGINT UNSIGNED", "DECIMAL(6,2)", "DECIMAL(9,4)", "DECIMAL(12,2)",
    "VARCHAR(3)", "VARCHAR(10)", "VARCHAR(40)", "CHAR(8)", "TEXT", "MEDIUMTEXT", "VARCHAR(10) CHARACTER SET latin1",
    "VARCHAR(20) CHARACTER SET utf8mb4", "TEXT CHARACTER SET latin1", "VARBINARY(6)", "VARBINARY(30)", "BLOB", "BINARY(4)",
    "DATE", "DATETIME", "DATETIME(3)", "DATETIME(6)", "TIMESTAMP NULL", "YEAR", "ENUM('x','y')", "ENUM('x','y','z')",
    "ENUM('y','x')", "SET('p','q')", "SET('p','q','r')", "DOUBLE",
)  # fmt: skip
DEFAULTS = ("", "", "", " DEFAULT NULL", " NOT NULL", " DEFAULT 7", " NOT NULL DEFAULT 3", " DEFAULT '1'", " DEFAULT 'x'",
            " DEFAULT '2024-02-29'", " NULL", " DEFAULT (1 + 1)", " COMMENT 'DROP TABLE t0, x'")  # fmt: skip
VALUES = ("NULL", "0", "1", "7", "-3", "250", "70000", "1.25", "''", "'x'", "'p,q'", "'ä€'", "'long enough to be cut'", "'a '",
          "'2024-02-29'", "'2024-01-01 01:02:03.456'", "x'00ff'", "1e3")  # fmt: skip


_NO_DATE = re.compile(r"0000-|\d{4}-00-|\d{4}-\d\d-00")


class Fuzz:
    """Random statements about a few tables of one database."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self.pipeline, self.random = pipeline, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.refused = 0
        self.history: list[str] = []
        self._connection = pipeline.source.connect()
        self._cursor = self._connection.cursor()
        self._cursor.execute("SET SESSION sql_mode = ''")
        for table in TABLES:
            self.execute(self._create(table))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def execute(self, text: str) -> None:
        """Run a statement; the server may refuse it."""
        try:
            self._cursor.execute(text)
            self.done[text.split()[0].upper()] += 1
            self.history.append(text)
        except pymysql.err.MySQLError:
            self.refused += 1

    @property
    def ddl(self) -> int:
        """How many statements about tables were carried out."""
        return sum(
            n for word, n in self.done.items() if word not in ("INSERT", "UPDATE", "DELETE", "REPLACE", "BEGIN", "COMMIT")
        )

    def step(self) -> None:
        """One statement about a table, with some rows around it."""
        for _ in range(self.random.randrange(3)):
            self._change_rows()
        table = self.random.choice(TABLES)
        kind = self.random.choices(
            (self._alter, self._rename, self._swap, self._truncate, self._drop, self._select, self._index, self._partition,
             self._other), (60, 3, 4, 3, 3, 3, 5, 5, 8),
        )[0]  # fmt: skip
        kind(table)
        for _ in range(self.random.randrange(3)):
            self._change_rows()

    # ------------------------------------------------------------------------------------------------ rows
    def _columns(self, table: str) -> list[str]:
        self._cursor.execute(
            "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = %s"
            " AND COALESCE(GENERATION_EXPRESSION, '') = '' ORDER BY ORDINAL_POSITION",
            (table,),
        )
        return [str(row[0]) for row in self._cursor.fetchall()]

    def _change_rows(self) -> None:
        table = self.random.choice(TABLES)
        columns = self._columns(table)
        if not columns:
            return
        many = self.random.random() < 0.2
        if many:
            self.execute("BEGIN")
        for _ in range(self.random.randrange(2, 6) if many else 1):
            chosen = [name for name in columns if self.random.random() < 0.7 or name == "id"]
            sign = self.random.random()
            where = f"WHERE `{columns[0]}` % 3 = {self.random.randrange(3)}"
            if sign < 0.6:
                rows = ", ".join(
                    "(" + ", ".join(self._value(name) for name in chosen) + ")" for _ in range(self.random.randrange(1, 4))
                )
                names = ", ".join(f"`{name}`" for name in chosen)
                self.execute(f"{self.random.choice(('INSERT IGNORE', 'REPLACE'))} INTO {table} ({names}) VALUES {rows}")
            elif sign < 0.9:
                name = self.random.choice(columns)
                self.execute(f"UPDATE IGNORE {table} SET `{name}` = {self._value(name)} {where}")
            else:
                self.execute(f"DELETE FROM {table} {where}")
        if many:
            self.execute("COMMIT")

    def _value(self, name: str) -> str:
        return str(self.random.randrange(60)) if name in ("id", "id2") else self.random.choice(VALUES)

    # ------------------------------------------------------------------------------------------------ tables
    def _create(self, table: str) -> str:
        columns = [f"`{name}` {self.random.choice(TYPES)}" for name in self.random.sample(NAMES, self.random.randrange(1, 4))]
        key = "INT PRIMARY KEY" if self.random.random() < 0.85 else "INT"
        return f"CREATE TABLE {table} (id {key}, {', '.join(columns)})"

    def _definition(self) -> str:
        place = self.random.choice(("", "", "", " FIRST", f" AFTER `{self.random.choice((*NAMES, 'id'))}`"))
        return self.random.choice(TYPES) + self.random.choice(DEFAULTS) + place

    def _alter(self, table: str) -> None:
        clauses = [self._clause(self._columns(table)) for _ in range(self.random.choice((1, 1, 1, 2, 3)))]
        self.execute(
            f"{self.random.choice(('ALTER TABLE', 'alter table', 'ALTER /* why */ TABLE'))} {table} {', '.join(clauses)}"
        )

    def _clause(self, columns: list[str]) -> str:
        name = f"`{self.random.choice([*columns, *NAMES] if self.random.random() < 0.2 else columns or NAMES)}`"
        new = f"`{self.random.choice(NAMES)}`"
        return self.random.choice(
            (
                f"ADD COLUMN {new} {self._definition()}", f"ADD {new} {self._definition()}", f"ADD ({new} INT, `g` DATE)",
                f"DROP COLUMN {name}", f"DROP {name}", f"RENAME COLUMN {name} TO {new}",
                f"CHANGE {name} {new} {self._definition()}",
                f"MODIFY {name} {self._definition()}", f"MODIFY {name} {self._definition()}", f"ALTER {name} SET DEFAULT 5",
                "DROP PRIMARY KEY", f"ADD PRIMARY KEY ({name})", "DROP PRIMARY KEY, ADD PRIMARY KEY (id)",
                f"ADD INDEX ({name})",
                f"ADD UNIQUE ({name})", "CONVERT TO CHARACTER SET utf8mb4", "CONVERT TO CHARACTER SET latin1", "COMMENT = 'x'",
                "ENGINE = InnoDB", "FORCE", f"ADD COLUMN {new} INT AS (id + 1) STORED", f"ADD {new} INT AUTO_INCREMENT UNIQUE",
                f"ADD COLUMN {new} TIMESTAMP DEFAULT CURRENT_TIMESTAMP", f"ADD {new} INT DEFAULT 4, ALGORITHM=INSTANT",
                "MODIFY id BIGINT", "MODIFY id INT NOT NULL AUTO_INCREMENT", "CHANGE id id2 INT", "CHANGE id2 id INT",
            )
        )  # fmt: skip

    def _rename(self, table: str) -> None:
        other = self.random.choice(TABLES)
        self.execute(f"RENAME TABLE {table} TO aside, {other} TO {table}, aside TO {other}")

    def _swap(self, table: str) -> None:
        """As gh-ost and pt-online-schema-change do it."""
        columns = ", ".join(f"`{name}`" for name in self._columns(table))
        self.execute("DROP TABLE IF EXISTS _new, _gone")
        self.execute(f"CREATE TABLE _new LIKE {table}")
        self.execute(f"ALTER TABLE _new {self._clause([])}")
        self.execute(f"INSERT IGNORE INTO _new ({columns}) SELECT {columns} FROM {table}")
        self.execute(f"RENAME TABLE {table} TO _gone, _new TO {table}")
        self.execute("DROP TABLE IF EXISTS _gone")

    def _truncate(self, table: str) -> None:
        self.execute(f"TRUNCATE TABLE {table}")

    def _drop(self, table: str) -> None:
        self.execute(f"DROP TABLE {table}")
        self.execute(self._create(table))

    def _select(self, table: str) -> None:
        other = self.random.choice(TABLES)
        self.execute(f"DROP TABLE IF EXISTS {table}")
        self.execute(f"CREATE TABLE {table} SELECT * FROM {other}")
        self.execute(self._create(table))

    def _index(self, table: str) -> None:
        name = self.random.choice(self._columns(table) or ["id"])
        kind, index = self.random.choice((("INDEX", "i1"), ("UNIQUE INDEX", "u1")))
        made = f"CREATE {kind} {index} ON {table} (`{name}`)"
        self.execute(self.random.choice((made, f"DROP INDEX {index} ON {table}")))

    def _partition(self, table: str) -> None:
        self.execute(
            f"ALTER TABLE {table} "
            + self.random.choice(
                (
                    "PARTITION BY HASH(id) PARTITIONS 3", "ADD PARTITION PARTITIONS 1", "COALESCE PARTITION 1",
                    "REMOVE PARTITIONING",
                    "PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (20), PARTITION p1 VALUES LESS THAN MAXVALUE)",
                    "DROP PARTITION p0", "TRUNCATE PARTITION p1", "REBUILD PARTITION ALL",
                )
            )
        )  # fmt: skip

    def _other(self, table: str) -> None:
        self.execute(
            self.random.choice(
                (
                    f"OPTIMIZE TABLE {table}", f"ANALYZE TABLE {table}",
                    "CREATE OR REPLACE VIEW v AS SELECT 1 AS `DROP TABLE t0`",
                    f"CREATE TABLE IF NOT EXISTS {table} (id INT)", "DROP PROCEDURE IF EXISTS p", "FLUSH TABLES",
                    "CREATE PROCEDURE p() BEGIN SELECT 'ALTER TABLE t0 DROP a'; END", f"DROP TABLE IF EXISTS {table}, missing",
                    f"CREATE TRIGGER g BEFORE INSERT ON {table} FOR EACH ROW SET @x = 'DROP TABLE t1'",
                    "DROP TRIGGER IF EXISTS g",
                    f"ALTER TABLE {table} COMMENT 'RENAME TO x, DROP COLUMN a'", "CREATE TABLE IF NOT EXISTS other (id INT)",
                )
            )
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ the comparison
    def compare(self) -> int:
        """All tables of the source equal their mirrors; how many there are.

        Raises:
            AssertionError: one does not.
        """
        pipeline = self.pipeline
        pipeline.sync()
        states = "SELECT table_name, state, reason FROM warehouse.tables WHERE state NOT IN ('Synced', 'DroppedSource')"
        pipeline.wait_until(lambda: not pipeline.fetch(states + " AND state <> 'Failed'"))
        # A zero date, or a text with a NUL, that became part of a key: its table is right to be given up.
        failed = pipeline.fetch(states + " AND reason NOT LIKE 'a key holds a value that Postgres cannot hold%'")
        assert not failed, failed
        refused = {name for name, _, _ in pipeline.fetch(states)}
        refused |= {name for (name,) in pipeline.fetch("SELECT table_name FROM warehouse.quarantine WHERE state = 'Held'")}
        self._cursor.execute(
            "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE'"
        )
        tables = sorted(str(row[0]) for row in self._cursor.fetchall())
        for table in tables:
            if f"{pipeline.source.name}.{table}" in refused:
                continue
            known = pipeline.fetch(
                "SELECT c ->> 'name', c ->> 'mirror_name'"
                " FROM warehouse.tables, jsonb_array_elements(columns) WITH ORDINALITY AS x (c, n)"
                " WHERE table_name = %s AND state = 'Synced' ORDER BY n", f"{pipeline.source.name}.{table}",
            )  # fmt: skip
            self._cursor.execute(f"SHOW COLUMNS FROM `{table}`")
            names = [str(row[0]) for row in self._cursor.fetchall()]
            assert [name for name, _ in known] == names, f"{table}: columns {known}, not {names}"
            self._cursor.execute(f"SELECT * FROM `{table}`")
            expected = Counter(tuple(map(_plain, row)) for row in self._cursor.fetchall())
            mirror = ", ".join('"' + name + '"' for _, name in known)
            found = Counter(tuple(map(_plain, row)) for row in pipeline.read_mirror(table, mirror, order="1"))
            missing, surplus = expected - found, found - expected
            assert not missing and not surplus, f"{table}: missing {list(missing)[:3]}, surplus {list(surplus)[:3]}"
        return len(tables)


def _plain(value: Any) -> Any:
    """A value as both drivers give it, or nearly."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    if isinstance(value, str):
        # what the mirror keeps in _raw
        return None if _NO_DATE.match(value) else value.replace("\0", "␀")
    if isinstance(value, bool | date):
        return value
    if isinstance(value, int | float | Decimal):
        return Decimal(str(value)).normalize() if not isinstance(value, float) else Decimal(repr(value)).normalize()
    return value


def run_fuzz(pipeline: Pipeline, seed: int, statements: int, every: int = 40) -> Fuzz:
    """Random statements, some while the replicator is away, compared after every so many."""
    fuzz = Fuzz(pipeline, seed)
    moments = random.Random(seed + 1)
    try:
        pipeline.catch_up()
        while fuzz.ddl < statements:
            target = min(statements, fuzz.ddl + every)
            if moments.random() < 0.4:
                while fuzz.ddl < target - every // 2:
                    fuzz.step()
            with pipeline.following(patient=True):
                while fuzz.ddl < target:
                    fuzz.step()
                fuzz.compare()
    except BaseException:
        print("\n".join(fuzz.history[-60:]))
        raise
    finally:
        fuzz.close()
    return fuzz


@contextmanager
def open_pipeline(kind: str, seed: int) -> Iterator[Pipeline]:
    """Servers of their own, and an empty warehouse."""
    programs = provide([kind, "postgres"], cache_folder(), print)
    server_class: Any = MySQLServer if kind == "mysql" else MariaDBServer
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tailrace-fuzz-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        source = stack.enter_context(server_class(programs, folder / "source"))
        target = stack.enter_context(PostgresServer(programs, folder / "postgres"))
        login = Database(target.host, target.port, target.user, target.password, "postgres")
        with login.connect(autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE fuzz_{seed}")  # type: ignore[arg-type]
        database = Database(target.host, target.port, target.user, target.password, f"fuzz_{seed}")
        source_database = stack.enter_context(make_source_database(source))
        yield stack.enter_context(make_pipeline(source_database, database, folder))


def main() -> None:
    """One long round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--statements", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", choices=("mysql", "mariadb"), default="mysql")
    args = parser.parse_args()
    with open_pipeline(args.source, args.seed) as pipeline:
        fuzz = run_fuzz(pipeline, args.seed, args.statements)
        copies = pipeline.fetch("SELECT count(*) FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'")[0][0]
        done = f"{fuzz.ddl} DDL, {sum(fuzz.done.values())} in all, {fuzz.refused} refused"
        print(f"seed {args.seed}: {done}, {copies} copies, equal")


if __name__ == "__main__":
    main()
