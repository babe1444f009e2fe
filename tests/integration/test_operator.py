"""The command `replicator` as an operator meets it: exit codes, signals, standby, what it prints and what it never prints."""

import itertools
import signal
import time
from typing import Any

from replicator.clock import SourceClock
from replicator.source import Source
from tests.fixtures.pipeline import SOURCE, Pipeline
from warehouse.prune import prune_records

TABLE = "CREATE TABLE t (id INT PRIMARY KEY, n INT)"


def start_following(pipeline: Pipeline) -> Any:
    """Start `replicator run` and wait until it does nothing but follow the stream."""
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(
        lambda: (pipeline.status("state") == "Streaming" and not pipeline.is_copying()) or service.process.poll() is not None
    )
    assert service.process.poll() is None, service.read_log()
    return service


def test_run_until_caught_up(pipeline: Pipeline) -> None:
    """It applies what was committed before its start, and returns with 0."""
    pipeline.source.execute(TABLE, "INSERT INTO t VALUES (1, 1)")
    for number in (2, 3):
        done = pipeline.run("replicator", "run", "--until-caught-up")
        assert done.returncode == 0, done.stdout + done.stderr
        pipeline.assert_equal("t")
        pipeline.source.execute(f"INSERT INTO t VALUES ({number}, 1)")
    assert pipeline.status("state") == "Stopped"


def test_sigterm_finishes_the_work_at_hand(pipeline: Pipeline) -> None:
    """Under load, SIGTERM ends it with 0, and the next run goes on without loss or repetition."""
    pipeline.source.execute(TABLE)
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        for run in range(3):
            service = start_following(pipeline)
            for number in range(200):
                cursor.execute("INSERT INTO t VALUES (%s, 0)", (run * 1000 + number,))
            assert service.stop() == 0, service.read_log()
            assert pipeline.status("state") == "Stopped"
    pipeline.catch_up()
    pipeline.assert_equal("t")
    assert pipeline.fetch("SELECT inserted FROM warehouse.tables") == [(600,)]


def test_sigterm_while_a_lock_is_waited_for(mysql_pipeline: Pipeline) -> None:
    """A copy that cannot have its lock does not keep the process from stopping."""
    pipeline = mysql_pipeline
    pipeline.source.execute("CREATE TABLE keyless (a INT)")
    with pipeline.source.connect() as conn, conn.cursor() as cursor:
        cursor.execute("LOCK TABLES keyless WRITE")
        service = pipeline.start("replicator", "run")
        pipeline.wait_until(lambda: "waiting for a lock" in service.read_log())
        assert service.stop() == 0, service.read_log()
    assert "Traceback" not in service.read_log()


def test_pause_and_resume(pipeline: Pipeline) -> None:
    """A paused source stands still, says so, stays paused over a restart, and misses nothing once resumed."""
    pipeline.source.execute(TABLE)
    service = start_following(pipeline)
    pipeline.conn.execute("SELECT warehouse.pause(%s)", (SOURCE,))
    pipeline.wait_until(lambda: pipeline.status("state") == "Paused")
    pipeline.source.execute("INSERT INTO t VALUES (1, 1)")
    assert service.stop() == 0
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: pipeline.status("state") == "Paused")
    assert pipeline.read_mirror("t") == []
    pipeline.conn.execute("SELECT warehouse.resume(%s)", (SOURCE,))
    pipeline.sync()
    pipeline.assert_equal("t")
    assert pipeline.status("state") == "Streaming"
    assert service.stop() == 0


def test_standby_takes_over(pipeline: Pipeline) -> None:
    """A second replicator of the source waits, and goes on when the first one dies."""
    pipeline.source.execute(TABLE)
    first = start_following(pipeline)
    second = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: "standby" in second.read_log())
    pipeline.source.execute("INSERT INTO t VALUES (1, 1)")
    pipeline.sync()
    first.kill()
    pipeline.source.execute("INSERT INTO t VALUES (2, 2)")
    pipeline.sync()
    pipeline.assert_equal("t")
    assert pipeline.fetch("SELECT inserted FROM warehouse.tables") == [(2,)]
    assert second.stop() == 0


def test_standby_takes_over_from_a_frozen_process(mysql_pipeline: Pipeline) -> None:
    """A process that is stopped keeps its session and its lock: a standby ends them, and the other stands by once it wakes."""
    pipeline = mysql_pipeline
    pipeline.source.execute(TABLE)
    first = start_following(pipeline)
    # from elsewhere a server may have another address
    pipeline.configure(warehouse={"host": "localhost"})
    second = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: "standby" in second.read_log())
    first.process.send_signal(signal.SIGSTOP)
    pipeline.source.execute("INSERT INTO t VALUES (1, 1)")
    pipeline.sync()
    assert "taking over" in second.read_log()
    first.process.send_signal(signal.SIGCONT)
    pipeline.wait_until(lambda: "standby" in first.read_log())
    pipeline.source.execute("INSERT INTO t VALUES (2, 2)")
    pipeline.sync()
    pipeline.assert_equal("t")
    assert pipeline.status("state") == "Streaming"
    assert pipeline.fetch("SELECT inserted FROM warehouse.tables") == [(2,)]
    assert second.process.poll() is None
    assert first.stop() == 0
    assert second.stop() == 0


