"""warehouse.quarantine: rows and events that could not be applied, byte for byte, so that their table goes on without them.

A row is set aside where its own bytes are the cause: a key that Postgres cannot hold, a value that is not as its type's
format says, a tuple that Postgres refuses by itself. What says that the mirror and the source differ (a missing row, a key
twice, other columns) is the table's error, not a row's. Where a change is set aside, its row leaves the mirror: an old image
would pass for the present one.
Owns that table; rows of the mirror only where a tuple is tried again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray
from psycopg import sql

from replicator import decode
from replicator.changes import Batch
from replicator.copy_binary import copy_into, copy_tuples
from replicator.events import Event
from replicator.history import History
from replicator.mirror import LIVE, QUERIES, MirrorTable, key_object
from replicator.schema import Registry
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()

# Postgres says by these that a tuple is the cause.
ROW_REFUSALS = (psycopg.errors.DataError, psycopg.errors.ProgramLimitExceeded)
# More of them in one batch are no longer single rows.
MOST_REFUSED = 100
_NOTHING = 0
_NAMES = {decode.INSERT: "insert", decode.UPDATE: "update", decode.DELETE: "delete"}
_EVENTS = {decode.INSERT: Event.WRITE_ROWS, decode.UPDATE: Event.UPDATE_ROWS, decode.DELETE: Event.DELETE_ROWS}

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Poison:
    """A change that cannot be applied.

    Attributes:
        reason: why. operation: what it was.
        raw: its row images as the binlog has them, before and after for an update; or its COPY tuple.
        event_type: of the images; None for a tuple.
    """

    reason: str
    operation: str
    raw: bytes
    event_type: int | None


def take_image(changes: NDArray[np.void], out: NDArray[np.uint8], i: int, reason: str) -> Poison:
    """Set a change aside whose values or key the decoder left; the change does nothing any more, or removes its row."""
    change = changes[i]
    operation = int(change["op"])
    raw = out[int(change["hard_at"]) : int(change["hard_at"]) + abs(int(change["hard_bytes"]))].tobytes()
    _disarm(changes, i)
    return Poison(reason, _NAMES[operation], raw, int(_EVENTS[operation]))


def take_tuple(changes: NDArray[np.void], out: NDArray[np.uint8], i: int, reason: str) -> Poison:
    """Set a change aside whose tuple Postgres refuses."""
    change = changes[i]
    operation = int(change["op"])
    raw = out[int(change["image"]) : int(change["image"]) + int(change["image_bytes"])].tobytes()
    _disarm(changes, i)
    return Poison(reason, _NAMES[operation], raw, None)


def _disarm(changes: NDArray[np.void], i: int) -> None:
    has_old_key = changes["op"][i] == decode.UPDATE and not changes["rows_flags"][i] & decode.HARD_OLD_KEY
    changes["op"][i] = decode.DELETE if has_old_key else _NOTHING
    changes["image_bytes"][i] = changes["hard_bytes"][i] = 0


def set_aside(conn: Connection, source: str, table: MirrorTable, batch: Batch, change: np.void, poison: Poison, i: int) -> None:
    """Write a change to the quarantine, inside the caller's transaction; i: its index in the batch."""
    number = int(np.searchsorted(batch.transactions["changes_end"], i, side="right")) if batch.whole else 0
    transaction = batch.transactions[min(number, len(batch.transactions) - 1)]
    file = batch.files[int(transaction["file"])] if batch.files else batch.position.file
    place = f"{file}:{int(transaction['end_pos'])}" if batch.whole else str(batch.position)
    columns = [column["mirror_name"] for column in table.columns]
    facts = {
        "source": source, "table": table.name, "position": place, "event_type": poison.event_type, "reason": poison.reason,
        "raw": poison.raw, "seq": int(change["seq"]), "operation": poison.operation, "columns": json.dumps(columns),
    }  # fmt: skip
    conn.execute(QUERIES["set_aside"], facts)
    log.warning("row set aside", table=table.name, position=place, reason=poison.reason)


