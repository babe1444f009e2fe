"""The preflight: what it finds on either side, and the statements that mend it."""

import json
import time

import pytest

from replicator.check import check_server_id
from replicator.source import Source
from tests.fixtures.pipeline import Pipeline

TABLE = "CREATE TABLE t (id INT PRIMARY KEY, n INT)"


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
