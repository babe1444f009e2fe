"""Changes a mirror that holds rows: columns renamed, retyped, added and left behind, and the key moved.

Owns the statements; the transaction is the caller's. What the source has no longer stays, unless the settings say otherwise,
under another name where its own is taken.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from psycopg import sql

from replicator.arrangement import CopyNeeded
from replicator.evolution import Evolution
from replicator.mirror import MirrorTable, key_object
from replicator.mirror_ddl import (
    add_key,
    alter_mirror,
    drop_column,
    drop_primary_key,
    rename_column,
    retype_column,
    set_aside_column,
    type_sql,
)
from warehouse.db import Connection


def reshape(
    conn: Connection, source: str, table: MirrorTable, evolution: Evolution, seq: int, commit_us: int, *, drops: bool
) -> int:
    """Carry out an evolution; the last _seq given out.

    Args:
        source: its name in the warehouse.
        table: as it was before.
        commit_us: when the source committed the change.
        drops: columns that the source dropped go here, too.

    Raises:
        CopyNeeded: the rows that are there do not allow it.
        psycopg.Error: Postgres refuses.
    """
    _check(conn, source, table, evolution)
    if evolution.moves_key:
        seq = _record_old_keys(conn, source, table, seq, commit_us)
    has_raw = _has_raw(conn, source, table)
    for name in evolution.gone if drops else ():
        drop_column(conn, table, name)
    _rename(conn, table, evolution.renamed, has_raw=has_raw)
    for name, mirror_type in evolution.retyped:
        retype_column(conn, table, name, mirror_type, has_raw=has_raw)
    for name, mirror_type, value in evolution.added:
        _add(conn, table, name, mirror_type, value, has_raw=has_raw)
    if evolution.moves_key:
        _move_key(conn, table, evolution)
        seq = _renumber(conn, table, seq)
    return seq


def _check(conn: Connection, source: str, table: MirrorTable, evolution: Evolution) -> None:
    has_raw = _has_raw(conn, source, table)
    conditions: list[tuple[str, sql.Composable]] = []
    for name in evolution.nulls:
        column = sql.Identifier(name)
        conditions.append((f"NULL in {name}", sql.SQL("{} IS NULL AND NOT coalesce(_raw ? {}, false)").format(column, name)))
    conditions += [(f"0 in {name}", sql.SQL("{} = 0").format(sql.Identifier(name))) for name in evolution.zeros]
    if has_raw:
        conditions += [(f"values of {name} in _raw", sql.SQL("_raw ? {}").format(name)) for name in evolution.raws]
    for what, condition in conditions:
        found: Any = conn.execute(
            sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(table.identifier, condition)
        ).fetchone()
        if found[0]:
            raise CopyNeeded(f"it was altered, and there is {what}")


def _has_raw(conn: Connection, source: str, table: MirrorTable) -> bool:
    row = conn.execute(
        "SELECT raw_rows > 0 FROM warehouse.tables WHERE source = %s AND table_name = %s", (source, table.name)
    ).fetchone()
    return row is None or bool(row[0])


# ---------------------------------------------------------------------------------------------------- columns
def _rename(conn: Connection, table: MirrorTable, renamed: list[tuple[str, str]], *, has_raw: bool) -> None:
    """Rename columns, which may take each other's names."""
    if len(renamed) > 1:
        waiting = [(old, f"tailrace renames {i}") for i, (old, _) in enumerate(renamed)]
        for old, between in waiting:
            rename_column(conn, table, old, between, has_raw=has_raw)
        renamed = [(between, new) for (_, between), (_, new) in zip(waiting, renamed, strict=True)]
    for old, new in renamed:
        set_aside_column(conn, table, new, has_raw=has_raw)
        rename_column(conn, table, old, new, has_raw=has_raw)


def _add(conn: Connection, table: MirrorTable, name: str, mirror_type: str, value: str | None, *, has_raw: bool) -> None:
    """Add a column with a value for the rows that are there, which Postgres keeps once and not in each row."""
    set_aside_column(conn, table, name, has_raw=has_raw)
    column, type_ = sql.Identifier(name), type_sql(mirror_type)
    if value is None:
        alter_mirror(conn, table, sql.SQL("ADD COLUMN {} {}").format(column, type_))
        return
    alter_mirror(conn, table, sql.SQL("ADD COLUMN {0} {1} DEFAULT {2}::{1}").format(column, type_, sql.Literal(value)))
    alter_mirror(conn, table, sql.SQL("ALTER COLUMN {} DROP DEFAULT").format(column))


# ---------------------------------------------------------------------------------------------------- keys
def _move_key(conn: Connection, table: MirrorTable, evolution: Evolution) -> None:
    names = dict(evolution.renamed)
    before = {names.get(name, name) for name in table.key_names}
    after = [column["mirror_name"] for column in evolution.columns if column["name"] in evolution.key]
    if before == set(after):
        return
    drop_primary_key(conn, table)
    for name in before - set(after):
        alter_mirror(conn, table, sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(name)))
    add_key(conn, table, after)


def _record_old_keys(conn: Connection, source: str, table: MirrorTable, seq: int, commit_us: int) -> int:
    """Under their old names the rows are gone, for whoever kept something by these."""
    statement = sql.SQL(
        "INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
        " SELECT {source}, {table}, {key}, {seq} + row_number() OVER (ORDER BY m._seq), {at} FROM {mirror} m"
    ).format(
        source=sql.Literal(source), table=sql.Literal(table.name), key=key_object(table, sql.SQL("m.")), seq=sql.Literal(seq),
        at=sql.Literal(datetime.fromtimestamp(commit_us / 1_000_000, UTC)), mirror=table.identifier,
    )  # fmt: skip
    return seq + conn.execute(statement).rowcount


def _renumber(conn: Connection, table: MirrorTable, seq: int) -> int:
    """Every row is a new version, under its new name."""
    statement = sql.SQL(
        "UPDATE {mirror} m SET _seq = n.seq FROM (SELECT ctid AS place, {seq} + row_number() OVER (ORDER BY _seq) AS seq"
        " FROM {mirror}) n WHERE m.ctid = n.place"
    ).format(mirror=table.identifier, seq=sql.Literal(seq))
    return seq + conn.execute(statement).rowcount