def test_status(pipeline: Pipeline) -> None:
    """Lag is 0 while the source is idle, and the binlog's runway is what the server keeps."""
    pipeline.source.execute(TABLE)
    with pipeline.following():
        pipeline.source.execute("INSERT INTO t VALUES (1, 1)")
        pipeline.sync()
        pipeline.wait_until(lambda: pipeline.status("lag_ms") == 0)
        asked = pipeline.fetch(
            "SELECT heard_at > now() - interval '10 s', committed_at > now() - interval '60 s' FROM warehouse.status"
        )
        assert asked == [(True, True)]
        runway = pipeline.status("binlog_runway")
        expiry = float(pipeline.source.execute("SELECT @@global.binlog_expire_logs_seconds")[0][0])
        assert runway is None if expiry == 0 else runway.total_seconds() == expiry
        look_at_clocks(pipeline)
    pipeline.conn.execute("UPDATE warehouse.sources SET heard_at = now() - interval '1 hour'")
    assert pipeline.status("lag_ms") >= 3_600_000


def look_at_clocks(pipeline: Pipeline) -> None:
    """The difference of the clocks is measured, and lag is told with it: never negative, and right whichever is ahead."""
    source, clock, row = Source(pipeline.settings.source), SourceClock(), itertools.count(10)
    pipeline.wait_until(lambda: abs(pipeline.status("clock_offset_ms") or 9e9) < 1000)

    def lag_with(ahead_s: int) -> float:
        # A session's clock can be set; the commit times that follow are true, so all of the difference is lag.
        source.query(f"SET TIMESTAMP = UNIX_TIMESTAMP(SYSDATE(6)) + {ahead_s}")
        clock.measure(source, pipeline.conn, SOURCE)
        assert abs(pipeline.status("clock_offset_ms") - 1000 * ahead_s) < 10_000
        assert clock.lag_ms(int(1e6 * (time.time() + ahead_s - 100))) > 80_000
        assert clock.lag_ms(int(1e6 * (time.time() + ahead_s + 100))) == 0
        pipeline.source.execute(f"INSERT INTO t VALUES ({next(row)}, 1)")
        pipeline.sync()
        return float(pipeline.status("lag_ms"))

    pipeline.wait_until(lambda: lag_with(60) > 50_000)
    assert lag_with(-60) == 0
    source.close()


def test_warning_before_the_binlog_ends(mysql_pipeline: Pipeline) -> None:
    """Most of the time that the source keeps its binlog has passed since the last commit: the status warns of it."""
    pipeline = mysql_pipeline
    pipeline.source.execute(TABLE)
    pipeline.catch_up()
    assert pipeline.status("warning") is None
    pipeline.conn.execute(
        "UPDATE warehouse.sources SET binlog_expire_s = 7200, heard_at = now() - interval '90 minutes';"
        " UPDATE warehouse.checkpoint SET committed_at = now() - interval '90 minutes'"
    )
    assert pipeline.status("warning") == "the source deletes what is not applied yet in 0.5 hours"
    pipeline.conn.execute("UPDATE warehouse.checkpoint SET committed_at = now() - interval '3 hours'")
    assert "may have deleted" in pipeline.status("warning")
    assert "may have deleted" in pipeline.run("warehouse", "status").stdout


