"""Writes rows again that differ from the source though no change is on its way; the loop does so between two batches.

Owns the statements. What is written gets new numbers and no commit time, as a copy's rows do, and what is deleted is recorded,
so the scorer and the derived views follow. With a key nothing is written that the stream touched since the source was read;
then no later change can meet a row that it does not expect. Without a key the rows are a multiset, where the order of adding
and taking away does not matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import structlog
from psycopg import sql

from replicator.apply import REFUSALS
from replicator.copy_binary import copy_into, copy_tuples
from replicator.history import History
from replicator.mirror import QUERIES, MirrorTable, key_object
from replicator.mirror_side import QUERIES as VERIFY_QUERIES
from replicator.rows import Rows
from replicator.schema import Registry
from replicator.watch import Watch
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()


def carry_out(conn: Connection, registry: Registry, watch: Watch, seq: int) -> int:
    """Do what `verify` asked for; the last _seq given out.

    Args:
        conn: the connection that holds the source's lock, outside a transaction. seq: the last _seq given out before.
    """
    for repair in watch.take_repairs():
        table = registry.by_number[repair.table.number]
        came, gone = repair.came, repair.gone
        if table.key:
            came, gone = (rows.choose(np.nonzero(~np.isin(rows.hashes, watch.touched()))[0]) for rows in (came, gone))
        try:
            if table.state == "Synced" and not table.resync:
                with wrap_errors(table=table.name), conn.transaction():
                    seq = _write(conn, registry.name, table, came, gone, seq)
                log.info("rows repaired", table=table.name, written=len(came), deleted=len(gone))
        except REFUSALS as error:
            repair.outcome = f"Postgres refused the rows: {str(error).strip().splitlines()[0]}"
        repair.done.set()
    return seq


def _write(conn: Connection, source: str, table: MirrorTable, came: Rows, gone: Rows, seq: int) -> int:
    names = [*(column["mirror_name"] for column in table.columns), *table.own_columns]
    rows = sql.Identifier("pg_temp", "repair_rows")
    conn.execute(sql.SQL("CREATE TEMP TABLE repair_rows (LIKE {}) ON COMMIT DROP").format(table.identifier))
    copy_tuples(conn, copy_into(rows, names), came.all_tuples())
    parts = {
        "mirror": table.identifier, "key": key_object(table, sql.SQL("m.")), "source": sql.Literal(source),
        "table": sql.Literal(table.name), "seq": sql.Literal(seq),
    }  # fmt: skip
    history = History(conn)
    seq += _delete_keys(conn, table, came, gone, parts, history) if table.key else _delete_copies(conn, table, gone, parts)
    values: list[sql.Composable] = [sql.Identifier("r", name) for name in names]
    first_own = len(table.columns)
    values[first_own : first_own + 2] = [sql.SQL("{} + row_number() OVER ()").format(sql.Literal(seq)), sql.SQL("NULL")]
    seq += conn.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} r").format(
            table.identifier, sql.SQL(", ").join(map(sql.Identifier, names)), sql.SQL(", ").join(values), rows
        )
    ).rowcount
    history.put_back(table)
    conn.execute(VERIFY_QUERIES["note_repaired"], {"source": source, "table": table.name, "seq": seq})
    conn.execute(QUERIES["write_seq"], {"source": source, "seq": seq})
    conn.execute(QUERIES["notify"], {"source": source, "seq": seq})
    return seq


_DELETE_KEYS = sql.SQL(
    "WITH all_gone AS (DELETE FROM {mirror} m USING {stage} k WHERE {same} RETURNING {key} AS key, k._n)"
    " INSERT INTO warehouse.deleted_rows (source, table_name, key, seq)"
    " SELECT {source}, {table}, key, {seq} + row_number() OVER () FROM all_gone WHERE _n = 1"
)
_DELETE_COPIES = sql.SQL(
    "WITH wanted AS (SELECT s._row_hash AS hash, {wanted} AS content, count(*) AS copies FROM {stage} s GROUP BY 1, 2),"
    " found AS (SELECT c.place FROM wanted w CROSS JOIN LATERAL (SELECT m.ctid AS place FROM {mirror} m"
    " WHERE (m._row_hash = w.hash OR (w.hash IS NULL AND m._row_hash IS NULL)) AND {content} = w.content"
    " ORDER BY m._seq LIMIT w.copies) c),"
    " gone AS (DELETE FROM {mirror} m USING found f WHERE m.ctid = f.place RETURNING {key} AS key)"
    " INSERT INTO warehouse.deleted_rows (source, table_name, key, seq)"
    " SELECT {source}, {table}, key, {seq} + row_number() OVER () FROM gone"
)


def _delete_keys(conn: Connection, table: MirrorTable, came: Rows, gone: Rows, parts: dict[str, Any], history: History) -> int:
    """Delete the rows with these keys, and record those that do not come back; how many these are."""
    stage = sql.Identifier("pg_temp", "repair_keys")
    keys = sql.SQL(", ").join(table.key_identifiers)
    conn.execute(
        sql.SQL("CREATE TEMP TABLE repair_keys ON COMMIT DROP AS SELECT {}, 0::bigint AS _n FROM {} WITH NO DATA").format(
            keys, table.identifier
        )
    )
    tuples = came.all_keys(0) + gone.all_keys(1)
    copy_tuples(conn, copy_into(stage, [*table.key_names, "_n"]), tuples)
    same = sql.SQL(" AND ").join([sql.SQL("m.{0} = k.{0}").format(name) for name in table.key_identifiers])
    if table.kept:
        history.save(table, stage, sql.SQL("s._n = 0"))
    return conn.execute(_DELETE_KEYS.format(stage=stage, same=same, **parts)).rowcount


def _delete_copies(conn: Connection, table: MirrorTable, gone: Rows, parts: dict[str, Any]) -> int:
    """Delete one copy for each of these rows, the oldest first, and record it; how many were found."""
    stage = sql.Identifier("pg_temp", "repair_surplus")
    names = [*(column["mirror_name"] for column in table.columns), *table.own_columns]
    conn.execute(sql.SQL("CREATE TEMP TABLE repair_surplus (LIKE {}) ON COMMIT DROP").format(table.identifier))
    copy_tuples(conn, copy_into(stage, names), gone.all_tuples())
    content, wanted = _content(table, "m"), _content(table, "s")
    return conn.execute(_DELETE_COPIES.format(stage=stage, content=content, wanted=wanted, **parts)).rowcount


def _content(table: MirrorTable, alias: str) -> sql.Composed:
    """All that counts of a row without a key, byte for byte."""
    columns = [sql.Identifier(alias, name) for name in (*(column["mirror_name"] for column in table.columns), "_raw")]
    return sql.SQL("record_send(ROW({}))").format(sql.SQL(", ").join(columns))
