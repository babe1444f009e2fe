"""The command `warehouse` on a real Postgres: what it prints and how it exits."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from warehouse.__main__ import main
from warehouse.db import Connection
from warehouse.settings import WarehouseSettings

Run = Callable[..., int]


@pytest.fixture
def run(warehouse_settings: WarehouseSettings, tmp_path: Path) -> Iterator[Run]:
    """Run a verb with a settings file that leads to the test's database and to a folder for view files."""
    views = tmp_path / "views"
    views.mkdir()
    (tmp_path / "password").write_text(warehouse_settings.read_password())
    file = tmp_path / "pipeline.toml"
    file.write_text(
        f"""[warehouse]
host = "{warehouse_settings.host}"
port = {warehouse_settings.port}
user = "{warehouse_settings.user}"
dbname = "{warehouse_settings.dbname}"
password_file = "{tmp_path}/password"
[refresh]
directory = "{views}"
shipped = false
[retry]
budget_s = 0
"""
    )

    def run_verb(verb: str, *arguments: str) -> int:
        return main([verb, "-c", str(file), *arguments])

    yield run_verb
    # The command sends the log to the standard error that belonged to this test alone.
    structlog.reset_defaults()


def add_source(conn: Connection) -> None:
    """A source with one table, as the replicator writes them."""
    conn.execute("INSERT INTO warehouse.sources (source, flavor, server_version) VALUES ('plant', 'mysql', '9.7')")
    conn.execute(
        "INSERT INTO warehouse.tables (source, table_name, mirror, state) VALUES ('plant', 'plant.a', 'plant.a', 'Synced')"
    )
    conn.execute(
        "INSERT INTO warehouse.checkpoint (source, server_identity, gtid_set, file, pos) "
        "VALUES ('plant', 'x', '0-1-7', 'b.1', 4)"
    )


def test_plan_then_migrate_then_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan names what the next run applies; after that there is nothing to apply."""
    assert run("migrate", "--plan") == 0
    assert "0001_control pending\n" in capsys.readouterr().out
    assert run("migrate", "--json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first == {"migration": "0001_control", "state": "applied"}
    assert run("migrate") == 0
    assert capsys.readouterr().out == "nothing to apply: the schema is up to date\n"


@pytest.mark.parametrize("verb", [("status",), ("refresh",), ("pause",), ("wait-for", "0-1-1")])
def test_unmigrated_warehouse_is_said_to_be_so(run: Run, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]) -> None:
    """Every verb on an empty database exits with 3 and names the command to run."""
    assert run(*verb) == 3
    assert "warehouse migrate" in capsys.readouterr().err


def test_status_for_people_and_for_machines(run: Run, warehouse: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal the text is plain and aligned; --json gives every column of every row, one object a line."""
    add_source(warehouse)
    assert run("status") == 0
    text = capsys.readouterr().out
    assert "Sources\n  source" in text
    assert "0-1-7" in text
    assert "plant.a" not in text
    assert "\x1b" not in text
    assert run("status", "--tables") == 0
    assert "plant.a" in capsys.readouterr().out
    assert run("status", "--json", "--tables") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["kind"] for row in rows] == ["source", "table"]
    assert rows[0]["state"] == "Starting"


def test_pause_resume_and_resync_reach_the_control_tables(
    run: Run, warehouse: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verbs set what the replicator reads; a name that does not exist is refused with where to look."""
    add_source(warehouse)
    query = "SELECT s.pause_requested, t.resync_requested FROM warehouse.sources s JOIN warehouse.tables t USING (source)"
    assert run("pause") == 0
    assert run("resync", "plant.a") == 0
    assert warehouse.execute(query).fetchone() == (True, True)
    assert run("resume", "plant") == 0
    assert warehouse.execute(query).fetchone() == (False, True)
    assert run("resync", "plant.no_such") == 2
    assert "SELECT table_name FROM warehouse.table_status" in capsys.readouterr().err


def test_wait_for_tells_reached_from_not_yet_and_from_nonsense(run: Run, warehouse: Connection) -> None:
    """Exit 0 once the transactions are there, 75 at the time-out, 2 for what is no GTID set."""
    add_source(warehouse)
    assert run("wait-for", "0-1-7") == 0
    assert run("wait-for", "0-1-8", "--timeout", "0.05") == 75
    assert run("wait-for", "nonsense") == 2


def test_refresh_prints_what_it_did_and_fails_for_a_broken_view(
    run: Run, warehouse: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Views are made and refreshed by the command; one that fails makes it exit with 3 while the others are done."""
    (tmp_path / "views/one.sql").write_text(
        "CREATE MATERIALIZED VIEW analytics.one AS SELECT 1 AS a; CREATE UNIQUE INDEX ON analytics.one (a);"
    )
    assert run("refresh") == 0
    assert "analytics.one created" in capsys.readouterr().out
    assert run("refresh") == 0
    assert "nothing to refresh" in capsys.readouterr().out
    assert run("refresh", "one", "--json") == 0
    assert json.loads(capsys.readouterr().out)["action"] == "refreshed"
    (tmp_path / "views/broken.sql").write_text("SELECT 1 / 0")
    assert run("refresh") == 3
    captured = capsys.readouterr()
    assert "analytics.broken failed: division by zero" in captured.out
    assert "not refreshed: analytics.broken" in captured.err


def test_server_that_is_down_is_exit_75(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once the retry budget is spent, migrate says that it may succeed later."""
    file = tmp_path / "pipeline.toml"
    lines = ["port = 1" if line.startswith("port") else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    assert run("migrate") == 75
    assert "cannot connect to the warehouse" in capsys.readouterr().err
