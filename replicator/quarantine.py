"""warehouse.quarantine: rows and events that could not be applied, byte for byte, so that their table goes on without them.

A row is set aside where its own bytes are the cause: a key that Postgres cannot hold, a value that is not as its type's
format says, a tuple that Postgres refuses by itself. What says that the mirror and the source differ (a missing row, a key
twice, other columns) is the table's error, not a row's. Where a change is set aside, its row leaves the mirror: an old image
would pass for the present one. As long as a row is missing for that reason its entry has an identity: by it a later change
that puts the row right, or takes it away at the source, ends the entry. Without a key that is what keeps mirror and quarantine
together the source's multiset.
Owns that table.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray
from psycopg import sql

from replicator import decode
from replicator.copy_binary import copy_into, copy_tuples
from replicator.events import Event
from replicator.mirror import QUERIES, MirrorTable, key_object
from replicator.plan import Plans
from replicator.values import left_of_result, mend
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()

# Postgres says by these that a tuple is the cause.
ROW_REFUSALS = (psycopg.errors.DataError, psycopg.errors.ProgramLimitExceeded)
# More of them in one piece are no longer single rows.
MOST_REFUSED = 100
_NOTHING = 0
_NAMES = {decode.INSERT: "insert", decode.UPDATE: "update", decode.DELETE: "delete"}
_EVENTS = {decode.INSERT: Event.WRITE_ROWS, decode.UPDATE: Event.UPDATE_ROWS, decode.DELETE: Event.DELETE_ROWS}
_NULL = struct.pack("!i", -1)


@dataclass(frozen=True)
class Poison:
    """A row, or a change, that cannot be applied.

    Attributes:
        reason: why. operation: what it was.
        form: what `raw` is: row images of the binlog, a COPY tuple, or a row of the binary protocol.
        event_type: of images.
        key: the COPY fields of its key, NULL for what Postgres cannot hold; None without a key.
        left: what it cannot hold of the key, by the column's source name, as it would stand in _raw.
        identity: see the column of warehouse.quarantine.
    """

    reason: str
    operation: str
    form: Literal["images", "tuple", "result"]
    raw: bytes
    event_type: int | None = None
    key: bytes | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    identity: bytes | None = None


def identify(data: bytes | memoryview) -> bytes:
    """What stands for the bytes that tell a row from others."""
    return hashlib.sha256(data).digest()


# ---------------------------------------------------------------------------------------------------- taking
def take_image(
    changes: NDArray[np.void], out: NDArray[np.uint8], keys: NDArray[np.uint8], i: int, reason: str, plans: Plans
) -> Poison:
    """Set a change aside whose values or key the decoder left; the change does nothing any more, or removes its row."""
    change = changes[i]
    operation, plan = int(change["op"]), int(change["plan"])
    raw = out[int(change["hard_at"]) : int(change["hard_at"]) + abs(int(change["hard_bytes"]))].tobytes()
    is_bad = bool(change["hard_bytes"] < 0)
    _disarm(changes, i)
    parts: dict[str, Any] = {"event_type": int(_EVENTS[operation])}
    if not plans.plans["keys"][plan]:
        return Poison(reason, _NAMES[operation], "images", raw, **parts, identity=identify(raw))
    name = "old_key" if operation == decode.DELETE else "key"
    fields = keys[int(change[name]) : int(change[name]) + int(change[f"{name}_bytes"])].tobytes()
    left = _left_of_images(plans, plan, raw, fields, 1 if operation == decode.UPDATE else 0) if is_bad else {}
    identity = None if is_bad else identify(fields)
    return Poison(reason, _NAMES[operation], "images", raw, **parts, key=fields, left=left, identity=identity)


def take_tuple(changes: NDArray[np.void], out: NDArray[np.uint8], i: int, reason: str, table: MirrorTable) -> Poison:
    """Set a change aside whose tuple Postgres refuses."""
    change = changes[i]
    operation = int(change["op"])
    raw = out[int(change["image"]) : int(change["image"]) + int(change["image_bytes"])].tobytes()
    _disarm(changes, i)
    return of_tuple(table, raw, reason, _NAMES[operation])


def of_tuple(table: MirrorTable, raw: bytes, reason: str, operation: str = "copy") -> Poison:
    """A row whose tuple Postgres refuses."""
    key = key_fields(table, raw) if table.key else None
    return Poison(reason, operation, "tuple", raw, key=key, identity=identify_tuple(table, raw))


def take_result(
    plans: Plans, changes: NDArray[np.void], out: NDArray[np.uint8], i: int, reason: str, names: Sequence[str]
) -> Poison:
    """A row that a copy read and that cannot be represented.

    Args:
        changes, out: as decode.consume_result left them. names: the source names of the key's columns.
    """
    change = changes[i]
    at, size = int(change["hard_at"]), abs(int(change["hard_bytes"]))
    raw = out[at : at + size].tobytes()
    columns = plans.sources[int(change["plan"])]
    if not names:
        return Poison(reason, "copy", "result", raw)
    fields = split_tuple(out[int(change["image"]) : int(change["image"]) + int(change["image_bytes"])].tobytes())
    key = b"".join(part for column, part in zip(columns, fields, strict=False) if column.name in names)
    left = {name: kept for name, kept in left_of_result(plans, changes, out, i) if name in names}
    return Poison(
        reason,
        "copy",
        "result",
        raw,
        key=key,
        left=left,
        identity=identify(key + b"".join(value.encode() for value in left.values())),
    )


def _disarm(changes: NDArray[np.void], i: int) -> None:
    has_old_key = changes["op"][i] == decode.UPDATE and not changes["rows_flags"][i] & decode.HARD_OLD_KEY
    changes["op"][i] = decode.DELETE if has_old_key else _NOTHING
    changes["image_bytes"][i] = changes["hard_bytes"][i] = 0


def _left_of_images(plans: Plans, plan: int, raw: bytes, key: bytes, skip: int) -> dict[str, str]:
    """What Postgres cannot hold of a key: the values that are NULL in its fields and not in the image.

    Args:
        key: the COPY fields. skip: so many images stand before the one with this key.
    """
    first, count = int(plans.plans["first"][plan]), int(plans.plans["columns"][plan])
    packed, columns = plans.columns[first : first + count], plans.sources[plan]
    left: dict[str, str] = {}
    at = 0
    for _ in range(skip + 1):
        left.clear()
        fields = iter(_split(key, 0))
        nulls, at = at, at + (count + 7) // 8
        for i, column in enumerate(columns):
            value = next(fields) if packed["is_key"][i] else b""
            if raw[nulls + (i >> 3)] >> (i & 7) & 1:
                continue
            size = int(packed["fixed"][i])
            if not size:
                prefix = int(packed["prefix"][i])
                size, at = int.from_bytes(raw[at : at + prefix], "little"), at + prefix
            if value == _NULL:
                left[column.name] = str(mend(column, raw[at : at + size], plans.charsets, is_result=False)[1])
            at += size
    return left


# ---------------------------------------------------------------------------------------------------- tuples
def split_tuple(raw: bytes) -> list[bytes]:
    """The fields of a COPY tuple, each with its length in front."""
    return _split(raw, 2)


def _split(raw: bytes, at: int) -> list[bytes]:
    fields = []
    while at < len(raw):
        end = at + 4 + max(0, int.from_bytes(raw[at : at + 4], "big", signed=True))
        fields.append(raw[at:end])
        at = end
    return fields


def key_fields(table: MirrorTable, raw: bytes) -> bytes:
    """The fields of a tuple's key, in the order of the columns, as decode.CHANGE has them."""
    return b"".join(part for column, part in zip(table.columns, split_tuple(raw), strict=False) if column["name"] in table.key)


