"""A source on which nothing happens that is wanted: the position moves on all the same, and the lag stays where it belongs."""

import time
from typing import Any

import pytest

from tests.fixtures.pipeline import Pipeline
from tests.fixtures.servers import SourceDatabase, make_source_database


@pytest.fixture
def elsewhere(pipeline: Pipeline) -> Any:
    """A database on the same server that is not replicated."""
    with make_source_database(pipeline.source.server) as database:
        database.execute("CREATE TABLE t (id INT PRIMARY KEY)")
        yield database


def test_only_other_tables_change(pipeline: Pipeline, elsewhere: SourceDatabase) -> None:
    """Rotations, and transactions without a pause on tables that are not wanted: position and lag are those of a source that is
    followed, and what the server deletes of its binlog is not missed.
    """
    pipeline.source.execute("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    # so that no heartbeat comes and no tick, and what says that the source is there is their transactions alone
    pipeline.configure(source={"heartbeat_s": 0.3}, replicator={"checkpoint_idle_s": 3600})
    with pipeline.following():
        pipeline.sync()
        before = pipeline.status("heard_at")
        with elsewhere.connect() as conn, conn.cursor() as cursor:
            number, deadline = 0, time.monotonic() + 60
            while (pipeline.status("heard_at") - before).total_seconds() < 2:
                number += 1
                cursor.execute("INSERT INTO t VALUES (%s)", (number,))
                assert time.monotonic() < deadline, "the replicator does not say that it hears the source"
    pipeline.configure(replicator={"checkpoint_idle_s": 0.2})
    with pipeline.following():
        elsewhere.execute(*["INSERT INTO t SELECT MAX(id) + 1 FROM t", "FLUSH BINARY LOGS"] * 3)
        status = "SHOW MASTER STATUS" if pipeline.source.server.name == "mariadb" else "SHOW BINARY LOG STATUS"
        newest = pipeline.source.execute(status)[0][0]
        pipeline.wait_until(lambda: pipeline.status("file") == newest and pipeline.status("lag_ms") == 0)
        (row,) = pipeline.fetch("SELECT inserted FROM warehouse.tables")
        assert row == (1,)
    pipeline.catch_up()
