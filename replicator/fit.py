"""Brings a mirror to the columns and the key of a source that it is about to be copied from; the rows in it stay readable.

No value is lost on the way: columns that the source dropped stay (unless the settings say otherwise), a column of another type
is a new one beside the old one, and rows that no key can find again are kept elsewhere. Owns the order of these steps; the
transaction is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import psycopg
from psycopg import sql

from replicator.history import find_kept, set_rows_aside
from replicator.mirror import MirrorTable
from replicator.mirror_ddl import (
    add_key,
    alter_mirror,
    column_types,
    drop_column,
    drop_primary_key,
    is_same_type,
    mirror_key,
    retype_column,
    set_aside_column,
    type_sql,
)
from replicator.schema import Registry
from warehouse.db import Connection

_INTEGERS = {"smallint": 5, "integer": 10, "bigint": 19}
_NUMERIC = re.compile(r"numeric\((\d+),(\d+)\)")


def fit_mirror(conn: Connection, registry: Registry, table: MirrorTable, gone: Collection[str]) -> set[str]:
    """Bring a mirror to the columns and the key of its source, without dropping it: views depend on it.

    Args:
        table: as the source has it now; its mirror may be empty, or have rows that the same key finds (see keep_key).
        gone: mirror names of columns that the source had until now.

    Returns:
        The mirror names of columns that hold nothing yet.

    Raises:
        psycopg.Error: Postgres refuses.
    """
    found = column_types(conn, table)
    alter = sql.SQL("ALTER TABLE {} ").format(table.identifier)
    old_key = mirror_key(conn, table)
    new_key = set(old_key) != set(table.key_names)
    if new_key and old_key:
        drop_primary_key(conn, table)
    for name, (_, required) in found.items():
        if required and name not in (*table.key_names, "_seq"):
            conn.execute(alter + sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(name)))
    for name in gone if registry.drops_columns else ():
        drop_column(conn, table, name)
    row: Any = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table.identifier)).fetchone()
    keeps = bool(row[0]) and not registry.drops_columns
    empty = set()
    for column in table.columns:
        name, wanted = column["mirror_name"], column["mirror_type"]
        if name not in found:
            conn.execute(alter + sql.SQL("ADD COLUMN {} {}").format(sql.Identifier(name), type_sql(wanted)))
            empty.add(name)
        elif not is_same_type(conn, found[name][0], wanted):
            if row[0] and is_wider(found[name][0], wanted):
                retype_column(conn, table, name, wanted, has_raw=True)
                continue
            if column["name"] in table.key and not new_key:
                drop_primary_key(conn, table)
                new_key = True
            if keeps or not _blank(conn, table, name, wanted):
                set_aside_column(conn, table, name, has_raw=bool(row[0]))
                conn.execute(alter + sql.SQL("ADD COLUMN {} {}").format(sql.Identifier(name), type_sql(wanted)))
            empty.add(name)
    if new_key and table.key:
        add_key(conn, table, table.key_names)
    table.kept = find_kept(conn, table)
    return empty


def _blank(conn: Connection, table: MirrorTable, name: str, wanted: str) -> bool:
    """Give a column another type without its values; False where somebody's own view reads it, and goes on reading it."""
    try:
        with conn.transaction():
            # Postgres refuses this while a view reads the column; the next refresh makes the derived views anew.
            conn.execute("SELECT warehouse.drop_views_of(%s)", (table.mirror,))
            change = sql.SQL("ALTER COLUMN {0} TYPE {1} USING NULL::{1}").format(sql.Identifier(name), type_sql(wanted))
            alter_mirror(conn, table, change)
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.DependentObjectsStillExist):
        return False
    return True


def keep_key(conn: Connection, table: MirrorTable) -> bool:
    """Whether the key of the source finds the rows in the mirror again, once it is wider there where that is what it lacks."""
    found = mirror_key(conn, table)
    wanted = {column["mirror_name"]: column["mirror_type"] for column in table.columns if column["name"] in table.key}
    others = {name for name in found.keys() & wanted.keys() if not is_same_type(conn, found[name], wanted[name])}
    if found.keys() == wanted.keys() and all(is_wider(found[name], wanted[name]) for name in others):
        for name in others:
            retype_column(conn, table, name, wanted[name], has_raw=True)
        return True
    return False


def leave_rows(conn: Connection, registry: Registry, table: MirrorTable) -> None:
    """Keep elsewhere what rows hold in kept columns that no key will find again, before they go; see warehouse.kept_rows."""
    if not registry.drops_columns:
        table.kept = find_kept(conn, table)
        set_rows_aside(conn, registry.name, table)


def is_wider(old: str, new: str) -> bool:
    """Whether a mirror type holds every number of another one."""
    if old in _INTEGERS and new in _INTEGERS:
        return _INTEGERS[new] > _INTEGERS[old]
    to = _NUMERIC.fullmatch(new)
    before = _NUMERIC.fullmatch(old)
    whole, scale = (int(before[1]) - int(before[2]), int(before[2])) if before else (_INTEGERS.get(old, 10_000), 0)
    return to is not None and int(to[2]) >= scale and int(to[1]) - int(to[2]) >= whole
