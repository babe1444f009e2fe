"""Foreign-key cascades: where the server does not log what they change, the children follow all the same."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, make_source_database

# Several levels, keys of several columns, a tree, both rules of each kind, and keys that children take over from parents.
TABLES = {
    "a": "CREATE TABLE a (id INT PRIMARY KEY, code BIGINT UNSIGNED UNIQUE, n INT)",
    "b": "CREATE TABLE b (id INT PRIMARY KEY, a_id INT, n INT, FOREIGN KEY (a_id) REFERENCES a (id)"
    " ON DELETE CASCADE ON UPDATE CASCADE)",
    "c": "CREATE TABLE c (a_id INT, nr INT, b_id INT, n INT, PRIMARY KEY (a_id, nr), FOREIGN KEY (a_id) REFERENCES a (id)"
    " ON DELETE CASCADE ON UPDATE CASCADE, FOREIGN KEY (b_id) REFERENCES b (id) ON DELETE SET NULL)",
    "d": "CREATE TABLE d (id INT PRIMARY KEY, a_id INT, nr INT, n INT, FOREIGN KEY (a_id, nr) REFERENCES c (a_id, nr)"
    " ON DELETE SET NULL ON UPDATE CASCADE)",
    "e": "CREATE TABLE e (id INT PRIMARY KEY, code BIGINT UNSIGNED, n INT, FOREIGN KEY (code) REFERENCES a (code)"
    " ON DELETE SET NULL ON UPDATE SET NULL)",
    "tree": "CREATE TABLE tree (id INT PRIMARY KEY, up INT, FOREIGN KEY (up) REFERENCES tree (id) ON DELETE CASCADE)",
}


class Workload:
    """Random transactions over all of the tables; what the server refuses is left out."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self.random = random.Random(seed)
        self.connection = pipeline.source.connect(autocommit=False)
        self.cursor = self.connection.cursor()

    def statement(self) -> str:
        """One statement; keys are few, so that most of them mean something."""
        pick = self.random.randint
        i, j, k, n = pick(1, 12), pick(1, 12), pick(1, 4), pick(0, 99)
        return self.random.choice(
            (
                f"INSERT IGNORE INTO a VALUES ({i}, {18446744073709551000 + j}, {n}), ({j}, {j}, {n})",
                f"INSERT IGNORE INTO b VALUES ({pick(1, 40)}, {i}, {n}), ({pick(1, 40)}, {j}, {n})",
                f"INSERT IGNORE INTO c VALUES ({i}, {k}, {pick(1, 40)}, {n}), ({j}, {k}, NULL, {n})",
                f"INSERT IGNORE INTO d VALUES ({pick(1, 40)}, {i}, {k}, {n}), ({pick(1, 40)}, {j}, {k}, {n})",
                f"INSERT IGNORE INTO e SELECT {pick(1, 40)}, code, n FROM a WHERE id = {i}",
                f"INSERT IGNORE INTO tree VALUES ({i}, {j}), ({j}, NULL), ({pick(1, 40)}, {i})",
                f"DELETE FROM a WHERE id = {i}", f"DELETE FROM a WHERE id BETWEEN {i} AND {j}", f"DELETE FROM b WHERE id = {i}",
                f"DELETE FROM tree WHERE id = {i}", f"DELETE FROM c WHERE nr = {k} LIMIT 2",
                f"UPDATE a SET id = {j} WHERE id = {i}", f"UPDATE a SET code = {n} WHERE id = {i}",
                f"UPDATE a SET id = id + 1 WHERE id >= {i} ORDER BY id DESC", f"UPDATE c SET nr = {k} WHERE a_id = {i} LIMIT 1",
                f"UPDATE b SET a_id = {j} WHERE id = {i}", f"UPDATE d SET n = {n} WHERE a_id = {i}",
                f"UPDATE a SET n = {n}", f"REPLACE INTO a VALUES ({i}, {j}, {n})",
                f"INSERT INTO a VALUES ({i}, {j}, {n}) ON DUPLICATE KEY UPDATE id = {j}",
            )
        )  # fmt: skip

    def step(self) -> None:
        """One transaction, sometimes without foreign keys being checked, sometimes rolled back."""
        unchecked = self.random.random() < 0.1
        for _ in range(self.random.randint(1, 5)):
            if unchecked:
                # a child without a parent would stay one, so nothing else runs unchecked
                statement = f"DELETE FROM tree WHERE id = {self.random.randint(1, 12)}"
                self.run("SET foreign_key_checks = 0")
                self.run(statement)
                self.run("SET foreign_key_checks = 1")
            else:
                self.run(self.statement())
        self.connection.rollback() if self.random.random() < 0.1 else self.connection.commit()

    def run(self, statement: str) -> None:
        """Run a statement that the server may refuse."""
        try:
            self.cursor.execute(statement)
        except self.connection.Error as error:
            # a duplicate key, a child in the way, a value that a child would not take
            assert error.args[0] in (1062, 1451, 1452, 1761, 1762, 1205, 1213), error

    def close(self) -> None:
        """End the connection."""
        self.connection.close()


