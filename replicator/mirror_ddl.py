"""The mirror's DDL: a table, its indexes and its key, made and changed to what the source has.

Owns the CREATE and ALTER of the mirror's schemas. What is altered when is said in reshape.py, where values stay the same, and
in fit.py, where a copy follows.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
import structlog
from psycopg import sql

from replicator.mirror import MirrorTable
from replicator.typemap import ROW_HASH, mirror_identifier
from warehouse.db import Connection

log = structlog.get_logger()


def create_mirror(conn: Connection, table: MirrorTable) -> None:
    """Create a mirror with its indexes, where there is none."""
    schema = table.mirror.partition(".")[0]
    columns = sql.SQL(", ").join(
        [sql.SQL("{} {}").format(sql.Identifier(c["mirror_name"]), type_sql(c["mirror_type"])) for c in table.columns]
    )
    conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    key: sql.Composable = sql.SQL("_row_hash bigint")
    if table.key:
        key = sql.SQL("PRIMARY KEY ({})").format(sql.SQL(", ").join(table.key_identifiers))
    conn.execute(
        sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, _seq bigint NOT NULL, _committed_at timestamptz, _raw jsonb, {})").format(
            table.identifier, columns, key
        )
    )
    if not table.key and ROW_HASH not in column_types(conn, table):
        # a mirror that had a key has no such column yet
        conn.execute(sql.SQL("ALTER TABLE {} ADD COLUMN _row_hash bigint").format(table.identifier))
    for index, of in index_names(table):
        conn.execute(sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} ({})").format(sql.Identifier(index), table.identifier, of))


def index_names(table: MirrorTable) -> list[tuple[str, sql.Composable]]:
    """The mirror's indexes besides its key: their names, and of what."""
    name = table.mirror.partition(".")[2]
    indexes: list[tuple[str, sql.Composable]] = [("__seq", sql.SQL("_seq"))]
    if not table.key:
        indexes.append(("__row_hash", sql.SQL("_row_hash, _seq")))
    names = {column["name"].lower(): column["mirror_name"] for column in table.columns}
    for foreign in table.foreign_keys:
        # where cascades look for the children
        parts = [names[column.lower()] for column in foreign.columns if column.lower() in names]
        indexes.append(("__fk_" + "_".join(parts), sql.SQL(", ").join(map(sql.Identifier, parts))))
    return [(mirror_identifier(name + ending), of) for ending, of in indexes]


def mirror_key(conn: Connection, table: MirrorTable) -> dict[str, str]:
    """The columns of the mirror's primary key as it is, and their types."""
    rows = conn.execute(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_index i"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
        " WHERE i.indisprimary AND i.indrelid = format('%%I.%%I', %s::text, %s::text)::regclass",
        tuple(table.mirror.split(".", 1)),
    )
    return {str(name): str(type_) for name, type_ in rows}


def drop_primary_key(conn: Connection, table: MirrorTable) -> None:
    """Drop the mirror's primary key, whatever its name."""
    row: Any = conn.execute(
        "SELECT conname FROM pg_constraint WHERE contype = 'p' AND conrelid = format('%%I.%%I', %s::text, %s::text)::regclass",
        tuple(table.mirror.split(".", 1)),
    ).fetchone()
    conn.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(table.identifier, sql.Identifier(row[0])))


def is_same_type(conn: Connection, first: str, second: str) -> bool:
    """Whether two types are the same, under whatever names."""
    row: Any = conn.execute(
        "SELECT format_type(to_regtype(split_part(%(b)s, '(', 1)), NULL) = split_part(%(a)s, '(', 1)",
        {"a": first, "b": second},
    ).fetchone()
    return bool(row[0]) and first.partition("(")[2] == second.partition("(")[2]


_HISTORY = "__old"
_TYPE = re.compile(r"[a-z ]+(\(\d+(,\d+)?\))?(\[\])?")


def type_sql(text: str) -> sql.SQL:
    """A mirror type as SQL; the text comes from typemap.py, and nothing else may stand in it."""
    assert _TYPE.fullmatch(text), text
    return sql.SQL(text)


def alter_mirror(conn: Connection, table: MirrorTable, what: sql.Composable) -> None:
    """ALTER TABLE, with this behind it."""
    conn.execute(sql.SQL("ALTER TABLE {} {}").format(table.identifier, what))


