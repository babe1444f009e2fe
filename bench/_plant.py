"""What the replicator's benches share: private servers, an FD001-shaped table of 29 columns, and ways to fill and read it.

Owns the workload. Never measures anything.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pymysql

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.servers import MariaDBServer, MySQLServer, PostgresServer, cache_folder, provide
from replicator.items import Choice
from replicator.mirror import MirrorTable
from replicator.position import Position
from replicator.schema import Registry
from replicator.selection import Selection
from replicator.source import Source
from replicator.stream import Stream
from replicator.tablemap import TableMap
from warehouse.log import configure_log
from warehouse.migrate import migrate_schema
from warehouse.settings import ReplicatorSettings, RetrySettings, Settings, SourceSettings, WarehouseSettings

TABLE = "asset_readings_bench"
NAME = f"plant.{TABLE}"
MEASUREMENTS = [f"setting_{n}" for n in (1, 2, 3)] + [f"sensor_{n}" for n in range(1, 22)]
COLUMNS = ["id", "line", "unit", "cycle", "read_at", *MEASUREMENTS]
ROWS_A_TRANSACTION = 25_000
READER_ID = 9003
# Nothing here is about the disk: both sides flush when the system likes.
FAST_MYSQL = {
    "sync_binlog": "0",
    "innodb_flush_log_at_trx_commit": "0",
    "max_binlog_size": "1G",
    "innodb_buffer_pool_size": "512M",
}
SERVERS = {"mysql": MySQLServer, "mariadb": MariaDBServer}
FAST_POSTGRES = {"synchronous_commit": "off", "max_wal_size": "4GB", "shared_buffers": "256MB"}


@dataclass
class Plant:
    """Servers, settings for them, and a connection to each."""

    mysql: MySQLServer | MariaDBServer
    postgres: PostgresServer
    settings: Settings

    def connect(self) -> pymysql.Connection:
        """A connection to the source, autocommit on."""
        server = self.mysql
        return pymysql.connect(
            host=server.host, port=server.port, user=server.user, password=server.password, autocommit=True, ssl_disabled=True
        )

    def warehouse(self) -> psycopg.Connection:
        """A connection to the warehouse, autocommit on."""
        server = self.postgres
        return psycopg.connect(
            host=server.host, port=server.port, user=server.user, password=server.password, dbname="bench", autocommit=True
        )


@contextlib.contextmanager
def running_plant(note: object, source: str = "mysql") -> Iterator[Plant]:
    """Servers in a folder that is gone afterwards; the source is MySQL or MariaDB."""
    configure_log("warning", service="bench")
    programs = provide([source, "postgres"], cache_folder(), note)  # type: ignore[arg-type]
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-bench-", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        mysql = stack.enter_context(SERVERS[source](programs, folder / source, options=FAST_MYSQL))
        postgres = stack.enter_context(PostgresServer(programs, folder / "postgres", options=FAST_POSTGRES))
        settings = Settings(
            source=SourceSettings(port=mysql.port, user=mysql.user, password=mysql.password, tables=(NAME,)),
            warehouse=WarehouseSettings(port=postgres.port, user=postgres.user, password=postgres.password, dbname="bench"),
            replicator=ReplicatorSettings(),
            retry=RetrySettings(budget_s=0),
        )
        plant = Plant(mysql, postgres, settings)
        with psycopg.connect(
            host=postgres.host,
            port=postgres.port,
            user=postgres.user,
            password=postgres.password,
            dbname="postgres",
            autocommit=True,
        ) as conn:
            conn.execute("CREATE DATABASE bench")
        with plant.warehouse() as conn:
            migrate_schema(conn)
        create_table(plant)
        yield plant
        postgres.stop()
        mysql.stop()


def create_table(plant: Plant, name: str = NAME) -> None:
    """An empty table at the source."""
    doubles = ", ".join(f"{name} DOUBLE" for name in MEASUREMENTS)
    with plant.connect() as conn, conn.cursor() as cursor:
        cursor.execute("CREATE DATABASE IF NOT EXISTS plant")
        cursor.execute(
            f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, line SMALLINT NOT NULL, unit INT NOT NULL, cycle INT NOT NULL,"
            f" read_at TIMESTAMP(3) NOT NULL, {doubles})"
        )


def insert_many(plant: Plant, rows: int, first: int = 1, *, at_once: int = ROWS_A_TRANSACTION) -> None:
    """Insert rows in transactions of so many, which the server logs as events of many rows."""
    values = ", ".join(f"ROUND(RAND({n}) * {100 + 37 * n}, 4)" for n in range(len(MEASUREMENTS)))
    with plant.connect() as conn, conn.cursor() as cursor:
        name = "max_recursive_iterations" if isinstance(plant.mysql, MariaDBServer) else "cte_max_recursion_depth"
        cursor.execute(f"SET SESSION {name} = 10000000")
        for start in range(first, first + rows, at_once):
            last = min(start + at_once, first + rows) - 1
            cursor.execute(
                f"INSERT INTO {NAME} WITH RECURSIVE n (i) AS (SELECT {start} UNION ALL SELECT i + 1 FROM n WHERE i < {last})"
                f" SELECT i, i % 7, i % 100, i DIV 100, NOW(3), {values} FROM n"
            )


def insert_singly(plant: Plant, rows: int, first: int) -> None:
    """Insert rows, each in a transaction of its own."""
    with plant.connect() as conn, conn.cursor() as cursor:
        cursor.execute("DROP PROCEDURE IF EXISTS plant.insert_singly")
        values = ", ".join("ROUND(RAND() * 100, 4)" for _ in MEASUREMENTS)
        cursor.execute(
            "CREATE PROCEDURE plant.insert_singly (first BIGINT, last BIGINT) BEGIN DECLARE i BIGINT DEFAULT first;"
            f" WHILE i <= last DO INSERT INTO {NAME} VALUES (i, i % 7, i % 100, i DIV 100, NOW(3), {values});"
            " SET i = i + 1; END WHILE; END"
        )
        cursor.execute(f"CALL plant.insert_singly({first}, {first + rows - 1})")


def start_replicator(plant: Plant, tables: str = NAME) -> subprocess.Popen[bytes]:
    """The replicator as a process, streaming tables of these names."""
    source, warehouse = plant.settings.source, plant.settings.warehouse
    given = {
        "SOURCE__PORT": source.port, "SOURCE__USER": source.user, "SOURCE__PASSWORD": source.read_password(),
        "SOURCE__TABLES": tables, "WAREHOUSE__PORT": warehouse.port, "WAREHOUSE__USER": warehouse.user,
        "WAREHOUSE__PASSWORD": warehouse.read_password(), "WAREHOUSE__DBNAME": warehouse.dbname, "LOG__LEVEL": "warning",
    }  # fmt: skip
    environment = os.environ | {f"TAILRACE__{name}": str(value) for name, value in given.items()}
    service = subprocess.Popen(
        [sys.executable, "-m", "replicator", "run"], cwd=Path(__file__).resolve().parents[1], env=environment
    )
    with plant.warehouse() as conn:
        while conn.execute("SELECT FROM warehouse.sources WHERE state = 'Streaming'").fetchone() is None:
            assert service.poll() is None, "the replicator ended"
            time.sleep(0.1)
    return service


class Wanted:
    """Chooses the bench's table and nothing else."""

    def choose(self, table_map: TableMap, at: Position) -> Choice | None:
        """The table with the key id."""
        return Choice(table=0, columns=table_map.columns or (), key=(0,)) if table_map.table == TABLE else None

    def reject(self, table: int, problem: Exception) -> None:
        """Nothing here may be rejected."""
        raise problem


def open_stream(plant: Plant, start: Position) -> Stream:
    """The stream of the bench's table from a position on, under a server id of its own: the replicator insists on its."""
    settings = plant.settings.source.model_copy(update={"server_id": READER_ID})
    return Stream(Source(settings), plant.settings.replicator, start, 0, Wanted(), {})


def mirror_table(plant: Plant) -> MirrorTable:
    """The bench's table as the replicator sees it."""
    registry = Registry(Source(plant.settings.source), "plant", Selection((NAME,)))
    table = registry.discover(NAME)
    assert table is not None
    return table