def identify_tuple(table: MirrorTable, raw: bytes) -> bytes:
    """The identity of a tuple of a mirror: of its key, or of all its values and its _raw."""
    if table.key:
        return identify(key_fields(table, raw))
    fields, count = split_tuple(raw), len(table.columns)
    # behind the columns stand _seq, _committed_at and _raw
    return identify(b"".join([*fields[:count], fields[count + 2]]))


# ---------------------------------------------------------------------------------------------------- writing
def set_aside(conn: Connection, source: str, table: MirrorTable, place: str, seq: int, poison: Poison) -> None:
    """Write a row to the quarantine, inside the caller's transaction.

    Args:
        place: where it came by, for people. seq: the _seq that it has there.
    """
    columns = [column["mirror_name"] for column in table.columns]
    shown = None if poison.key is None else _show_key(conn, table, poison)
    facts = {
        "source": source, "table": table.name, "position": place, "event_type": poison.event_type, "reason": poison.reason,
        "raw": poison.raw, "seq": seq, "operation": poison.operation, "columns": json.dumps(columns), "form": poison.form,
        "key": None if shown is None else json.dumps(shown), "identity": poison.identity,
    }  # fmt: skip
    conn.execute(QUERIES["set_aside"], facts)
    if poison.identity is not None:
        table.held.add(poison.identity)
    # the place of a copied row is made of values
    at = {} if poison.operation == "copy" else {"position": place}
    log.warning("row set aside", table=table.name, reason=poison.reason, **at)


