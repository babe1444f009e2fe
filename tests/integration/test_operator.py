"""The command `replicator` as an operator meets it: exit codes, signals, standby, what it prints and what it never prints."""

import itertools
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator.check import check_server_id
from replicator.clock import SourceClock
from replicator.source import Source
from tests.fixtures.pipeline import SOURCE, Pipeline, make_pipeline
from tests.fixtures.servers import Database, MakeServer, SourceDatabase, make_source_database
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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("host =", "hots =", "source.hots"),
        ("port = ", "port = 9", "source.port"),
        ("source.password", "source.nothing", "password_file"),
    ],
)
def test_wrong_settings_exit_2(mysql_pipeline: Pipeline, old: str, new: str, said: str) -> None:
    """A misspelt key, a value out of range and a missing password: one message that names the key, exit 2."""
    pipeline = mysql_pipeline
    pipeline.file.write_text(pipeline.file.read_text().replace(old, new, 1))
    done = pipeline.run("replicator", "check")
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("side", ["source", "warehouse"])
def test_wrong_password_exits_3(pipeline: Pipeline, side: str) -> None:
    """A refused login is for an operator, not for another try; the password is not shown."""
    pipeline.source.execute(TABLE)
    pipeline.catch_up()
    secret = pipeline.folder / "wrong"
    secret.write_text("Tr0ub4dor&3")
    pipeline.configure(**{side: {"password_file": str(secret)}})
    for verb in ("check", "run"):
        done = pipeline.run("replicator", verb)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "Tr0ub4dor&3" not in done.stdout + done.stderr
    if side == "source":
        assert pipeline.status("state") == "Failed"
        assert "denied" in pipeline.status("reason")


@pytest.mark.parametrize("side", ["source", "warehouse"])
def test_server_that_is_down_exits_75(pipeline: Pipeline, side: str) -> None:
    """Nobody answers: it tries again until the budget is spent, then says what and exits with 75."""
    pipeline.configure(**{side: {"port": 1}}, retry={"budget_s": 1.0, "first_wait_s": 0.1, "longest_wait_s": 0.2})
    done = pipeline.run("replicator", "run")
    assert done.returncode == 75, done.stdout + done.stderr
    assert done.stdout.count("retry") + done.stderr.count("retry") >= 3
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_warehouse_that_is_not_migrated_exits_3(source_database: SourceDatabase, database: Database, tmp_path: Path) -> None:
    """Without the control schema it says which command makes it."""
    pipeline = Pipeline(source_database, database, tmp_path)
    try:
        for verb in ("check", "run"):
            done = pipeline.run("replicator", verb)
            assert done.returncode == 3, done.stdout + done.stderr
            assert "warehouse migrate" in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
    finally:
        pipeline.close()


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