def test_records_are_pruned(mysql_pipeline: Pipeline) -> None:
    """Old deletions go once every model has seen them, old changes of state but for the last of each table."""
    pipeline = mysql_pipeline
    pipeline.source.execute(TABLE, "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    pipeline.catch_up()
    pipeline.source.execute("DELETE FROM t WHERE id = 1", "DELETE FROM t WHERE id = 2", "DELETE FROM t WHERE id = 3")
    pipeline.catch_up()
    (first,), (second,), (third,) = pipeline.fetch("SELECT seq FROM warehouse.deleted_rows ORDER BY seq")
    pipeline.conn.execute(
        "UPDATE warehouse.deleted_rows SET committed_at = now() - interval '40 days' WHERE seq < %s", (third,)
    )
    pipeline.conn.execute("UPDATE warehouse.state_changes SET at = at - interval '100 days'")
    mirror = f"{pipeline.source.name}.t"
    pipeline.conn.execute("SELECT scorer.create_model('m', %s, %s, ARRAY['n'])", (mirror, f"SELECT n FROM {mirror}"))
    pipeline.conn.execute(
        "INSERT INTO scorer.watermarks (model, version, relation, source, seq, deleted_seq) VALUES ('m', 1, %s, %s, 0, %s)",
        (mirror, SOURCE, first),
    )
    kept = prune_records(pipeline.conn, pipeline.settings.retention, SOURCE)
    assert kept > 1
    assert pipeline.fetch("SELECT seq FROM warehouse.deleted_rows ORDER BY seq") == [(second,), (third,)]
    assert pipeline.fetch("SELECT count(*), count(DISTINCT coalesce(table_name, '')) FROM warehouse.state_changes") == [(2, 2)]
    pipeline.conn.execute("UPDATE scorer.watermarks SET deleted_seq = %s", (third,))
    assert prune_records(pipeline.conn, pipeline.settings.retention, SOURCE) == 1
    assert pipeline.fetch("SELECT seq FROM warehouse.deleted_rows") == [(third,)]
    prune_findings(pipeline, mirror)


def prune_findings(pipeline: Pipeline, mirror: str) -> None:
    """Old comparisons but for the last one go with their drift; anomalies and incidents only where that is set, and closed."""
    pipeline.conn.execute(
        "INSERT INTO warehouse.verifications (source, table_name, state, finished_at)"
        " SELECT source, table_name, 'Drifted', now() - interval '100 days' FROM warehouse.tables, generate_series(1, 2)"
    )
    pipeline.conn.execute(
        "INSERT INTO warehouse.drift (verification, source, table_name, key, what, position)"
        " SELECT id, source, table_name, '{}', 'extra', '' FROM warehouse.verifications"
    )
    pipeline.conn.execute(
        "INSERT INTO scorer.incidents (model, model_version, source, entity, closed_at, close_reason, first_seq, last_seq,"
        " anomalies, peak_score) SELECT 'm', 1, %s, e, at, CASE WHEN at < now() THEN 'ordinary again' END, 1, 1, 1, 1"
        " FROM (VALUES ('old', now() - interval '40 days'), ('recent', now() - interval '9 days'), ('open', NULL)) v (e, at)",
        (SOURCE,),
    )
    pipeline.conn.execute(
        "INSERT INTO scorer.anomalies (model, model_version, source_table, row_key, entity, detected_at, score, threshold,"
        " grade, direction, incident_id, seq)"
        " SELECT 'm', 1, %s, to_jsonb(id), entity, now() - interval '50 days', 2, 1, 1, 'high', id, 1 FROM scorer.incidents",
        (mirror,),
    )
    found = "SELECT (SELECT string_agg(entity, ' ' ORDER BY id) FROM scorer.incidents), string_agg(entity, ' ' ORDER BY id)"
    retention = pipeline.settings.retention
    assert prune_records(pipeline.conn, retention, SOURCE) == 1
    assert pipeline.fetch("SELECT count(*) FROM warehouse.drift") == [(1,)]
    assert pipeline.fetch(f"{found} FROM scorer.anomalies") == [("old recent open", "old recent open")]
    prune_records(pipeline.conn, retention.model_copy(update={"incidents_days": 30}), SOURCE)
    assert pipeline.fetch(f"{found} FROM scorer.anomalies") == [("recent open", "recent open")]
    prune_records(pipeline.conn, retention.model_copy(update={"anomalies_days": 30}), SOURCE)
    assert pipeline.fetch(f"{found} FROM scorer.anomalies") == [("recent open", "open")]


def test_secrets_are_never_printed(pipeline: Pipeline) -> None:
    """Neither password nor a row's values are in any output, status or log, at the most talkative level."""
    pipeline.configure(log={"level": "debug"})
    pipeline.source.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, word VARCHAR(50))", "INSERT INTO t VALUES (1, 'correct horse')"
    )
    service = start_following(pipeline)
    pipeline.source.execute("INSERT INTO t VALUES (2, 'battery staple')", "ALTER TABLE t ADD COLUMN c INT")
    pipeline.sync()
    printed = [pipeline.run("replicator", "check").stdout, pipeline.run("replicator", "check", "--json").stdout]
    assert service.stop() == 0
    printed += [service.read_log(), str(pipeline.fetch("SELECT * FROM warehouse.status, warehouse.table_status"))]
    printed += [str(pipeline.fetch("SELECT * FROM warehouse.state_changes"))]
    everything = "\n".join(printed)
    assert "streaming" in everything
    for secret in (pipeline.source.server.password, pipeline.database.password, "correct horse", "battery staple"):
        assert secret not in everything
