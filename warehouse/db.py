"""The one place that opens Postgres, and the border where its errors become ours.

Owns connection parameters, the search path, advisory lock numbers and the table from SQLSTATE to error class.
Never builds SQL from values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

from warehouse.errors import (
    AlreadyRunning,
    TailraceError,
    WarehouseBusy,
    WarehouseFull,
    WarehouseRefused,
    WarehouseUnavailable,
)
from warehouse.settings import WarehouseSettings

Connection = psycopg.Connection[tuple[Any, ...]]

SEARCH_PATH = "public, warehouse, scorer, analytics"

# SQLSTATE classes and codes (PostgreSQL manual, appendix A), the longest match wins.
_ERRORS: dict[str, type[TailraceError]] = {
    "08": WarehouseUnavailable,
    "57P": WarehouseUnavailable,
    "57014": WarehouseBusy,
    "40": WarehouseBusy,
    "55P03": WarehouseBusy,
    "53": WarehouseFull,
    "28": WarehouseRefused,
    "3D": WarehouseRefused,
    "42501": WarehouseRefused,
}


def connect(settings: WarehouseSettings, application: str, *, autocommit: bool = True) -> Connection:
    """Open a connection to the warehouse.

    Args:
        settings: where and as whom.
        application: the name shown in pg_stat_activity.
        autocommit: True: transactions are opened explicitly with conn.transaction().

    Raises:
        WarehouseUnavailable: nobody answers.
        WarehouseRefused: the server answers but refuses the user, the password or the database.
    """
    password = settings.read_password()
    with wrap_errors(server=f"{settings.host}:{settings.port}/{settings.dbname}"):
        try:
            return psycopg.connect(
                host=settings.host,
                port=settings.port,
                dbname=settings.dbname,
                user=settings.user,
                password=password,
                sslmode=settings.sslmode,
                sslrootcert=None if settings.sslrootcert is None else str(settings.sslrootcert),
                application_name=f"tailrace {application}",
                connect_timeout=max(2, round(settings.connect_timeout_s)),
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=3,
                # The server, too, must notice that this end is gone: its session holds a lock that others wait for.
                tcp_user_timeout=60_000,
                options="-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
                " -c tcp_user_timeout=60000"
                " -c client_connection_check_interval=2s -c timezone=UTC -c search_path=" + SEARCH_PATH.replace(" ", ""),
                autocommit=autocommit,
            )
        except psycopg.OperationalError as error:
            # libpq gives no SQLSTATE for errors while connecting; a refused login is not worth retrying.
            refused = any(word in str(error) for word in ("authentication failed", "does not exist", "no password", "pg_hba"))
            raise (WarehouseRefused if refused else WarehouseUnavailable)(
                f"cannot connect to the warehouse: {str(error).strip().splitlines()[-1]}",
                hint="Check the [warehouse] settings and the server." if refused else "Is Postgres running there?",
                server=f"{settings.host}:{settings.port}/{settings.dbname}",
            ) from None


@contextmanager
def wrap_errors(**context: Any) -> Iterator[None]:
    """Turn psycopg's errors into ours, with context; an error that no class covers passes as it is (a bug)."""
    try:
        yield
    except psycopg.Error as error:
        kind = error_class(error)
        if kind is None:
            raise
        raise kind(f"Postgres: {str(error).strip().splitlines()[0]}", sqlstate=error.sqlstate, **context) from error


def error_class(error: psycopg.Error) -> type[TailraceError] | None:
    """The class for a psycopg error by its SQLSTATE, or None where it is not foreseen."""
    state = error.sqlstate
    if state is None:
        # libpq has no SQLSTATE for a connection that broke off.
        return WarehouseUnavailable if isinstance(error, psycopg.OperationalError) else None
    return next((_ERRORS[state[:n]] for n in (5, 3, 2) if state[:n] in _ERRORS), None)


def take_lock(conn: Connection, name: str) -> None:
    """Hold a session advisory lock until the connection closes.

    Raises:
        AlreadyRunning: another session holds it.
    """
    with wrap_errors():
        row = conn.execute("SELECT pg_try_advisory_lock(%s)", (lock_number(name),)).fetchone()
    if row is None or not row[0]:
        raise AlreadyRunning(f"another process already does the work of {name}", hint="This one waits for it to end.")


def read_place(conn: Connection) -> str:
    """Which warehouse this is, whatever address it was reached by: the cluster and the database.

    Source: PostgreSQL manual, "Control Data Functions".
    """
    with wrap_errors():
        row = conn.execute("SELECT system_identifier || '/' || current_database() FROM pg_control_system()").fetchone()
    return str(row[0]) if row is not None else ""


def lock_number(name: str) -> int:
    """A stable 64-bit advisory lock number for a name."""
    return (zlib.crc32(b"tailrace") << 31) ^ zlib.crc32(name.encode())


def qualified(name: str) -> sql.Identifier:
    """schema.table as quoted identifiers."""
    schema, _, table = name.partition(".")
    return sql.Identifier(schema, table)


def read_queries(package: str, name: str = "queries.sql") -> dict[str, sql.SQL]:
    """Named static queries: each begins with a line `-- name: NAME`."""
    text = resources.files(package).joinpath(name).read_text()
    parts = text.split("-- name: ")[1:]
    # The text is a file of this package, so it is as good as a literal.
    return {part.partition("\n")[0].strip(): sql.SQL(part.partition("\n")[2]) for part in parts}