@pytest.fixture
def own_mysql(make_server: MakeServer, database: Database, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline from a MySQL that the test may damage."""
    server: Any = make_server("mysql")
    with make_source_database(server) as source, make_pipeline(source, database, tmp_path) as made:
        yield made


@pytest.fixture
def own_mariadb(make_server: MakeServer, database: Database, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline from a MariaDB that the test may damage."""
    server: Any = make_server("mariadb")
    with make_source_database(server) as source, make_pipeline(source, database, tmp_path) as made:
        yield made


def lose_position(pipeline: Pipeline, *statements: str) -> None:
    """Mirror a table, damage the binlog by the statements (or it is damaged), and see that the next run says why it stops."""
    if statements:
        pipeline.source.execute(TABLE, "INSERT INTO t VALUES (1, 1)")
        pipeline.catch_up()
        pipeline.source.execute("INSERT INTO t VALUES (2, 2)", *statements)
    for _ in range(2):
        done = pipeline.run("replicator", "run", "--until-caught-up")
        assert done.returncode == 3, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert pipeline.status("state") == "Failed"
    assert pipeline.status("reason")
    assert pipeline.read_mirror("t") == [(1, 1)]


def test_reset_binlog_loses_the_position(own_mysql: Pipeline) -> None:
    """RESET BINARY LOGS AND GTIDS: the source lacks what the mirror has; exit 3, the reason in the status."""
    lose_position(own_mysql, "RESET BINARY LOGS AND GTIDS", "INSERT INTO t VALUES (3, 3)")
    assert "reset" in own_mysql.status("reason")


def test_purged_binlog_loses_the_position(own_mysql: Pipeline) -> None:
    """The server purged what is still needed; exit 3, the reason in the status."""
    lose_position(own_mysql, "FLUSH BINARY LOGS", "SET @last = NOW() + INTERVAL 1 DAY", "PURGE BINARY LOGS BEFORE '2999-01-01'")
    assert "purged" in own_mysql.status("reason")


def test_reset_master_of_mariadb_loses_the_position(own_mariadb: Pipeline) -> None:
    """The same on MariaDB, whose GTIDs begin again at 1."""
    lose_position(own_mariadb, "RESET MASTER", "INSERT INTO t VALUES (3, 3)")


def test_reset_master_that_is_already_overtaken(own_mariadb: Pipeline) -> None:
    """MariaDB's numbers have grown past the old ones since the reset: the same number is another transaction now."""
    inserts = [f"INSERT INTO t VALUES {', '.join(f'({10 * number + i}, 0)' for i in range(10))}" for number in range(10, 60)]
    lose_position(own_mariadb, "RESET MASTER", *inserts)


def test_purged_binlog_of_mariadb_loses_the_position(own_mariadb: Pipeline) -> None:
    """MariaDB purged what is still needed."""
    pipeline = own_mariadb
    pipeline.source.execute(TABLE, "INSERT INTO t VALUES (1, 1)")
    pipeline.catch_up()
    pipeline.source.execute("INSERT INTO t VALUES (2, 2)", "FLUSH BINARY LOGS", "INSERT INTO t VALUES (3, 3)")

    def is_purged() -> bool:
        # The server keeps a file for as long as it takes the last reader of it to have gone.
        pipeline.source.execute("PURGE BINARY LOGS TO 'binlog.000002'")
        return len(pipeline.source.execute("SHOW BINARY LOGS")) == 1

    pipeline.wait_until(is_purged)
    lose_position(pipeline)


def test_without_gtids(make_server: MakeServer, database: Database, tmp_path: Path) -> None:
    """File and offset: following, resuming, over rotated and purged files, and while the source is idle."""
    server: Any = make_server("mysql", options={"gtid_mode": "OFF"})
    with make_source_database(server) as source, make_pipeline(source, database, tmp_path) as pipeline:
        source.execute(TABLE, "INSERT INTO t VALUES (1, 1)")
        pipeline.catch_up()
        source.execute("INSERT INTO t VALUES (2, 2)", "FLUSH BINARY LOGS", "UPDATE t SET n = 5")
        pipeline.catch_up()
        pipeline.assert_equal("t")
        # The last thing in the binlog is the end of a file.
        source.execute("DELETE FROM t WHERE id = 1", "FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
        pipeline.catch_up()
        pipeline.assert_equal("t")
        assert pipeline.fetch("SELECT gtid_set FROM warehouse.checkpoint") == [(None,)]
        with pipeline.following():
            source.execute("FLUSH BINARY LOGS")
            newest = source.execute("SHOW BINARY LOG STATUS")[0][0]
            pipeline.wait_until(lambda: pipeline.status("file") == newest)
        source.execute(f"PURGE BINARY LOGS TO '{newest}'", "INSERT INTO t VALUES (3, 3)")
        pipeline.catch_up()
        pipeline.assert_equal("t")
        source.execute("INSERT INTO t VALUES (4, 4)", "FLUSH BINARY LOGS", "PURGE BINARY LOGS BEFORE '2999-01-01'")
        done = pipeline.run("replicator", "run", "--until-caught-up")
        assert done.returncode == 3, done.stdout + done.stderr
        assert pipeline.status("state") == "Failed"


def mend(pipeline: Pipeline, finding: dict[str, str]) -> None:
    """Run the statement that a finding names."""
    statement = finding["mend"].partition(";")[0]
    if statement.startswith(("SET", "GRANT")):
        pipeline.source.execute(statement)
    else:
        assert finding["severity"] == "warning", finding


BROKEN_MYSQL = {
    "binlog_row_image": "MINIMAL",
    "binlog_row_metadata": "MINIMAL",
    "binlog_format": "MIXED",
    "binlog_row_value_options": "PARTIAL_JSON",
}
BROKEN_MARIADB = {
    "binlog_row_image": "NOBLOB",
    "binlog_row_metadata": "NO_LOG",
    "binlog_format": "STATEMENT",
}


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_check_names_what_mends_it(kind: str, request: pytest.FixtureRequest) -> None:
    """Every fatal setting and missing right is listed at once; the statements that are named mend them, in one pass."""
    pipeline: Pipeline = request.getfixturevalue(f"own_{kind}")
    broken = BROKEN_MYSQL if kind == "mysql" else BROKEN_MARIADB
    pipeline.source.execute(TABLE, *(f"SET GLOBAL {name} = '{value}'" for name, value in broken.items()))
    pipeline.source.execute("CREATE USER poor@'127.0.0.1' IDENTIFIED BY 'poor'")
    secret = pipeline.folder / "poor"
    secret.write_text("poor")
    pipeline.configure(source={"user": "poor", "password_file": str(secret)})
    done = pipeline.run("replicator", "check", "--json")
    assert done.returncode == 3
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    fatal = [finding for finding in findings if finding["severity"] == "fatal"]
    listed = " ".join(finding["what"] for finding in fatal)
    for name in broken:
        assert name in listed
    assert "read the binlog" in listed
    assert "binlog's position" in listed
    refused = pipeline.run("replicator", "run")
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert "binlog_row_image" in refused.stderr
    assert pipeline.status("state") == "Failed"
    for finding in findings:
        mend(pipeline, finding)
    mended = pipeline.run("replicator", "check", "--json")
    assert mended.returncode == 0, mended.stdout
    assert not [line for line in mended.stdout.splitlines() if "fatal" in line]
    pipeline.source.execute("INSERT INTO t VALUES (1, 1)")
    assert pipeline.run("replicator", "run", "--until-caught-up").returncode == 0
    pipeline.assert_equal("t")


def test_check_finds_a_server_id_that_is_taken(pipeline: Pipeline) -> None:
    """The source's own id, and one of another replica."""
    own = pipeline.source.execute("SELECT @@server_id")[0][0]
    pipeline.configure(source={"server_id": int(own)})
    done = pipeline.run("replicator", "check")
    assert done.returncode == 3
    assert f"server_id {own}" in done.stdout
    # Another pipeline that follows the same server under this id; what it calls itself comes from its warehouse.
    pipeline.configure(source={"server_id": 123_456})
    with pipeline.following():
        settings = pipeline.settings
        other = Source(settings.source, "elsewhere")
        found = list(check_server_id(other, settings))
        other.close()
        assert ["123456" in finding.what for finding in found] == [True]
        assert pipeline.run("replicator", "check").returncode == 0


def test_check_warns_of_a_short_binlog(own_mysql: Pipeline) -> None:
    """A binlog that is kept for hours only is a warning, not fatal; the statement mends it."""
    own_mysql.source.execute(TABLE, "SET GLOBAL binlog_expire_logs_seconds = 3600")
    done = own_mysql.run("replicator", "check", "--json")
    assert done.returncode == 0
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert [finding["severity"] for finding in findings] == ["warning"]
    mend(own_mysql, findings[0])
    assert own_mysql.run("replicator", "check", "--json").stdout == ""


def test_check_finds_missing_rights_in_the_warehouse(pipeline: Pipeline) -> None:
    """A role that may not create schemas is told which grant it lacks."""
    role = f"poor_{time.time_ns()}"
    secret = pipeline.folder / "poor"
    secret.write_text("poor")
    pipeline.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'poor'")
    try:
        pipeline.conn.execute(
            f"GRANT USAGE ON SCHEMA warehouse TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA warehouse TO {role}"
        )
        pipeline.configure(warehouse={"user": role, "password_file": str(secret)})
        done = pipeline.run("replicator", "check", "--json")
        assert done.returncode == 3, done.stdout + done.stderr
        fatal = [json.loads(line) for line in done.stdout.splitlines() if "fatal" in line]
        assert any("create schemas" in finding["what"] for finding in fatal)
        for finding in fatal:
            pipeline.conn.execute(finding["mend"])
    finally:
        pipeline.conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
