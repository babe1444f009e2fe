"""Tables without a key: the mirror is a multiset, and a change adds or takes away one copy of a whole row.

Owns the statements for such tables; transactions, counters and the order of tables are the applier's. Replaying a change is
not harmless here, so every change must come exactly once.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from replicator import decode
from replicator.copy_binary import copy_into, copy_tuples, row_columns
from replicator.mirror import MirrorTable, key_object
from warehouse.db import Connection

Rows = NDArray[np.int64]

# The oldest copies go first. A stage's row stands for one copy; the first of a group says how many are wanted.
_DELETE = sql.SQL(
    "WITH found AS (SELECT s._group, c.place, row_number() OVER (PARTITION BY s._group ORDER BY c._seq, c.place) AS copy"
    " FROM {stage} s CROSS JOIN LATERAL (SELECT m.ctid AS place, m._seq FROM {mirror} m"
    " WHERE m._row_hash = s._row_hash AND {same} ORDER BY m._seq LIMIT s._copies) c WHERE s._copy = 1),"
    " gone AS (DELETE FROM {mirror} m USING found f, {stage} s"
    " WHERE m.ctid = f.place AND s._group = f._group AND s._copy = f.copy RETURNING {keys} AS key, s._seq, s._committed_at)"
    "{owe}"
    " INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
    " SELECT {source}, {table}, key, _seq, _committed_at FROM gone"
)

_OWE = sql.SQL(
    ", owe AS (INSERT INTO {owed} ({names}) SELECT {names} FROM {stage} s"
    " WHERE NOT EXISTS (SELECT FROM found f WHERE f._group = s._group AND f.copy = s._copy))"
)


def net(rows: Rows, changes: NDArray[np.void], out: NDArray[np.uint8], columns: int) -> tuple[Rows, Rows, Rows]:
    """What remains of changes once equal rows' insertions and deletions have cancelled each other.

    Args:
        rows: (n,) int64, indexes of one table's changes, in order. changes: decode.CHANGE. out: what they point into.
        columns: how many the source has.

    Returns:
        The insertions, and the deletions with a group's number for each (the same for equal rows), in order.
    """
    kept = np.empty(len(rows), np.uint8)
    groups = np.empty(len(rows), np.int64)
    buckets = np.full(1 << (2 * len(rows) + 1).bit_length(), -1, np.int64)
    decode.cancel(rows, changes, out, columns, kept, groups, buckets)
    is_deletion = changes["op"][rows] == decode.DELETE
    deletions = (kept == 1) & is_deletion
    return rows[(kept == 1) & ~is_deletion], rows[deletions], groups[deletions]


def pack(
    rows: Rows, changes: NDArray[np.void], out: NDArray[np.uint8], columns: int, more: NDArray[np.int64] | None = None
) -> memoryview:
    """The COPY tuples of changes with the row's hash, and more fields of 8 bytes, behind them; more: (n, m) int64."""
    if more is None:
        more = np.empty((len(rows), 0), np.int64)
    target = np.empty(int(changes["image_bytes"][rows].sum()) + 12 * (more.shape[1] + 1) * len(rows), np.uint8)
    return target[: decode.gather_hashed(rows, changes, out, columns, more, target)].data


def retuple(raw: bytes, columns: int) -> bytes:
    """A tuple of a row with the row's hash behind it, which it may have already; columns: of the source."""
    if int.from_bytes(raw[:2], "big") > columns + 3:
        return raw
    row_hash = int(decode._hash_fields(np.array(bytearray(raw)), 2, columns))
    return struct.pack("!h", columns + 4) + raw[2:] + struct.pack("!iq", 8, row_hash)