@pytest.fixture(params=["mariadb", "mysql", "mysql native"])
def family(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[Pipeline]:
    """The tables, on servers that log cascades and on those that do not."""
    if request.param == "mysql native":
        server = request.getfixturevalue("make_server")("mysql", options={"innodb_native_foreign_keys": "ON"})
    else:
        server = request.getfixturevalue(f"{request.param}_server")
    with make_source_database(server) as source, make_pipeline(source, database, tmp_path) as pipeline:
        source.execute(*TABLES.values())
        yield pipeline
        source.execute("SET foreign_key_checks = 0", *(f"DROP TABLE IF EXISTS {name}" for name in TABLES))


def assert_never_copied_again(pipeline: Pipeline) -> None:
    """No table needed a fresh copy, so that all changes were derived."""
    found = pipeline.fetch(
        "SELECT table_name, reason FROM warehouse.state_changes WHERE new_state IN ('ResyncRequired', 'Failed')"
    )
    assert [row for row in found if "copied with the tables" not in row[1]] == []


@pytest.mark.parametrize("seed", [1, 2])
def test_random_changes(family: Pipeline, seed: int) -> None:
    """Both sides stay equal through random transactions, in single steps, in large batches and in parts of transactions."""
    family.configure(replicator={"batch_rows": 2 if seed == 2 else 10_000})
    workload = Workload(family, seed)
    for _ in range(30):
        workload.step()
    family.catch_up()
    family.assert_equal(*TABLES)
    for steps in (1, 1, 1, 1, 5, 20, 100):
        for _ in range(steps):
            workload.step()
        family.catch_up()
        family.assert_equal(*TABLES)
    workload.close()
    assert_never_copied_again(family)
    assert_deletions_are_known(family)


def assert_deletions_are_known(pipeline: Pipeline) -> None:
    """Every number is given out once, and no row is older than the deletion of its key."""
    schema = pipeline.source.name
    for name in TABLES:
        found = pipeline.fetch(
            f"SELECT m.* FROM {schema}.{name} m JOIN warehouse.deleted_rows d ON d.table_name = '{schema}.{name}'"
            " AND to_jsonb(m.*) @> d.key AND d.seq >= m._seq"
        )
        assert found == [], name
    numbers = " UNION ALL ".join(f"SELECT _seq FROM {schema}.{name}" for name in TABLES)
    assert pipeline.fetch(
        f"SELECT count(*) - count(DISTINCT _seq), max(_seq) <= (SELECT seq FROM warehouse.checkpoint) FROM ({numbers}) n"
    ) == [(0, True)]


def test_killed_and_copied_at_any_moment(family: Pipeline) -> None:
    """The replicator is killed, and tables are copied afresh, while parents and children change."""
    workload = Workload(family, 5)
    for round_ in range(5):
        service = family.start("replicator", "run")
        if round_:
            name = workload.random.choice(tuple(TABLES))
            family.conn.execute("SELECT warehouse.resync(%s)", (f"{family.source.name}.{name}",))
        for _ in range(workload.random.randint(20, 80)):
            workload.step()
        family.wait_until(lambda: family.status("state") == "Streaming")
        for _ in range(workload.random.randint(1, 40)):
            workload.step()
        service.kill()
    workload.close()
    family.catch_up()
    family.assert_equal(*TABLES)


def test_order_within_a_transaction(family: Pipeline) -> None:
    """Children that come before their parent goes are gone, those that come with it again stay; each has its number."""
    source = family.source
    source.execute("INSERT INTO a VALUES (1, 1, 0), (2, 2, 0)", "INSERT INTO b VALUES (1, 1, 0), (2, 1, 0), (3, 2, 0)")
    family.catch_up()
    with source.connect(autocommit=False) as conn, conn.cursor() as cursor:
        for statement in (
            "INSERT INTO b VALUES (4, 1, 0)", "DELETE FROM a WHERE id = 1", "INSERT INTO a VALUES (1, 1, 5)",
            "INSERT INTO b VALUES (1, 1, 9)", "UPDATE a SET id = 7 WHERE id = 1",
        ):  # fmt: skip
            cursor.execute(statement)
        conn.commit()
    family.catch_up()
    family.assert_equal("a", "b")
    assert family.read_mirror("b") == [(1, 7, 9), (3, 2, 0)]
    assert {"id": 2} in family.deleted_keys("b")
    assert_never_copied_again(family)
    assert_deletions_are_known(family)


def test_changes_that_cannot_be_derived(mariadb_pipeline: Pipeline) -> None:
    """Keys of text are equal by their collation, and some tables have no key: those children are copied afresh."""
    pipeline = mariadb_pipeline
    pipeline.source.execute(
        "CREATE TABLE p (k VARCHAR(9) COLLATE utf8mb4_general_ci PRIMARY KEY, n INT)",
        "CREATE TABLE q (id INT PRIMARY KEY, k VARCHAR(9) COLLATE utf8mb4_general_ci,"
        " FOREIGN KEY (k) REFERENCES p (k) ON DELETE CASCADE ON UPDATE CASCADE)",
        "CREATE TABLE r (k VARCHAR(9) COLLATE utf8mb4_general_ci, FOREIGN KEY (k) REFERENCES p (k)"
        " ON DELETE SET NULL ON UPDATE CASCADE)",
        "INSERT INTO p VALUES ('a', 1), ('b', 2)", "INSERT INTO q VALUES (1, 'A'), (2, 'b')",
        "INSERT INTO r VALUES ('A'), ('b')",
    )  # fmt: skip
    with pipeline.following():
        pipeline.source.execute("UPDATE p SET n = 5", "DELETE FROM p WHERE k = 'a'", "UPDATE p SET k = 'c'")
        pipeline.sync()
        pipeline.wait_until(lambda: all(pipeline.state(table)[0] == "Synced" for table in "pqr"))
        pipeline.assert_equal("p", "q", order="1")
        assert pipeline.read_mirror("q") == [(2, "c")]
        assert {k for (k,) in pipeline.read_mirror("r", order="1")} == {k for (k,) in pipeline.read_source("r", order="1")}
    reasons = pipeline.fetch("SELECT reason FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'")
    assert any("cannot be derived" in reason for (reason,) in reasons)


def test_parent_that_is_not_replicated(mariadb_pipeline: Pipeline) -> None:
    """Nothing can be derived from a table outside of source.tables: the child says so, and comes back with it."""
    pipeline = mariadb_pipeline
    pipeline.source.execute(TABLES["a"], TABLES["b"], "INSERT INTO a VALUES (1, 1, 1)", "INSERT INTO b VALUES (1, 1, 1)")
    pipeline.configure(source={"tables": [f"{pipeline.source.name}.b"]})
    done = pipeline.run("replicator", "check")
    assert "b will be Failed" in done.stdout + done.stderr
    pipeline.catch_up()
    state, reason = pipeline.state("b")
    assert state == "Failed"
    assert "cascades" in str(reason)
    pipeline.configure(source={"tables": [f"{pipeline.source.name}.%"]})
    pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.b",))
    pipeline.catch_up()
    pipeline.source.execute("DELETE FROM a")
    pipeline.catch_up()
    pipeline.assert_equal("a", "b")


@pytest.mark.parametrize("step_by_step", [True, False])
def test_foreign_keys_that_come_and_go(mariadb_pipeline: Pipeline, step_by_step: bool) -> None:
    """Cascades are derived only while the key is there, also where all of it is read at once afterwards."""
    pipeline = mariadb_pipeline
    pipeline.source.execute("CREATE TABLE p (id INT PRIMARY KEY)", "CREATE TABLE q (id INT PRIMARY KEY, p_id INT)")
    pipeline.source.execute("INSERT INTO p VALUES (1), (2), (3), (4)", "INSERT INTO q VALUES (1, 1), (2, 2), (3, 3), (4, 4)")
    pipeline.catch_up()
    add = "ALTER TABLE q ADD CONSTRAINT f FOREIGN KEY (p_id) REFERENCES p (id) ON DELETE CASCADE"
    for statement in (
        "DELETE FROM p WHERE id = 1", "DELETE FROM q WHERE id = 1", add, "DELETE FROM p WHERE id = 2",
        "ALTER TABLE q DROP FOREIGN KEY f", "DELETE FROM p WHERE id = 3", "INSERT INTO p VALUES (3)", add,
        "DELETE FROM p WHERE id = 4", "CREATE TABLE s (id INT PRIMARY KEY, q_id INT REFERENCES q (id) ON DELETE SET NULL)",
        "INSERT INTO s VALUES (1, 3)", "DELETE FROM p WHERE id = 3",
    ):  # fmt: skip
        pipeline.source.execute(statement)
        if step_by_step:
            pipeline.catch_up()
    pipeline.catch_up()
    pipeline.assert_equal("p", "q", "s", order="1")
    assert pipeline.read_mirror("s") == [(1, None)]
