"""`retry` of rows that are in the quarantine: with a key the row is read again from the source, as it is there now.

What was held may be an old image, or its row may be gone; only the source knows. So it is asked for the row with that key, and
the mirror gets what it answers: a row, or none. The answer may be newer than what the stream has brought, so until the stream
is past it changes of the table replace what they meet, as behind a copy (docs/architecture.md, "Copies without locks"). Without
a key the quarantine is a part of the source's multiset, and its tuple goes into the mirror as it is.
Owns the ends of entries that somebody wants to be tried again, and the rows that it puts into mirrors.
"""

from __future__ import annotations

import datetime
import json
import time
from contextlib import closing
from typing import Any

import numpy as np
import psycopg
import structlog
from psycopg import sql

from replicator.copy_binary import copy_tuples
from replicator.history import History
from replicator.mirror import LIVE, QUERIES, MirrorTable, key_object
from replicator.multiset import retuple
from replicator.position import Position
from replicator.quarantine import ROW_REFUSALS
from replicator.refused import copy_into_probe, explain, make_probe
from replicator.result import ResultReader, quote_name
from replicator.schema import Registry
from replicator.source import Source, SourceTable
from replicator.typemap import Column, Kind
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()

_SHOWN_S, _LOOK_S = 3.0, 0.01
_NUMBERS = frozenset({Kind.TINY, Kind.SHORT, Kind.INT24, Kind.LONG, Kind.LONGLONG, Kind.YEAR})
_TIMES = frozenset({Kind.DATE, Kind.DATETIME, Kind.TIMESTAMP, Kind.OLD_DATETIME, Kind.OLD_TIMESTAMP})


class Refused(Exception):
    """Why an entry stays held."""


class Later(Exception):
    """It cannot be said yet."""


def retry_rows(conn: Connection, source: Source, registry: Registry, seq: int, position: Position) -> int:
    """Try again what somebody asked for; the last _seq given out.

    An entry ends as Retried when the mirror has the row as the source has it; else it is held as before, with the reason.

    Args:
        conn: the connection that holds the source's lock, outside a transaction. position: all up to here is committed.
    """
    with wrap_errors():
        rows = conn.execute(QUERIES["read_retries"], {"source": registry.name}).fetchall()
    for number, name, form, raw, columns, key, identity in rows:
        table = registry.tables.get(name or "")
        reason: str | None = None
        try:
            if table is None or table.state not in LIVE or table.resync:
                raise Refused("the table is not replicated now")
            if table.state != "Synced":
                raise Later
            if table.key:
                shown = _show_key(conn, table, key, form, raw, columns)
                seq = _read_again(conn, source, registry, table, shown, seq, position)
            else:
                seq = _put_tuple(conn, registry.name, table, form, bytes(raw), columns, identity, seq)
        except Refused as problem:
            reason = str(problem)
        except Later:
            continue
        with wrap_errors():
            conn.execute(QUERIES["end_retry"], {"id": number, "state": "Held" if reason else "Retried", "reason": reason})
        log.info("row tried again", id=number, table=name, reason=reason)
    return seq


# ---------------------------------------------------------------------------------------------------- with a key
def _read_again(
    conn: Connection, source: Source, registry: Registry, table: MirrorTable, key: dict[str, Any], seq: int, position: Position
) -> int:
    """Let the mirror have the row with a key as the source has it; the last _seq given out."""
    found = source.describe(table.name)
    if found is None or not table.is_described_as(found):
        raise Refused("the source has the table with other columns than the mirror")
    # a transaction may be in the mirror a little before its rows can be read
    noted_at = time.monotonic()
    deadline = noted_at + _SHOWN_S
    while not source.shows(position, noted_at):
        if time.monotonic() > deadline:
            raise Later
        time.sleep(_LOOK_S)
    with closing(ResultReader(source, found, seq, where=_condition(source, found, table, key))) as reader:
        tuples = b"".join(bytes(block) for _, block in reader.blocks())
        left = reader.take_set_aside()
    if left:
        raise Refused(f"{left[0].reason}; correct the value at the source, then retry")
    after = source.position()
    try:
        with registry.lock:
            with wrap_errors(table=table.name), conn.transaction():
                last = _write(conn, registry.name, table, tuples, key, seq)
                if not position.covers(after):
                    registry.set_state(table, "Snapshotting", "a row of the quarantine is read again")
                    table.consistent_from, table.exact = after, False
                    registry.write(conn, position)
            if table.dirty:
                registry.written()
    except (*ROW_REFUSALS, psycopg.errors.IntegrityError) as error:
        raise Refused(explain(error)) from None
    return last


