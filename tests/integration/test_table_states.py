"""Tables that cannot be copied or kept: they say why, the others go on, and nothing is tried without end."""

from typing import Any

import pytest

from replicator.copies import Copies
from replicator.errors import SourceUnavailable, UnsupportedEvent
from tests.fixtures.pipeline import SOURCE, Pipeline


def count_states(pipeline: Pipeline, table: str) -> int:
    """How many changes of state a table has had."""
    return int(
        pipeline.fetch("SELECT count(*) FROM warehouse.state_changes WHERE table_name = %s", f"{pipeline.source.name}.{table}")[
            0
        ][0]
    )


def test_resync_asked_for_in_sql(pipeline: Pipeline) -> None:
    """A mirror that somebody damaged is copied afresh on request, by any of its names, and by the command."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    name = f"{pipeline.source.name}.t"
    with pipeline.following():
        pipeline.sync()
        for ask in ("sql", "command"):
            pipeline.conn.execute(f"UPDATE {name} SET n = 99 WHERE id = 1; INSERT INTO {name} VALUES (7, 7, 0)")
            if ask == "sql":
                pipeline.conn.execute("SELECT warehouse.resync(%s)", (name,))
            else:
                done = pipeline.run("replicator", "snapshot", name)
                assert done.returncode == 0, done.stderr
            pipeline.wait_until(
                lambda: pipeline.fetch("SELECT state, resync_requested FROM warehouse.tables") == [("Synced", False)]
            )
            pipeline.assert_equal("t")
    assert pipeline.deleted_keys("t") == [{"id": 7}, {"id": 7}]


def test_resync_that_cannot_be_met_is_tried_once(pipeline: Pipeline) -> None:
    """A copy that is refused leaves the reason, and the request is gone."""
    pipeline.source.execute("CREATE TABLE odd (id INT PRIMARY KEY, xmin INT)", "CREATE TABLE gone (id INT PRIMARY KEY)")
    with pipeline.following():
        pipeline.sync()
        pipeline.source.execute("DROP TABLE gone")
        pipeline.wait_until(lambda: pipeline.state("gone")[0] == "DroppedSource")
        for table in ("odd", "gone"):
            pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.{table}",))
        pipeline.wait_until(lambda: pipeline.fetch("SELECT bool_or(resync_requested) FROM warehouse.tables") == [(False,)])
        assert pipeline.state("odd")[0] == "Failed"
        assert pipeline.state("gone")[0] == "DroppedSource"
        assert count_states(pipeline, "odd") <= 2


def test_key_that_no_index_takes(pipeline: Pipeline) -> None:
    """Keys may be longer in MySQL than an index entry of Postgres: the row is set aside, by the copy and by the stream."""
    pipeline.source.execute(
        "CREATE TABLE old (k VARBINARY(3000) PRIMARY KEY, n INT)",
        "CREATE TABLE young (k VARBINARY(3000) PRIMARY KEY, n INT)",
        "CREATE TABLE good (id INT PRIMARY KEY, n INT)",
    )
    random_bytes = ", ".join(["RANDOM_BYTES(1000)"] * 3)
    insert = f"INSERT INTO {{}} VALUES (CONCAT({random_bytes}), 1)"
    pipeline.source.execute(insert.format("old"))
    with pipeline.following():
        pipeline.source.execute(insert.format("young"), "INSERT INTO good VALUES (1, 1)")
        pipeline.sync()
        name = f"{pipeline.source.name}.young"
        held = "SELECT quarantined FROM warehouse.table_status WHERE table_name = %s"
        pipeline.wait_until(lambda: pipeline.fetch(held, name) == [(1,)])
        assert pipeline.state("young") == ("Synced", None)
        pipeline.assert_equal("good")
    assert pipeline.state("old") == ("Synced", None)
    reasons = pipeline.fetch("SELECT reason FROM warehouse.quarantine")
    assert len(reasons) == 2
    assert all("index" in reason for (reason,) in reasons)


def test_dropped_mirror_is_made_again(pipeline: Pipeline) -> None:
    """Somebody drops a mirror, or one of its columns: the next change brings it back, whole."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1)")
    pipeline.source.execute("CREATE TABLE u (id INT PRIMARY KEY, n INT)", "INSERT INTO u VALUES (1, 1)")
    with pipeline.following():
        pipeline.sync()
        pipeline.conn.execute(f"DROP TABLE {pipeline.source.name}.t; ALTER TABLE {pipeline.source.name}.u DROP COLUMN n")
        pipeline.source.execute("INSERT INTO t VALUES (2, 2)", "INSERT INTO u VALUES (2, 2)")
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t")[0] == pipeline.state("u")[0] == "Synced")
        pipeline.assert_equal("t")
        assert pipeline.read_mirror("u", "id, n") == pipeline.read_source("u")


