"""Fixtures for tests that need a warehouse: its settings, and a migrated database."""

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from tests.fixtures.servers import Database
from warehouse.db import Connection, connect
from warehouse.migrate import migrate_schema
from warehouse.settings import WarehouseSettings


@pytest.fixture
def warehouse_settings(database: Database) -> WarehouseSettings:
    """Settings that lead to the test's own database."""
    return WarehouseSettings(
        host=database.host,
        port=database.port,
        user=database.user,
        password=SecretStr(database.password),
        dbname=database.name,
    )


@pytest.fixture
def empty_warehouse(warehouse_settings: WarehouseSettings) -> Iterator[Connection]:
    """A connection to the test's database, in which nothing is migrated."""
    with connect(warehouse_settings, "tests") as conn:
        yield conn


@pytest.fixture
def warehouse(empty_warehouse: Connection) -> Connection:
    """A connection to the test's database, migrated to the newest schema."""
    migrate_schema(empty_warehouse)
    return empty_warehouse