def find_refused(
    conn: Connection, table: MirrorTable, rows: Rows, changes: NDArray[np.void], out: NDArray[np.uint8]
) -> dict[int, str]:
    """Which tuples Postgres refuses by themselves, and why; empty where these are too many to be single rows.

    Args:
        rows: (n,) int64, indexes of changes with a tuple. Nothing is written to the mirror.
    """
    refused: dict[int, str] = {}
    with wrap_errors(table=table.name), conn.transaction(force_rollback=True):
        _make_probe(conn, table, "INCLUDING INDEXES")
        pending = [rows]
        while pending and len(refused) <= MOST_REFUSED:
            part = pending.pop()
            try:
                with conn.transaction(force_rollback=True):
                    target = np.empty(int(changes["image_bytes"][part].sum()), np.uint8)
                    decode.gather(part, changes, out, target)
                    copy_tuples(conn, _copy_into_probe(table), target.data)
            except (*ROW_REFUSALS, psycopg.errors.UniqueViolation) as error:
                if len(part) > 1:
                    pending += [part[: len(part) // 2], part[len(part) // 2 :]]
                elif not isinstance(error, psycopg.errors.UniqueViolation):
                    refused[int(part[0])] = f"Postgres refuses the row: {_first_line(error)}"
    return refused if len(refused) <= MOST_REFUSED else {}


def _make_probe(conn: Connection, table: MirrorTable, like: str = "") -> None:
    conn.execute("DROP TABLE IF EXISTS pg_temp.probe")
    conn.execute(sql.SQL("CREATE TEMP TABLE probe (LIKE {} {}) ON COMMIT DROP").format(table.identifier, sql.SQL(like)))


def _copy_into_probe(table: MirrorTable) -> sql.Composed:
    return copy_into(sql.Identifier("pg_temp", "probe"), [*(c["mirror_name"] for c in table.columns), *table.own_columns])


def retry_rows(conn: Connection, registry: Registry, seq: int) -> int:
    """Try again what somebody asked for; the last _seq given out.

    A tuple goes into the mirror under a new _seq, unless its row changed again since. What is refused again is held as before,
    with the reason.
    """
    with wrap_errors():
        rows = conn.execute(QUERIES["read_retries"], {"source": registry.name}).fetchall()
    for number, name, event_type, raw, row_seq, columns in rows:
        table = registry.tables.get(name or "")
        if table is None or table.state not in LIVE or table.resync:
            reason: str | None = "the table is not replicated now"
        elif event_type is not None or not table.key:
            reason = "this version cannot represent the row; mend the value at the source, then skip it here"
        elif columns != [column["mirror_name"] for column in table.columns]:
            reason = "the table's columns changed since; copy it afresh"
        else:
            reason = _retry(conn, registry.name, table, bytes(raw), int(row_seq), seq + 1)
        if reason is None:
            seq += 1
        with wrap_errors():
            conn.execute(QUERIES["end_retry"], {"id": number, "state": "Held" if reason else "Retried", "reason": reason})
        log.info("row tried again", id=number, table=name, reason=reason)
    return seq


def _retry(conn: Connection, source: str, table: MirrorTable, raw: bytes, row_seq: int, seq: int) -> str | None:
    """Put a tuple into the mirror; why not, where it is refused."""
    same = sql.SQL(" AND ").join([sql.SQL("m.{0} = p.{0}").format(name) for name in table.key_identifiers])
    parts = {
        "mirror": table.identifier, "same": same, "key": key_object(table, sql.SQL("p.")), "source": sql.Literal(source),
        "table": sql.Literal(table.name), "row_seq": sql.Literal(row_seq), "seq": sql.Literal(seq),
    }  # fmt: skip
    try:
        with wrap_errors(table=table.name), conn.transaction():
            _make_probe(conn, table)
            copy_tuples(conn, _copy_into_probe(table), raw)
            newer: Any = conn.execute(
                sql.SQL(
                    "SELECT EXISTS (SELECT FROM {mirror} m JOIN pg_temp.probe p ON {same} WHERE m._seq > {row_seq}) OR EXISTS ("
                    "SELECT FROM warehouse.deleted_rows d, pg_temp.probe p WHERE d.source = {source} AND d.table_name = {table}"
                    " AND d.key = {key} AND d.seq > {row_seq})"
                ).format(**parts)
            ).fetchone()
            if newer[0]:
                return None
            history = History(conn)
            if table.kept:
                history.save(table, sql.Identifier("pg_temp", "probe"))
            gone = conn.execute(sql.SQL("DELETE FROM {mirror} m USING pg_temp.probe p WHERE {same}").format(**parts)).rowcount
            conn.execute(sql.SQL("UPDATE pg_temp.probe SET _seq = {seq}").format(**parts))
            names = sql.SQL(", ").join(
                map(sql.Identifier, [*(c["mirror_name"] for c in table.columns), "_seq", "_committed_at", "_raw"])
            )
            conn.execute(sql.SQL("INSERT INTO {mirror} ({0}) SELECT {0} FROM pg_temp.probe").format(names, **parts))
            history.put_back(table)
            conn.execute(QUERIES["count_retried"], {"source": source, "table": table.name, "rows": 1 - gone, "seq": seq})
            conn.execute(QUERIES["write_seq"], {"source": source, "seq": seq})
            conn.execute(QUERIES["notify"], {"source": source, "seq": seq})
    except (*ROW_REFUSALS, psycopg.errors.IntegrityError) as error:
        return f"Postgres refuses the row: {_first_line(error)}"
    return None


def hold_event(conn: Connection, source: str, place: str, event_type: int | None, reason: str, raw: bytes | None) -> None:
    """Keep an event that stops the stream, once for its place."""
    facts = {"source": source, "position": place, "event_type": event_type, "reason": reason, "raw": raw}
    conn.execute(QUERIES["hold_event"], facts)


def read_skipped(conn: Connection, source: str) -> frozenset[str]:
    """The places of events that somebody wants to be passed over."""
    with wrap_errors():
        return frozenset(str(place) for (place,) in conn.execute(QUERIES["read_skipped"], {"source": source}))


def list_held(conn: Connection) -> Iterator[dict[str, Any]]:
    """Everything that is held, for printing."""
    with wrap_errors():
        for row in conn.execute(QUERIES["list_held"]):
            names = ("id", "source", "table", "position", "operation", "reason", "state", "bytes", "set_aside_at")
            yield dict(zip(names, row, strict=True))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
