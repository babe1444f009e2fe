"""What the command `replicator` ends with where it cannot work: wrong settings, refused logins, servers that are down."""

from pathlib import Path

import pytest

from replicator.dump import open_dump
from replicator.source import Source
from tests.fixtures.pipeline import Pipeline
from tests.fixtures.servers import Database, SourceDatabase
from warehouse.db import read_place

TABLE = "CREATE TABLE t (id INT PRIMARY KEY, n INT)"


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


@pytest.mark.both
def test_replica_of_the_same_id_exits_3(pipeline: Pipeline) -> None:
    """Another one logs in as this replica, and the server ends this one's dump: it says so and does not try to win it back."""
    pipeline.source.execute(TABLE)
    service = pipeline.start("replicator", "run")
    pipeline.wait_until(lambda: pipeline.status("state") == "Streaming")
    other = Source(pipeline.settings.source)
    other.reader = read_place(pipeline.conn)
    dump = open_dump(other, other.position(), 10.0)
    try:
        pipeline.wait_until(lambda: service.process.poll() is not None)
    finally:
        dump.close()
        other.close()
    assert service.process.returncode == 3, service.read_log()
    assert "Set source.server_id to a number that no other replica has" in service.read_log()
    assert pipeline.status("state") == "Failed"
    assert "same server_uuid/server_id" in pipeline.status("reason")
    pipeline.source.execute("INSERT INTO t VALUES (1, 1)")
    pipeline.catch_up()
    assert pipeline.fetch(f"SELECT id FROM {pipeline.source.name}.t") == [(1,)]


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