def column_types(conn: Connection, table: MirrorTable) -> dict[str, tuple[str, bool]]:
    """All columns that the mirror has: name -> type, and whether it is NOT NULL."""
    rows = conn.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute"
        " WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass AND attnum > 0 AND NOT attisdropped",
        tuple(table.mirror.split(".", 1)),
    )
    return {str(name): (str(type_), bool(required)) for name, type_, required in rows}


def rename_column(conn: Connection, table: MirrorTable, old: str, new: str, *, has_raw: bool) -> None:
    """Rename a column, and what _raw holds of it."""
    alter_mirror(conn, table, sql.SQL("RENAME COLUMN {} TO {}").format(sql.Identifier(old), sql.Identifier(new)))
    if has_raw:
        conn.execute(
            sql.SQL("UPDATE {0} SET _raw = _raw - {1} || jsonb_build_object({2}, _raw -> {1}) WHERE _raw ? {1}").format(
                table.identifier, old, new
            )
        )


def drop_derived_views(conn: Connection, table: MirrorTable) -> None:
    """Drop the derived views that read a mirror, which the next refresh makes again, unless somebody's own view reads one."""
    try:
        with conn.transaction():
            conn.execute("SELECT warehouse.drop_views_of(%s)", (table.mirror,))
    except psycopg.errors.DependentObjectsStillExist:
        log.warning("derived views stay", table=table.name, reason="somebody's own view reads one of them")


def set_aside_column(conn: Connection, table: MirrorTable, name: str, *, has_raw: bool = False) -> str | None:
    """Give a column that the mirror has under this name another one, which is returned; None where there is no such column."""
    names = column_types(conn, table)
    if name not in names:
        return None
    drop_derived_views(conn, table)
    number, free = 1, mirror_identifier(name + _HISTORY)
    while free in names:
        number += 1
        free = mirror_identifier(f"{name}{_HISTORY}{number}")
    rename_column(conn, table, name, free, has_raw=has_raw)
    alter_mirror(conn, table, sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(free)))
    return free


def drop_column(conn: Connection, table: MirrorTable, name: str) -> None:
    """Drop a column, unless somebody's view holds it."""
    try:
        with conn.transaction():
            conn.execute("SELECT warehouse.drop_views_of(%s)", (table.mirror,))
            alter_mirror(conn, table, sql.SQL("DROP COLUMN {}").format(sql.Identifier(name)))
    except psycopg.errors.DependentObjectsStillExist:
        log.warning("column kept", table=table.name, column=name, reason="a view reads it")


def retype_column(conn: Connection, table: MirrorTable, name: str, mirror_type: str, *, has_raw: bool) -> None:
    """Give a column a wider type: in place, or, where somebody's view holds it, by a new column beside it."""
    column, type_ = sql.Identifier(name), type_sql(mirror_type)
    change = sql.SQL("ALTER COLUMN {0} TYPE {1} USING {0}::{1}").format(column, type_)
    try:
        with conn.transaction():
            conn.execute("SELECT warehouse.drop_views_of(%s)", (table.mirror,))
            alter_mirror(conn, table, change)
        return
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.DependentObjectsStillExist):
        pass
    key = table.key_names
    if name in key:
        drop_primary_key(conn, table)
    old = set_aside_column(conn, table, name, has_raw=has_raw)
    assert old is not None, "it was there a moment ago"
    alter_mirror(conn, table, sql.SQL("ADD COLUMN {} {}").format(column, type_))
    conn.execute(sql.SQL("UPDATE {} SET {} = {}::{}").format(table.identifier, column, sql.Identifier(old), type_))
    if has_raw:
        conn.execute(
            sql.SQL("UPDATE {0} SET _raw = _raw - {1} || jsonb_build_object({2}, _raw -> {1}) WHERE _raw ? {1}").format(
                table.identifier, old, name
            )
        )
    if name in key:
        add_key(conn, table, key)


def add_key(conn: Connection, table: MirrorTable, names: list[str]) -> None:
    """Make these columns the mirror's primary key."""
    alter_mirror(conn, table, sql.SQL("ADD PRIMARY KEY ({})").format(sql.SQL(", ").join(map(sql.Identifier, names))))
