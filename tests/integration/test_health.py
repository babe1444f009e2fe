"""The health checks of the containers, on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from warehouse import health
from warehouse.db import Connection, connect
from warehouse.settings import Settings, WarehouseSettings


@pytest.fixture
def settings(warehouse: Connection, warehouse_settings: WarehouseSettings) -> Settings:
    """Settings for a warehouse that has the whole schema."""
    return Settings(warehouse=warehouse_settings)


@pytest.fixture
def replicator(settings: Settings) -> Iterator[Connection]:
    """The session of a replicator whose source was heard from just now."""
    with connect(settings.warehouse, "replicator") as conn:
        conn.execute(
            "INSERT INTO warehouse.sources (source, flavor, server_version, state, heard_at)"
            " VALUES (%s, 'mysql', '9.7.0', 'Streaming', now())",
            (settings.source.name,),
        )
        yield conn


def ask(settings: Settings, service: str) -> str:
    """What find_illness says; empty where there is no illness."""
    with connect(settings.warehouse, "health") as conn:
        return health.find_illness(conn, settings, service) or ""


@pytest.mark.parametrize("service", health.SERVICES)
def test_service_without_a_session_is_ill(settings: Settings, service: str) -> None:
    """A service that is not connected is not at work, whatever its tables say."""
    assert "no session" in ask(settings, service)


def test_scorer_with_a_session_is_well(settings: Settings) -> None:
    """Of the scorer no more than its session is asked: it may have nothing to do."""
    with connect(settings.warehouse, "scorer score"):
        assert ask(settings, "scorer") == ""
        assert "no session" in ask(settings, "replicator")


def test_replicator_that_hears_its_source_is_well(settings: Settings, replicator: Connection) -> None:
    """Connected, streaming and heard from lately."""
    assert ask(settings, "replicator") == ""
    replicator.execute("UPDATE warehouse.sources SET state = 'Paused'")
    assert ask(settings, "replicator") == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("heard_at = now() - interval '2 minutes'", "nothing was heard"),
        ("heard_at = NULL", "nothing was heard"),
        ("state = 'Failed', reason = 'binlog purged'", "Failed: binlog purged"),
        ("source = 'another'", "not known"),
    ],
)
def test_replicator_without_its_source_is_ill(settings: Settings, replicator: Connection, change: str, words: str) -> None:
    """A replicator that is connected here, but does not get on there, is ill and says why."""
    replicator.execute("UPDATE warehouse.sources SET " + change)
    assert words in ask(settings, "replicator")


def test_command_gives_the_codes_that_docker_knows(
    settings: Settings, replicator: Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 for well, 1 for ill and for a warehouse that does not answer, with the reason on standard error."""
    for key in ("host", "port", "user", "dbname"):
        monkeypatch.setenv(f"TAILRACE__WAREHOUSE__{key.upper()}", str(getattr(settings.warehouse, key)))
    monkeypatch.setenv("TAILRACE__WAREHOUSE__PASSWORD", settings.warehouse.read_password())
    assert health.main(["replicator"]) == 0
    assert health.main(["scorer"]) == 1
    assert "no session" in capsys.readouterr().err
    monkeypatch.setenv("TAILRACE__WAREHOUSE__PORT", "1")
    assert health.main(["replicator"]) == 1
    assert "cannot connect" in capsys.readouterr().err
