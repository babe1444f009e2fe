"""Brings the warehouse's schema to the state that this version needs.

Owns the ledger warehouse.schema_migrations, the extension and the database's search path.
Never changes a mirror table, never goes back to an earlier schema.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import structlog
from psycopg import sql

from warehouse.db import SEARCH_PATH, Connection, wrap_errors
from warehouse.errors import MigrationRefused, SchemaOutdated, WarehouseRefused
from warehouse.locks import hold_lock

log = structlog.get_logger()

LOCK = "migrate"
EXTENSIONS = ("cube",)
LOCK_TIMEOUT = "30s"

_FILE_NAME = re.compile(r"(\d{4})_([a-z][a-z0-9_]*)\.sql")

_CREATE_LEDGER = """
CREATE SCHEMA IF NOT EXISTS warehouse;
CREATE TABLE IF NOT EXISTS warehouse.schema_migrations (
    number      integer PRIMARY KEY,
    name        text NOT NULL,
    sha256      text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    duration_ms double precision NOT NULL
);
COMMENT ON TABLE warehouse.schema_migrations IS 'migrations that were applied here, with the checksum of each file';
"""


@dataclass(frozen=True)
class Migration:
    """One SQL file: its number, its name without the number, its text and the checksum of its bytes."""

    number: int
    name: str
    text: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"


@dataclass(frozen=True)
class Applied:
    """One row of the ledger."""

    number: int
    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"


def default_directory() -> Path:
    """The folder of migrations: inside the package when it was installed from the wheel, else the checkout's."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "migrations"


def read_migrations(directory: Path | None = None) -> list[Migration]:
    """Read every migration, in order.

    Raises:
        MigrationRefused: the folder is missing or empty, a file is not named NNNN_name.sql, or a number is missing
            or taken twice.
    """
    directory = default_directory() if directory is None else directory
    migrations = []
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationRefused("a migration must be named like 0001_control.sql", hint="Rename the file.", file=path.name)
        body = path.read_bytes()
        migrations.append(Migration(int(match[1]), match[2], body.decode(), hashlib.sha256(body).hexdigest()))
    if not migrations:
        raise MigrationRefused("no migrations found", hint="Install Tailrace again.", directory=str(directory))
    for expected, migration in enumerate(migrations, start=1):
        if migration.number != expected:
            raise MigrationRefused(
                f"migration {expected:04} is missing or a number is taken twice",
                hint="Migrations are numbered 0001, 0002, ... without gaps.",
                file=f"{migration}.sql",
            )
    return migrations


def read_ledger(conn: Connection) -> list[Applied]:
    """The migrations that were applied to this warehouse, in order; empty where there is no ledger yet."""
    with wrap_errors():
        row = conn.execute("SELECT to_regclass('warehouse.schema_migrations')").fetchone()
        if row is None or row[0] is None:
            return []
        rows = conn.execute("SELECT number, name, sha256 FROM warehouse.schema_migrations ORDER BY number").fetchall()
    return [Applied(*row) for row in rows]


def find_pending(migrations: Sequence[Migration], ledger: Sequence[Applied]) -> list[Migration]:
    """The migrations that the ledger lacks.

    Raises:
        MigrationRefused: an applied file has changed, the ledger has a gap, or it is newer than these files.
    """
    known = {migration.number: migration for migration in migrations}
    for expected, applied in enumerate(ledger, start=1):
        file = known.get(applied.number)
        if file is None:
            raise MigrationRefused(
                f"the warehouse has the migration {applied}, which this version does not know",
                hint="A newer Tailrace migrated this warehouse: run that version, or restore a backup from before.",
                newest_known=str(migrations[-1]),
            )
        if applied.number != expected:
            raise MigrationRefused(
                f"the ledger has {applied}, but not migration {expected:04}",
                hint="A row of warehouse.schema_migrations was removed, or another version was at work; restore a backup.",
            )
        if file.sha256 != applied.sha256:
            raise MigrationRefused(
                f"{file}.sql is not the file that was applied",
                hint="Put the file back as it was, and write the change as a new migration with the next number.",
                applied_sha256=applied.sha256[:12],
                file_sha256=file.sha256[:12],
            )
    return list(migrations[len(ledger) :])


def plan_migrations(conn: Connection, directory: Path | None = None) -> list[Migration]:
    """What migrate_schema would apply; reads only.

    Raises:
        MigrationRefused: as find_pending and read_migrations.
    """
    with conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        return find_pending(read_migrations(directory), read_ledger(conn))


def require_migrations(conn: Connection, directory: Path | None = None) -> None:
    """Let a service start only on a warehouse of its own schema version.

    Raises:
        SchemaOutdated: migrations are missing.
        MigrationRefused: as find_pending.
    """
    pending = plan_migrations(conn, directory)
    if pending:
        raise SchemaOutdated(
            f"the warehouse lacks {len(pending)} migration(s): {', '.join(map(str, pending))}", hint="Run: warehouse migrate"
        )


