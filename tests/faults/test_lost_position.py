"""Positions that the source no longer has: tables say so and stay readable, nothing begins anew by itself, a verb mends it."""

from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.pipeline import SOURCE, Pipeline, make_pipeline
from tests.fixtures.servers import Database, MakeServer, make_source_database


def insert(pipeline: Pipeline, first: int, last: int) -> None:
    """One transaction per row, into both tables."""
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        for number in range(first, last):
            cursor.execute("INSERT INTO a VALUES (%s, %s)", (number, number))
            cursor.execute("INSERT INTO b VALUES (%s, %s)", (number, number))


def assert_lost(pipeline: Pipeline) -> None:
    """A run ends with 3; both tables wait for somebody, with the reason, and can be read."""
    before = {table: pipeline.read_mirror(table) for table in ("a", "b")}
    done = pipeline.run("replicator", "run", "--until-caught-up")
    assert done.returncode == 3, done.stdout + done.stderr
    assert pipeline.status("state") == "Failed"
    assert "resync_source" in pipeline.status("reason")
    for table in ("a", "b"):
        state, reason = pipeline.state(table)
        assert state == "ResyncRequired"
        assert "position is lost" in str(reason)
        assert before[table]
        assert pipeline.read_mirror(table) == before[table]


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_reset_to_the_same_numbers(
    kind: str, make_server: MakeServer, mysql_server: Any, mariadb_server: Any, database: Database, tmp_path: Path
) -> None:
    """The same server, file, offsets and GTIDs, other transactions: noticed, and equal again after resync_source."""
    server: Any = make_server(kind)
    with make_source_database(server) as source, make_pipeline(source, database, tmp_path) as pipeline:
        source.execute(*(f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT)" for name in ("a", "b")))
        reset = "RESET MASTER" if kind == "mariadb" else "RESET BINARY LOGS AND GTIDS"
        source.execute(reset)
        insert(pipeline, 1, 10)
        pipeline.catch_up()
        pipeline.assert_equal("a", "b")
        source.execute("DELETE FROM a WHERE id = 3", reset)
        # The same transactions by number and size, and then more: only the file's head is another one.
        insert(pipeline, 101, 140)
        for _ in range(2):
            assert_lost(pipeline)

        # Targeted: one table is copied, the other one is given up until somebody asks for it.
        asked = pipeline.run("warehouse", "resync-source", "--tables", f"{source.name}.a")
        assert asked.returncode == 0, asked.stdout + asked.stderr
        pipeline.catch_up()
        pipeline.assert_equal("a")
        state, reason = pipeline.state("b")
        assert state == "Failed"
        assert "resync" in str(reason)
        insert(pipeline, 201, 205)
        pipeline.catch_up()
        pipeline.assert_equal("a")
        assert len(pipeline.read_mirror("b")) == 9

        # All, while it runs.
        with pipeline.following():
            pipeline.fetch("SELECT resync_source(%s)", SOURCE)
            pipeline.wait_until(lambda: pipeline.state("b")[0] == "Synced")
            insert(pipeline, 301, 305)
            pipeline.sync()
            pipeline.assert_equal("a", "b")

        # Another server by mistake is refused; back at the right one nothing is copied.
        before = pipeline.fetch("SELECT sum(inserted) FROM warehouse.tables")
        other = mariadb_server if kind == "mariadb" else mysql_server
        secret = tmp_path / "other"
        secret.write_text(other.password)
        pipeline.configure(source={"port": other.port, "password_file": str(secret)})
        assert_lost(pipeline)
        pipeline.configure(source={"port": server.port, "password_file": str(tmp_path / "source.password")})
        pipeline.catch_up()
        pipeline.assert_equal("a", "b")
        assert pipeline.fetch("SELECT sum(inserted) FROM warehouse.tables") == before


def test_resync_source_refuses_what_is_not_there(mysql_pipeline: Pipeline) -> None:
    """An unknown source or table: exit 2, and nothing is requested."""
    mysql_pipeline.catch_up()
    for arguments in (["nowhere"], ["--tables", "no.table"]):
        done = mysql_pipeline.run("warehouse", "resync-source", *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
    assert mysql_pipeline.fetch("SELECT resync_requested FROM warehouse.sources") == [(False,)]
