"""Derived views: their files, what the catalog knows of them, and the statements that make and drop them.

Owns the rule that a file NAME.sql holds exactly the materialized view analytics.NAME with a unique index.
Never decides when a view is refreshed, never drops what depends on a view without being told.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

from warehouse.db import Connection, qualified, read_queries
from warehouse.errors import OperatorNeeded, SettingsError
from warehouse.settings import RefreshSettings

SCHEMA = "analytics"
TRIGGER = "tailrace_changes"
QUERIES = read_queries("warehouse")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class ViewFailed(OperatorNeeded):
    """A derived view cannot be made or refreshed; its former content, if any, stays."""


@dataclass(frozen=True)
class ViewFile:
    """One SQL file: the view's name with its schema, where it lies, its text and the checksum of its bytes."""

    view: str
    path: str
    text: str
    checksum: str


@dataclass(frozen=True)
class Input:
    """A table or materialized view that a view reads, as the catalog has it."""

    oid: int
    name: str
    is_view: bool
    can_watch: bool


@dataclass
class View:
    """A materialized view as the catalog has it; refreshable: REFRESH can run beside readers."""

    name: str
    oid: int
    populated: bool
    refreshable: bool
    inputs: list[Input] = field(default_factory=list)


def read_view_files(settings: RefreshSettings) -> dict[str, ViewFile]:
    """Read the shipped files, then the user's, where a file of the same name takes the shipped one's place.

    Raises:
        SettingsError: the folder cannot be read, or a file's name is no name for a view.
    """
    files: dict[str, ViewFile] = {}
    if settings.shipped:
        for entry in sorted(resources.files("warehouse").joinpath("views").iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith(".sql"):
                _add_file(files, entry.name, f"warehouse/views/{entry.name}", entry.read_bytes())
    if settings.directory is not None:
        if not settings.directory.is_dir():
            raise SettingsError("refresh.directory is not a folder", path=str(settings.directory))
        for path in sorted(settings.directory.glob("*.sql")):
            try:
                _add_file(files, path.name, str(path), path.read_bytes())
            except OSError as error:
                raise SettingsError(f"a view file cannot be read: {error.strerror}", path=str(path)) from error
    return files


def _add_file(files: dict[str, ViewFile], name: str, path: str, body: bytes) -> None:
    stem = name.removesuffix(".sql")
    if not _NAME.fullmatch(stem):
        raise SettingsError(
            "a view file must be named like its view: small letters, digits and _, then .sql",
            hint="Rename the file, for example to engine_summary.sql.",
            path=path,
        )
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise SettingsError("a view file must be UTF-8", path=path) from error
    view = f"{SCHEMA}.{stem}"
    files[view] = ViewFile(view, path, text, hashlib.sha256(body).hexdigest())


def read_views(conn: Connection) -> dict[str, View]:
    """The materialized views of the schema and everything that each reads, through plain views, from the catalog."""
    views = {
        f"{SCHEMA}.{name}": View(f"{SCHEMA}.{name}", oid, populated, refreshable)
        for name, oid, populated, refreshable in conn.execute(QUERIES["read_views"])
    }
    for name, oid, input_name, is_view, can_watch in conn.execute(QUERIES["read_view_inputs"]):
        views[f"{SCHEMA}.{name}"].inputs.append(Input(oid, input_name, is_view, can_watch))
    for view in views.values():
        view.inputs.sort(key=lambda entry: entry.name)
    return views


def order_views(views: Mapping[str, View]) -> list[str]:
    """The views' names, each after the views that it reads."""
    graph = {name: [entry.name for entry in view.inputs if entry.name in views] for name, view in sorted(views.items())}
    return list(TopologicalSorter(graph).static_order())


def find_dependents(views: Mapping[str, View], roots: Iterable[str]) -> set[str]:
    """The views that read one of the roots, directly or through other views; the roots themselves are not among them."""
    reached = set(roots)
    for name in order_views(views):
        if any(entry.name in reached for entry in views[name].inputs):
            reached.add(name)
    return reached - set(roots)


def read_catalog_mark(conn: Connection) -> str:
    """A digest that changes when a relation appears, goes, is renamed or gets a column."""
    row = conn.execute(QUERIES["read_catalog_mark"]).fetchone()
    assert row is not None, "an aggregate yields a row"
    return str(row[0])


def create_view(conn: Connection, file: ViewFile, grants: Iterable[Mapping[str, Any]]) -> None:
    """Run a view's file inside the transaction at hand and check what it made.

    Args:
        conn: in a transaction, best in a savepoint, since a failure leaves the transaction unusable.
        file: its text runs as it is.
        grants: rights that others had on the view before, as warehouse.drop_view keeps them.

    Raises:
        ViewFailed: the file made something else than its one materialized view with a unique index.
        psycopg.Error: the file's own errors.
    """
    before = _read_relations(conn)
    # In a function a file cannot end the transaction that it runs in.
    conn.execute("SELECT warehouse.run_view_file(%s)", (file.text,))
    made = _read_relations(conn) - before
    if made != {(file.view, "m")}:
        found = ", ".join(sorted(f"{name} ({kind})" for name, kind in made)) or "nothing"
        raise ViewFailed(
            f"{file.path} must make the materialized view {file.view} and no other relation; it made {found}",
            hint=f"Let the file hold one CREATE MATERIALIZED VIEW {file.view}, or rename the file.",
        )
    if not read_views(conn)[file.view].refreshable:
        raise ViewFailed(
            f"{file.path} makes no unique index that REFRESH CONCURRENTLY can use",
            hint=f"Add: CREATE UNIQUE INDEX ON {file.view} (...); over plain columns, without WHERE.",
        )
    for grant in grants:
        give_grant(conn, file.view, grant)


def give_grant(conn: Connection, view: str, grant: Mapping[str, Any]) -> None:
    """Give one kept right again; a role that is gone since is left out."""
    if not grant["public"] and conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (grant["role"],)).fetchone() is None:
        return
    conn.execute(
        sql.SQL("GRANT {} ON {} TO {} {}").format(
            sql.SQL(grant["privilege"]),
            qualified(view),
            sql.SQL("PUBLIC") if grant["public"] else sql.Identifier(grant["role"]),
            sql.SQL("WITH GRANT OPTION" if grant["grantable"] else ""),
        )
    )