def migrate_schema(conn: Connection, directory: Path | None = None) -> list[Migration]:
    """Apply what is missing, each file in a transaction of its own; what was applied before a failure stays.

    Args:
        conn: in autocommit mode; other migrations of this database wait until this one is through.
        directory: default: the migrations that came with Tailrace.

    Returns:
        The migrations that were applied, in order.

    Raises:
        MigrationRefused: the ledger and the files do not agree, or an extension cannot be had.
        WarehouseRefused: the role lacks a right.
        WarehouseBusy: another session holds a lock for longer than 30 s; run it again.
    """
    migrations = read_migrations(directory)

    def note_waiting() -> None:
        log.info("migrate", action="wait", reason="another process is migrating this warehouse")

    with hold_lock(conn, LOCK, wait=True, note_waiting=note_waiting):
        # Read under the lock: another process may have applied them in the meantime.
        pending = find_pending(migrations, read_ledger(conn))
        if pending:
            with explain_rights(conn), conn.transaction():
                conn.execute(_CREATE_LEDGER)
                for name in EXTENSIONS:
                    create_extension(conn, name)
        for migration in pending:
            apply_migration(conn, migration)
    return pending


@contextmanager
def explain_rights(conn: Connection) -> Iterator[None]:
    """Add to a refusal for want of rights the statement that gives them."""
    try:
        with wrap_errors():
            yield
    except WarehouseRefused as error:
        raise WarehouseRefused(
            error.message,
            hint=f"As a superuser: ALTER DATABASE {conn.info.dbname} OWNER TO {conn.info.user};",
            database=conn.info.dbname,
            user=conn.info.user,
        ) from error


def create_extension(conn: Connection, name: str) -> None:
    """Create a contrib extension where it is missing.

    Raises:
        MigrationRefused: the server does not have it, or the role may not create it.
    """
    row = conn.execute("SELECT installed_version FROM pg_available_extensions WHERE name = %s", (name,)).fetchone()
    if row is None:
        raise MigrationRefused(
            f"the extension {name} is not available on this server",
            hint="Install Postgres' contrib modules (Debian: postgresql-contrib), or allow the extension on a managed service.",
            extension=name,
        )
    if row[0] is not None:
        return
    try:
        conn.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA public").format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationRefused(
            f"the role {conn.info.user} may not create the extension {name}",
            hint=f"As a superuser, in this database: CREATE EXTENSION {name} SCHEMA public; then run warehouse migrate again.",
            database=conn.info.dbname,
        ) from error


def apply_migration(conn: Connection, migration: Migration) -> None:
    """Run one file and write its ledger row, in one transaction.

    Raises:
        WarehouseRefused: the role lacks a right.
        MigrationRefused: a statement of the file fails.
    """
    started = time.perf_counter()
    try:
        with wrap_errors(migration=str(migration)), conn.transaction():
            conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
            conn.execute(sql.SQL("SET LOCAL search_path = " + SEARCH_PATH))
            # The text is a file of this package, so it is as good as a literal.
            conn.execute(sql.SQL(migration.text))
            elapsed_ms = (time.perf_counter() - started) * 1000
            conn.execute(
                "INSERT INTO warehouse.schema_migrations (number, name, sha256, duration_ms) VALUES (%s, %s, %s, %s)",
                (migration.number, migration.name, migration.sha256, elapsed_ms),
            )
    except psycopg.Error as error:
        raise MigrationRefused(
            f"{migration}.sql failed: {str(error).strip().splitlines()[0]}",
            hint="Nothing of this file was applied. Objects that Tailrace did not make may be in the way: move them first.",
            sqlstate=error.sqlstate,
        ) from error
    log.info("migrate", action="apply", migration=str(migration), duration_ms=round(elapsed_ms, 1))


def set_search_path(conn: Connection) -> str | None:
    """Let every session of this database find the warehouse's names without a schema.

    A search path that somebody chose for the database is kept and only lengthened.

    Returns:
        None where it is set; else the statement that the database's owner has to run.
    """
    wanted = [part.strip() for part in SEARCH_PATH.split(",")]
    row = conn.execute(
        """SELECT pg_has_role(d.datdba, 'USAGE'),
                  (SELECT substr(entry, length('search_path=') + 1)
                   FROM pg_db_role_setting s, unnest(s.setconfig) entry
                   WHERE s.setdatabase = d.oid AND s.setrole = 0 AND entry LIKE 'search_path=%')
           FROM pg_database d WHERE d.datname = current_database()"""
    ).fetchone()
    assert row is not None, "a session has a database"
    may_alter, current = row
    schemas = [part.strip().strip('"') for part in current.split(",") if part.strip()] if current else []
    missing = [schema for schema in wanted if schema not in schemas]
    if not missing:
        return None
    statement = sql.SQL("ALTER DATABASE {} SET search_path = {}").format(
        sql.Identifier(conn.info.dbname), sql.SQL(", ").join(map(sql.Identifier, schemas + missing))
    )
    if not may_alter:
        return statement.as_string(conn)
    with wrap_errors(database=conn.info.dbname):
        conn.execute(statement)
    return None
