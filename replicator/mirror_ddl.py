"""The mirror's DDL: a table, its indexes and its key, made and changed to what the source has.

Owns the CREATE and ALTER of the mirror's schemas; reshape.py puts them together where there are rows.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import sql

from replicator.mirror import MirrorTable
from replicator.typemap import mirror_identifier
from warehouse.db import Connection


def create_mirror(conn: Connection, table: MirrorTable) -> None:
    """Create a mirror with its index, or bring an existing one to the columns of the source; see fit_mirror."""
    schema, _, name = table.mirror.partition(".")
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
    indexes: list[tuple[str, sql.Composable]] = [("__seq", sql.SQL("_seq"))]
    if not table.key:
        # a mirror that had a key has no such column yet
        conn.execute(sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS _row_hash bigint").format(table.identifier))
        indexes.append(("__row_hash", sql.SQL("_row_hash, _seq")))
    names = {column["name"].lower(): column["mirror_name"] for column in table.columns}
    for foreign in table.foreign_keys:
        # where cascades look for the children
        parts = [names[column.lower()] for column in foreign.columns if column.lower() in names]
        indexes.append(("__fk_" + "_".join(parts), sql.SQL(", ").join(map(sql.Identifier, parts))))
    for ending, of in indexes:
        index = sql.Identifier(mirror_identifier(name + ending))
        conn.execute(sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} ({})").format(index, table.identifier, of))


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


def has_same_key(conn: Connection, table: MirrorTable) -> bool:
    """Whether the keys in the mirror can be compared with those of the source."""
    found = mirror_key(conn, table)
    wanted = {column["mirror_name"]: column["mirror_type"] for column in table.columns if column["name"] in table.key}
    return found.keys() == wanted.keys() and all(_same_type(conn, found[name], wanted[name]) for name in wanted)


def fit_mirror(conn: Connection, table: MirrorTable) -> None:
    """Change the columns and the key of an empty mirror to those of the source, without dropping it or any of its columns.

    Views depend on a mirror, and a column that vanished at the source is history.
    """
    rows = conn.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute"
        " WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass AND attnum > 0 AND NOT attisdropped",
        tuple(table.mirror.split(".", 1)),
    )
    found = {str(name): (str(type_), bool(required)) for name, type_, required in rows}
    alter = sql.SQL("ALTER TABLE {} ").format(table.identifier)
    old_key = mirror_key(conn, table)
    new_key = set(old_key) != set(table.key_names)
    if new_key and old_key:
        drop_primary_key(conn, table)
    for name, (_, required) in found.items():
        if required and name not in (*table.key_names, "_seq"):
            conn.execute(alter + sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(name)))
    for column in table.columns:
        identifier, wanted = sql.Identifier(column["mirror_name"]), type_sql(column["mirror_type"])
        if column["mirror_name"] not in found:
            conn.execute(alter + sql.SQL("ADD COLUMN {} {}").format(identifier, wanted))
        elif not _same_type(conn, found[column["mirror_name"]][0], column["mirror_type"]):
            try:
                with conn.transaction():
                    # Postgres refuses this while a view reads the column; the next refresh makes the derived views anew.
                    conn.execute("SELECT warehouse.drop_views_of(%s)", (table.mirror,))
                    conn.execute(alter + sql.SQL("ALTER COLUMN {0} TYPE {1} USING NULL::{1}").format(identifier, wanted))
            except psycopg.errors.FeatureNotSupported:
                # somebody's own view reads it, and goes on reading it
                if column["name"] in table.key and not new_key:
                    drop_primary_key(conn, table)
                    new_key = True
                set_aside_column(conn, table, column["mirror_name"])
                conn.execute(alter + sql.SQL("ADD COLUMN {} {}").format(identifier, wanted))
    if new_key and table.key:
        conn.execute(alter + sql.SQL("ADD PRIMARY KEY ({})").format(sql.SQL(", ").join(table.key_identifiers)))


def _same_type(conn: Connection, first: str, second: str) -> bool:
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


def _column_names(conn: Connection, table: MirrorTable) -> set[str]:
    rows = conn.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass"
        " AND attnum > 0 AND NOT attisdropped",
        tuple(table.mirror.split(".", 1)),
    )
    return {str(name) for (name,) in rows}


def rename_column(conn: Connection, table: MirrorTable, old: str, new: str, *, has_raw: bool) -> None:
    """Rename a column, and what _raw holds of it."""
    alter_mirror(conn, table, sql.SQL("RENAME COLUMN {} TO {}").format(sql.Identifier(old), sql.Identifier(new)))
    if has_raw:
        conn.execute(
            sql.SQL("UPDATE {0} SET _raw = _raw - {1} || jsonb_build_object({2}, _raw -> {1}) WHERE _raw ? {1}").format(
                table.identifier, old, new
            )
        )


def set_aside_column(conn: Connection, table: MirrorTable, name: str, *, has_raw: bool = False) -> str | None:
    """Give a column that the mirror has under this name another one, which is returned; None where there is no such column."""
    names = _column_names(conn, table)
    if name not in names:
        return None
    number, free = 1, mirror_identifier(name + _HISTORY)
    while free in names:
        number += 1
        free = mirror_identifier(f"{name}{_HISTORY}{number}")
    rename_column(conn, table, name, free, has_raw=has_raw)
    alter_mirror(conn, table, sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(free)))
    return free