def delete_rows(
    conn: Connection, source: str, table: MirrorTable, stage: sql.Identifier, rows: Rows, groups: Rows,
    changes: NDArray[np.void], out: NDArray[np.uint8],
) -> int:  # fmt: skip
    """Delete one copy of its row for each of these deletions and record them in deleted_rows; how many were found.

    The others are noted as owed while a copy runs beside the stream; see owed.py.

    Args:
        stage: an empty table as make_stage makes it.
        rows, groups: as net gives them.
    """
    order = np.argsort(groups, kind="stable")
    rows, groups = rows[order], groups[order]
    _, firsts, counts = np.unique(groups, return_index=True, return_counts=True)
    copies = np.repeat(counts, counts)
    number = np.arange(len(rows)) - np.repeat(firsts, counts) + 1
    tuples = pack(rows, changes, out, len(table.columns), np.stack([groups, number, copies], axis=1).astype(np.int64))
    copy_tuples(conn, copy_into(stage, [*row_columns(table), "_group", "_copy", "_copies"]), tuples)
    owe: sql.Composable = sql.SQL("")
    if table.owed is not None:
        names = sql.SQL(", ").join(map(sql.Identifier, row_columns(table)))
        owe = _OWE.format(owed=table.owed, names=names, stage=stage)
    statement = _DELETE.format(
        stage=stage, mirror=table.identifier, same=same_row(table), owe=owe, keys=key_object(table, sql.SQL("m.")),
        source=sql.Literal(source), table=sql.Literal(table.name),
    )  # fmt: skip
    return conn.execute(statement).rowcount


def make_stage(conn: Connection, table: MirrorTable, name: str) -> None:
    """Make the temporary table that deletions are staged in, instead of the one that was there."""
    columns = sql.SQL(", ").join(map(sql.Identifier, row_columns(table)))
    conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier("pg_temp", name)))
    conn.execute(
        sql.SQL(
            "CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {}, 0::bigint AS _group, 0::bigint AS _copy,"
            " 0::bigint AS _copies FROM {} WITH NO DATA"
        ).format(sql.Identifier(name), columns, table.identifier)
    )


def same_row(table: MirrorTable) -> sql.Composed:
    """That the rows m and s are the same; as text where values that differ to the eye are equal to Postgres."""
    parts: list[sql.Composable] = [sql.SQL("m._raw::text IS NOT DISTINCT FROM s._raw::text")]
    for column in table.columns:
        as_text = sql.SQL("::text" if column["mirror_type"] == "jsonb" else "")
        parts.append(sql.SQL("m.{0}{1} IS NOT DISTINCT FROM s.{0}{1}").format(sql.Identifier(column["mirror_name"]), as_text))
    return sql.SQL(" AND ").join(parts)


def keep_rows(conn: Connection, table: MirrorTable) -> bool:
    """Keep the mirror's rows beside it until a copy is there; False where it has none."""
    conn.execute("DROP TABLE IF EXISTS pg_temp.kept_keys")
    statement = sql.SQL("CREATE TEMP TABLE kept_keys ON COMMIT DROP AS SELECT {} AS key FROM {} m").format(
        key_object(table, sql.SQL("m.")), table.identifier
    )
    return conn.execute(statement).rowcount > 0


def record_vanished_rows(conn: Connection, source: str, table: MirrorTable, seq: int) -> int:
    """Record the copies of rows that keep_rows kept and that are not there any more as deleted; how many."""
    statement = sql.SQL(
        "INSERT INTO warehouse.deleted_rows (source, table_name, key, seq)"
        " SELECT {source}, {table}, key::jsonb, {seq} + row_number() OVER () FROM ("
        "SELECT key::text AS key, row_number() OVER (PARTITION BY key::text) FROM pg_temp.kept_keys EXCEPT"
        " SELECT key::text, row_number() OVER (PARTITION BY key::text) FROM (SELECT {key} AS key FROM {mirror} m) now) gone"
    ).format(
        source=sql.Literal(source), table=sql.Literal(table.name), seq=sql.Literal(seq), mirror=table.identifier,
        key=key_object(table, sql.SQL("m.")),
    )  # fmt: skip
    return conn.execute(statement).rowcount
