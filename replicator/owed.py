"""Deletions from tables without a key whose rows a copy beside the stream has not brought yet.

Such a mirror is a multiset, in which it does not matter what comes first: a deletion that finds no row is noted here as owed,
and the copy leaves out as many equal rows as are owed. When all of the copy is written nothing can be owed any more, since the
row was there as of the copy's position or came by the stream later. Owns a temporary table for each such copy. It ends with
the session, and so does the copy, which then begins anew; the transactions are the caller's.
"""

from __future__ import annotations

from psycopg import sql

from replicator.copy_binary import row_columns
from replicator.mirror import MirrorTable
from replicator.multiset import same_row
from warehouse.db import Connection

# The hash is of the source's columns, so what is only in _raw must be told apart besides. Equal rows are paired by number;
# should rows of one hash differ in another way, they would stay owed, and that shows at the end.
_SETTLE = sql.SQL(
    "WITH came AS (SELECT ctid AS at, _row_hash, coalesce(_raw::text, '') AS raw,"
    " row_number() OVER (PARTITION BY _row_hash, _raw::text) AS copy FROM {stage}),"
    " due AS (SELECT ctid AS due_at, _row_hash, coalesce(_raw::text, '') AS raw,"
    " row_number() OVER (PARTITION BY _row_hash, _raw::text) AS copy FROM {owed}"
    " WHERE _row_hash IN (SELECT _row_hash FROM {stage})),"
    " pairs AS (SELECT at, due_at FROM came JOIN due USING (_row_hash, raw, copy)"
    " JOIN {stage} s ON s.ctid = at JOIN {owed} m ON m.ctid = due_at WHERE {same}),"
    " settled AS (DELETE FROM {owed} WHERE ctid = ANY (ARRAY(SELECT due_at FROM pairs)))"
    " DELETE FROM {stage} WHERE ctid = ANY (ARRAY(SELECT at FROM pairs))"
)


def make_owed(conn: Connection, table: MirrorTable) -> None:
    """Begin to note what is owed, from nothing."""
    table.owed = sql.Identifier("pg_temp", f"owed_{table.number}")
    conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table.owed))
    conn.execute(
        sql.SQL("CREATE TEMP TABLE {} AS SELECT {} FROM {} WITH NO DATA").format(
            sql.Identifier(f"owed_{table.number}"), _names(table), table.identifier
        )
    )


def is_owed(conn: Connection, owed: sql.Identifier) -> bool:
    """Whether any deletion is."""
    row = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(owed)).fetchone()
    return bool(row and row[0])


def write_what_is_not_owed(conn: Connection, table: MirrorTable, owed: sql.Identifier, stage: sql.Identifier) -> int:
    """Move rows of a stage into the mirror, but for those whose deletion came before them; how many were written."""
    parts = {"stage": stage, "owed": owed, "same": same_row(table)}
    conn.execute(_SETTLE.format(**parts))
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ORDER BY _seq")
    return conn.execute(statement.format(table.identifier, _names(table), _names(table), stage)).rowcount


def _names(table: MirrorTable) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, row_columns(table)))