def _show_key(conn: Connection, table: MirrorTable, poison: Poison) -> dict[str, Any] | None:
    """A key as Postgres shows it; None where it cannot even do that."""
    assert poison.key is not None
    try:
        with conn.transaction(force_rollback=True):
            conn.execute("DROP TABLE IF EXISTS pg_temp.held_key")
            names = sql.SQL(", ").join(table.key_identifiers)
            conn.execute(
                sql.SQL("CREATE TEMP TABLE held_key AS SELECT {} FROM {} WITH NO DATA").format(names, table.identifier)
            )
            copy_tuples(
                conn, copy_into(sql.Identifier("pg_temp", "held_key"), table.key_names),
                struct.pack("!h", len(table.key_names)) + poison.key,
            )  # fmt: skip
            row: Any = conn.execute(
                sql.SQL("SELECT {}::text FROM pg_temp.held_key k").format(key_object(table, sql.SQL("k.")))
            ).fetchone()
    except ROW_REFUSALS:
        return None
    # numbers keep all their digits as text
    shown: dict[str, Any] = json.loads(row[0], parse_float=str)
    for column in table.columns:
        if column["name"] in poison.left:
            shown[column["mirror_name"]] = {"raw": poison.left[column["name"]]}
    return shown


def end_superseded(conn: Connection, source: str, table: MirrorTable, changed: Mapping[bytes, int]) -> None:
    """Rows with these identities were changed or deleted by what has this _seq; what was held of them before is no more."""
    if changed:
        facts = {"identities": list(changed), "seqs": list(changed.values())}
        conn.execute(QUERIES["end_superseded"], facts | {"source": source, "table": table.name})


def end_one(conn: Connection, source: str, table: MirrorTable, identity: bytes) -> bool:
    """One copy of a row was deleted; whether one was held."""
    facts = {"source": source, "table": table.name, "identity": identity}
    return identity in table.held and conn.execute(QUERIES["end_one"], facts).rowcount > 0


def end_all(conn: Connection, source: str, table: MirrorTable) -> None:
    """The table was emptied."""
    if table.held:
        conn.execute(QUERIES["end_all"], {"source": source, "table": table.name})


def read_identities(conn: Connection, source: str) -> dict[str, set[bytes]]:
    """The identities of the rows that are held, by table."""
    found: dict[str, set[bytes]] = {}
    with wrap_errors():
        for name, identity in conn.execute(QUERIES["read_identities"], {"source": source}):
            found.setdefault(name, set()).add(bytes(identity))
    return found


# ---------------------------------------------------------------------------------------------------- events, and the list
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
            names = ("id", "source", "table", "position", "operation", "reason", "state", "bytes", "set_aside_at", "key")
            yield dict(zip(names, row, strict=True))
