"""Fixtures of several tests: a migrated warehouse, and pipelines from servers that a test may damage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fixtures.pipeline import Pipeline, make_pipeline
from tests.fixtures.servers import Database, MakeServer, make_source_database
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