def test_mirror_that_somebody_wrote_into_heals(pipeline: Pipeline) -> None:
    """A row that is in the way of an insert makes the table be copied afresh."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1)")
    with pipeline.following():
        pipeline.sync()
        pipeline.conn.execute(f"INSERT INTO {pipeline.source.name}.t VALUES (2, 0, 0)")
        pipeline.source.execute("INSERT INTO t VALUES (2, 2)")
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.state("t")[0] == "Synced" and len(pipeline.read_mirror("t")) == 2)
        pipeline.assert_equal("t")
    reasons = pipeline.fetch("SELECT reason FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'")
    assert "does not fit the mirror" in reasons[0][0]


def test_columns_named_as_those_of_every_table(pipeline: Pipeline) -> None:
    """Postgres keeps some names of columns to itself; a table that has one fails, the stream goes on."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, xmin INT)", "CREATE TABLE u (id INT PRIMARY KEY, _seq INT)")
    pipeline.source.execute("CREATE TABLE good (id INT PRIMARY KEY, n INT)", "INSERT INTO good VALUES (1, 1)")
    pipeline.catch_up()
    pipeline.assert_equal("good")
    for table, column in (("t", "xmin"), ("u", "_seq")):
        state, reason = pipeline.state(table)
        assert state == "Failed"
        assert column in str(reason)


def test_databases_named_as_our_schemas(pipeline: Pipeline) -> None:
    """A source database called warehouse must never be mirrored into the control schema."""
    source = pipeline.source
    source.execute("CREATE DATABASE IF NOT EXISTS warehouse")
    try:
        source.execute("CREATE TABLE warehouse.sources (source INT PRIMARY KEY)", "INSERT INTO warehouse.sources VALUES (1)")
        pipeline.configure(source={"tables": ["warehouse.%"]})
        pipeline.catch_up()
        assert pipeline.fetch("SELECT state FROM warehouse.tables") == [("Failed",)]
        assert pipeline.fetch("SELECT source FROM warehouse.sources") == [(SOURCE,)]
    finally:
        source.execute("DROP DATABASE warehouse")


@pytest.mark.parametrize("statement", ["ALTER TABLE t DROP PARTITION high", "RENAME TABLE t TO t_old, spare TO t"])
def test_copy_that_is_due_survives_a_crash(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """The replicator ends between a statement that calls for a copy and the copy: the next run makes it."""
    pipeline.source.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, n INT) PARTITION BY RANGE (id)"
        " (PARTITION low VALUES LESS THAN (10), PARTITION high VALUES LESS THAN (20))",
        "CREATE TABLE spare (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 1), (11, 11)",
    )  # fmt: skip
    pipeline.catch_up()
    pipeline.source.execute(statement)

    def crash(*_: Any) -> bool:
        raise SourceUnavailable("the test ends the run here")

    with monkeypatch.context() as patch, pytest.raises(SourceUnavailable):
        patch.setattr(Copies, "begin", crash)
        pipeline.catch_up()
    pipeline.catch_up()
    pipeline.assert_equal("t")


def test_partial_row_image_fails_its_table(pipeline: Pipeline) -> None:
    """A session that logs partial rows costs the tables it touches; a table that is being copied stays Failed, too."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT, m INT)", "INSERT INTO t VALUES (1, 1, 1)")
    pipeline.source.execute("CREATE TABLE u (id INT PRIMARY KEY, n INT)")
    pipeline.catch_up()
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        cursor.execute("SET SESSION binlog_row_image = MINIMAL")
        cursor.execute("UPDATE t SET n = 5 WHERE id = 1")
    pipeline.source.execute("INSERT INTO u VALUES (1, 1)")
    pipeline.catch_up()
    pipeline.assert_equal("u")
    state, reason = pipeline.state("t")
    assert state == "Failed"
    assert "binlog_row_image" in str(reason)
    assert pipeline.read_mirror("t") == [(1, 1, 1)]
    pipeline.conn.execute("SELECT warehouse.resync(%s)", (f"{pipeline.source.name}.t",))
    pipeline.catch_up()
    pipeline.assert_equal("t")


def test_statement_logged_as_text_stops_the_stream(pipeline: Pipeline) -> None:
    """A session that logs its changes as statements cannot be followed: it stops there, and says so in the status."""
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
    pipeline.catch_up()
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        cursor.execute("SET SESSION binlog_format = STATEMENT")
        cursor.execute("INSERT INTO t VALUES (1, 1)")
    for _ in range(2):
        with pytest.raises(UnsupportedEvent, match="logged as a statement"):
            pipeline.catch_up()
    assert pipeline.status("state") == "Failed"
    assert "binlog_format" in pipeline.status("reason")
    assert pipeline.read_mirror("t") == []
