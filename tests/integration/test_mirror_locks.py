"""A mirror that must be altered while somebody reads it: others pass, the status says who it is, and both sides end equal."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.fixtures.copies import SMALL
from tests.fixtures.pipeline import Pipeline


@contextmanager
def reading(pipeline: Pipeline, table: str = "t") -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Somebody whose transaction has read a mirror and does not end."""
    with pipeline.database.connect(application_name="an analyst") as conn:
        conn.execute(f"SELECT count(*) FROM {pipeline.source.name}.{table}")  # type: ignore[arg-type]
        yield conn
        conn.rollback()


def make_tables(pipeline: Pipeline) -> None:
    """Tables t and other with a few rows."""
    for name in ("t", "other"):
        pipeline.source.execute(f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT)", f"INSERT INTO {name} VALUES (1, 1), (2, 2)")
    pipeline.catch_up()


def test_a_reader_holds_up_the_stream_only(pipeline: Pipeline) -> None:
    """The statement waits, the status says for whom, short queries of the same table pass; then all that waited comes."""
    make_tables(pipeline)
    with pipeline.following():
        with reading(pipeline) as reader:
            pipeline.source.execute("ALTER TABLE t ADD c INT DEFAULT 5", "INSERT INTO t VALUES (3, 3, 3)")
            pipeline.source.execute("INSERT INTO other VALUES (3, 3)")
            pipeline.wait_until(lambda: pipeline.status("reason") is not None)
            reason = pipeline.status("reason")
            assert f"process {reader.info.backend_pid} ({pipeline.database.user}, an analyst)" in reason
            pipeline.wait_until(lambda: pipeline.state("t") == ("Synced", reason))
            assert pipeline.status("state") == "Streaming"
            # several attempts are made meanwhile, and nobody waits behind them for long
            pipeline.conn.execute("SET statement_timeout = '20s'")
            for _ in range(200):
                assert pipeline.read_mirror("t", "id, n") == [(1, 1), (2, 2)]
            assert len(pipeline.read_mirror("other")) == 2, "the row is behind the statement"
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.status("reason") is None)
        pipeline.assert_equal("t", "other")
    assert pipeline.fetch("SELECT count(*) FROM warehouse.state_changes WHERE new_state = 'ResyncRequired'") == [(0,)]


def test_a_stop_while_waiting(mysql_pipeline: Pipeline) -> None:
    """The next run takes the statement up again."""
    pipeline = mysql_pipeline
    make_tables(pipeline)
    with reading(pipeline):
        with pipeline.following():
            pipeline.source.execute("INSERT INTO t VALUES (3, 3)", "ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (n)")
            pipeline.wait_until(lambda: pipeline.status("reason") is not None)
        assert pipeline.status("state") == "Stopped"
        pipeline.source.execute("INSERT INTO t VALUES (3, 4)")
    pipeline.catch_up()
    pipeline.assert_equal("t")


def test_patience_ends(pipeline: Pipeline) -> None:
    """After the time that is set the stream goes on without the table, whose copy begins once its mirror can be locked."""
    make_tables(pipeline)
    pipeline.configure(replicator=SMALL | {"lock_patience_s": 0.3})
    with pipeline.following():
        with reading(pipeline):
            pipeline.source.execute("ALTER TABLE t ADD c INT DEFAULT 5", "INSERT INTO other VALUES (3, 3)")
            pipeline.wait_until(lambda: len(pipeline.read_mirror("other")) == 3)
            pipeline.wait_until(lambda: "waits for a lock" in str(pipeline.state("t")[1]))
            assert pipeline.state("t")[0] == "ResyncRequired"
            pipeline.source.execute("UPDATE t SET n = 7, c = 8 WHERE id = 1")
            pipeline.follow_up()
        pipeline.sync()
        pipeline.assert_equal("t", "other")
        assert pipeline.status("reason") is None