def _write(conn: Connection, source: str, table: MirrorTable, tuples: bytes, key: dict[str, Any], seq: int) -> int:
    """Put a row, or none, in the place of what the mirror has of its key and of the one that was held."""
    make_probe(conn, table)
    copy_tuples(conn, copy_into_probe(table), tuples)
    same = sql.SQL(" AND ").join([sql.SQL("m.{0} = p.{0}").format(name) for name in table.key_identifiers])
    parts = {
        "mirror": table.identifier, "same": same, "key": key_object(table, sql.SQL("p.")), "source": sql.Literal(source),
        "table": sql.Literal(table.name), "seq": sql.Literal(seq), "held": sql.Literal(json.dumps(key)),
    }  # fmt: skip
    came: Any = conn.execute("SELECT count(*) FROM pg_temp.probe").fetchone()
    history = History(conn)
    if table.kept:
        history.save(table, sql.Identifier("pg_temp", "probe"))
    removed = conn.execute(sql.SQL("DELETE FROM {mirror} m USING pg_temp.probe p WHERE {same}").format(**parts)).rowcount
    if not any(isinstance(value, dict) for value in key.values()):
        same_held = sql.SQL(" AND ").join([sql.SQL("p.{0} = h.{0}").format(name) for name in table.key_identifiers])
        gone = conn.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM {mirror} p USING jsonb_populate_record(NULL::{mirror}, {held}) h WHERE {same_held}"
                " RETURNING {key} AS key) INSERT INTO warehouse.deleted_rows (source, table_name, key, seq)"
                " SELECT {source}, {table}, key, {seq} + 1 FROM gone"
            ).format(same_held=same_held, **parts)
        ).rowcount
        removed += gone
        seq += 1
    conn.execute(sql.SQL("UPDATE pg_temp.probe SET _seq = {}").format(sql.Literal(seq + 1)))
    names = sql.SQL(", ").join(map(sql.Identifier, [*(c["mirror_name"] for c in table.columns), *table.own_columns]))
    conn.execute(sql.SQL("INSERT INTO {mirror} ({0}) SELECT {0} FROM pg_temp.probe").format(names, **parts))
    history.put_back(table)
    _count(conn, source, table, int(came[0]) - removed, seq + 1)
    return seq + 1


def _count(conn: Connection, source: str, table: MirrorTable, rows: int, seq: int) -> None:
    conn.execute(QUERIES["count_retried"], {"source": source, "table": table.name, "rows": rows, "seq": seq})
    conn.execute(QUERIES["write_seq"], {"source": source, "seq": seq})
    conn.execute(QUERIES["notify"], {"source": source, "seq": seq})


def _show_key(
    conn: Connection, table: MirrorTable, key: dict[str, Any] | None, form: str, raw: bytes, columns: list[str]
) -> dict[str, Any]:
    """The key of what is held; entries of former versions have only a tuple."""
    if key is not None:
        if set(key) != set(table.key_names):
            raise Refused("the table's key is another one since; copy it afresh")
        return key
    if form != "tuple" or columns != [column["mirror_name"] for column in table.columns]:
        raise Refused("its key is not known, or the table's columns changed since; copy the table afresh")
    with wrap_errors(table=table.name), conn.transaction(force_rollback=True):
        make_probe(conn, table)
        copy_tuples(conn, copy_into_probe(table), bytes(raw))
        row: Any = conn.execute(
            sql.SQL("SELECT {}::text FROM pg_temp.probe p").format(key_object(table, sql.SQL("p.")))
        ).fetchone()
    shown: dict[str, Any] = json.loads(row[0], parse_float=str)
    return shown


def _condition(source: Source, found: SourceTable, table: MirrorTable, key: dict[str, Any]) -> str:
    """The condition for the source's row with a key."""
    names = {column["name"]: column["mirror_name"] for column in table.columns}
    parts = []
    for column in (found.columns[i] for i in found.key):
        text, value = _place(column, key[names[column.name]])
        parts.append(f"{quote_name(column.name)} = " + source.inline(text, value))
    return " WHERE " + " AND ".join(parts)


def _place(column: Column, value: Any) -> tuple[str, Any]:
    """A key's value, as the mirror shows it, as an expression of the source with one parameter."""
    kind = column.kind
    if isinstance(value, dict):
        value = str(value["raw"])
        if kind is Kind.TEXT:
            # the stored bytes, said to be in the column's character set
            return f"CONVERT(UNHEX(%s) USING {column.charset})", value[2:]
        return "%s", value
    if kind in _NUMBERS:
        return "%s", int(value)
    if kind is Kind.DECIMAL:
        return f"CAST(%s AS DECIMAL({column.precision},{column.scale}))", str(value)
    if kind is Kind.FLOAT:
        return "%s", float(np.float32(value))
    if kind is Kind.DOUBLE:
        return "%s", float(value)
    if kind is Kind.BYTES:
        return "UNHEX(%s)", str(value)[2:]
    if kind is Kind.BIT:
        return "%s", int(value, 2)
    if kind in _TIMES and "T" in str(value):
        at = datetime.datetime.fromisoformat(value)
        return "%s", (at if at.tzinfo is None else at.astimezone(datetime.UTC)).strftime("%Y-%m-%d %H:%M:%S.%f")
    return "%s", str(value)


# ---------------------------------------------------------------------------------------------------- without
def _put_tuple(
    conn: Connection,
    source: str,
    table: MirrorTable,
    form: str,
    raw: bytes,
    columns: list[str],
    identity: bytes | None,
    seq: int,
) -> int:
    """Put one more copy of a row into the mirror; the last _seq given out."""
    if identity is None:
        raise Refused("the row was deleted or copied since")
    if form != "tuple":
        raise Refused("this version cannot represent the row; correct the value at the source, or skip it here")
    if columns != [column["mirror_name"] for column in table.columns]:
        raise Refused("the table's columns changed since; copy it afresh")
    try:
        with wrap_errors(table=table.name), conn.transaction():
            make_probe(conn, table)
            copy_tuples(conn, copy_into_probe(table), retuple(raw, len(columns)))
            conn.execute(sql.SQL("UPDATE pg_temp.probe SET _seq = {}").format(sql.Literal(seq + 1)))
            names = sql.SQL(", ").join(map(sql.Identifier, [*columns, *table.own_columns]))
            conn.execute(sql.SQL("INSERT INTO {0} ({1}) SELECT {1} FROM pg_temp.probe").format(table.identifier, names))
            _count(conn, source, table, 1, seq + 1)
    except (*ROW_REFUSALS, psycopg.errors.IntegrityError) as error:
        raise Refused(explain(error)) from None
    return seq + 1