def _read_relations(conn: Connection) -> set[tuple[str, str]]:
    """Materialized views anywhere, and every other relation of the schema: name and kind.

    Mirror tables of other transactions may appear at any time and are no business of a view's file.
    """
    rows = conn.execute(
        """SELECT n.nspname || '.' || c.relname, c.relkind::text
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE c.relkind = 'm' OR (c.relkind IN ('r', 'p', 'v', 'f') AND n.nspname = %s)""",
        (SCHEMA,),
    )
    return {(name, kind) for name, kind in rows}


def watch_relation(conn: Connection, entry: Input) -> None:
    """Put a trigger on a table that is no mirror, so that every transaction that writes to it is counted.

    Raises:
        psycopg.errors.LockNotAvailable: writers held the table for longer than two seconds.
    """
    schema, _, table = entry.name.partition(".")
    with conn.transaction():
        conn.execute("SET LOCAL lock_timeout = '2s'")
        conn.execute("INSERT INTO warehouse.watched_relations (relation) VALUES (%s) ON CONFLICT DO NOTHING", (entry.oid,))
        conn.execute(
            sql.SQL(
                "CREATE OR REPLACE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} "
                "FOR EACH STATEMENT EXECUTE FUNCTION warehouse.record_relation_change()"
            ).format(sql.Identifier(TRIGGER), sql.Identifier(schema, table))
        )


def describe_error(error: psycopg.Error | OperatorNeeded) -> str:
    """One line for the state's reason: what Postgres said, with its detail and hint, but no data."""
    if isinstance(error, OperatorNeeded):
        return f"{error.message}. {error.hint}".strip()
    primary = error.diag.message_primary or str(error).strip().splitlines()[0]
    # Data errors quote the value after a colon, and the whole row in their detail.
    if (error.sqlstate or "").startswith(("22", "23")):
        return re.sub(r': ".*', "", primary, flags=re.DOTALL)
    detail = error.diag.message_detail if error.sqlstate == "2BP01" else None
    return f"{primary}: {' '.join(detail.split())}" if detail else primary
