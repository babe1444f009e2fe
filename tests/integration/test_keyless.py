"""Tables without a key: the mirror is the same multiset, whatever happens on the way."""

import json
import random
from collections import Counter
from typing import Any

import pytest

from tests.fixtures.pipeline import SOURCE, Pipeline
from tests.fixtures.servers import SourceDatabase

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
    source = pipeline.source.execute(
        f"SELECT a, b, CAST(c AS CHAR), CAST(d AS CHAR), e IS NULL FROM {table}"
    )
    mirror = pipeline.fetch(
        f"SELECT a, b, CASE c WHEN 1.5 THEN '1.5' WHEN 0 THEN CASE WHEN c::text = '-0' THEN '-0' ELSE '0' END END,"
        f" coalesce(to_char(d, 'YYYY-MM-DD HH24:MI:SS'), _raw ->> 'd'), (e IS NULL)::int"
        f" FROM {pipeline.source.name}.{table}"
    )
    return Counter(source), Counter(mirror)


def assert_same(pipeline: Pipeline, table: str) -> None:
    """Both sides hold the same rows equally often, and the counters agree."""
    source, mirror = read_both(pipeline, table)
    assert mirror == source, (mirror - source, source - mirror)
    assert pipeline.state(table) == ("Synced", None)
    counted = pipeline.fetch(
        "SELECT rows, inserted - deleted FROM warehouse.tables WHERE table_name = %s", f"{pipeline.source.name}.{table}"
    )
    assert counted == [(source.total(), source.total())]


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
