"""warehouse.prepared_transactions: XA transactions that were prepared and not decided.

A transaction's events are written in the transaction that moves the checkpoint behind its XA PREPARE, and deleted in the one
that moves it behind the decision: a restart between the two loses nothing, and no reader sees a row before its commit.
"""

from __future__ import annotations

from typing import Any

from replicator.xa import Held, XaChange
from warehouse.db import Connection, read_queries, wrap_errors

QUERIES = read_queries("replicator")


def write_changes(conn: Connection, source: str, changes: tuple[XaChange, ...], position: str) -> None:
    """Keep what was prepared and forget what was decided, in their order, inside the caller's transaction."""
    for change in changes:
        facts: dict[str, Any] = {"source": source, "xid": change.xid}
        conn.execute(QUERIES["forget_prepared"], facts)
        if change.held is not None:
            for number, part in enumerate(change.held.parts()):
                conn.execute(QUERIES["write_prepared"], facts | {"part": number, "events": part, "position": position})


def read_prepared(conn: Connection, source: str) -> dict[str, Held]:
    """The transactions that were prepared before the checkpoint and not decided, by xid."""
    found: dict[str, Held] = {}
    with wrap_errors():
        rows = conn.execute(QUERIES["list_prepared"], {"source": source}).fetchall()
        for xid, part in rows:
            events: Any = conn.execute(QUERIES["read_prepared"], {"source": source, "xid": xid, "part": part}).fetchone()
            if str(xid) not in found:
                found[str(xid)] = Held()
            found[str(xid)].append(bytes(events[0]))
    return found
