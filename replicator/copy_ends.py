"""Begins and ends copies that run beside the stream; what is in between is in copies.py.

Owns what is committed at either end: the mirror fitted to the source's table, the plan, and the state the table is left in.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from psycopg import sql

from replicator.apply import REFUSALS
from replicator.copy_plan import Bound, TableCopy, plan_copy
from replicator.crash import reach
from replicator.fit import fit_mirror, keep_key, leave_rows
from replicator.key_order import KeyOrder, NotAKey
from replicator.locks import MirrorLocked, transaction_with_short_waits
from replicator.mirror import QUERIES, MirrorTable
from replicator.owed import make_owed
from replicator.position import Position
from replicator.quarantine import read_identities
from replicator.read_view import ReadView, are_versioned
from replicator.schema import Registry
from replicator.snapshot import CopyRefused, drop_request
from replicator.source import Source, SourceTable
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()


def begin_copy(
    conn: Connection, source: Source, registry: Registry, table: MirrorTable, found: SourceTable, before: Position, seq: int,
    position: Position, readers: int, view: ReadView | None,
) -> TableCopy | None:  # fmt: skip
    """Begin to copy a table and commit that; None where it cannot be, which its state or the reason in it says.

    Args:
        found: the table as the source describes it. before: the source's position before it was described.
        seq, position: what the stream has committed. readers: how many threads read ranges.
        view: what a table without a key is read as of.
    """
    order = KeyOrder.read(source, found)
    with wrap_errors():
        facts = {"source": registry.name, "table": table.name}
        low, high = conn.execute(QUERIES["read_range"], facts).fetchone() or (None, None)
    if not table.is_described_as(found) or table.state != "Synced":
        # only a part of what has become another table, or never was whole, would not be enough
        low = high = None
    table.copied_after = before
    was = (table.columns, table.key, table.kept)
    try:
        return _begin(conn, source, registry, table, found, order, seq, position, readers, low, high, view)
    except MirrorLocked as locked:
        table.columns, table.key, table.kept = was
        table.read_as_of = table.owed = None
        registry.postpone(table, locked)
    except REFUSALS as error:
        table.touched = table.read_as_of = table.owed = None
        drop_request(conn, registry, table)
        hint = "Mend the cause (a view of your own may hold a column's type), then resync the table."
        reason = f"Postgres refused the copy: {str(error).strip().splitlines()[0]}"
        registry.reject(table.number, CopyRefused(reason, hint=hint))
    return None


def _begin(
    conn: Connection, source: Source, registry: Registry, table: MirrorTable, found: SourceTable, order: KeyOrder | None,
    seq: int, position: Position, readers: int, low: Bound, high: Bound, view: ReadView | None,
) -> TableCopy:  # fmt: skip
    gone = table.describe_as(found)
    table.consistent_from, table.exact = None, False
    registry.set_state(table, "Snapshotting")
    with wrap_errors(table=table.name), transaction_with_short_waits(conn, table):
        registry.write(conn, position)
        if table.key and not keep_key(conn, table):
            # The rows cannot be found again by a key that they do not have.
            leave_rows(conn, registry, table)
            conn.execute(sql.SQL("TRUNCATE {}").format(table.identifier))
        fit_mirror(conn, registry, table, gone)
        row: Any = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table.identifier)).fetchone()
        is_filled = bool(row[0])
        try:
            copy = plan_copy(source, table, found, order, seq, readers, low, high, is_filled=is_filled)
        except NotAKey as problem:
            log.warning("the whole table is copied", table=table.name, reason=str(problem))
            copy = plan_copy(source, table, found, order, seq, readers, None, None, is_filled=is_filled)
        copy.view = view
        if view is not None:
            table.read_as_of = view.position
            make_owed(conn, table)
        conn.execute(QUERIES["begin_copy"], copy.describe(registry.name, None))
        reach("begin_copy")
    registry.written()
    table.resync, table.copy_after = False, None
    log.info("copy begins", table=table.name, rows=copy.rows_estimate, ranges=len(copy.ranges), seq=seq)
    return copy


def may_read_as_of(conn: Connection, source: Source, table: MirrorTable) -> bool:
    """Whether a table without a key can be copied beside the stream.

    Its mirror must be empty, since old rows cannot be told from new ones while both are read; and the source's table must keep
    versions, or it would be locked all the time.
    """
    row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", (table.identifier.as_string(conn),)).fetchone()
    if row and row[0]:
        row = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table.identifier)).fetchone()
        if row and row[0]:
            return False
    return not table.held and are_versioned(source, [table.name])


def may_sweep(source: Source, copy: TableCopy, position: Position | None) -> bool:
    """Whether rows that the copy did not find may go: what they hold in kept columns may be to come under another key.

    Args:
        position: up to which the stream is committed.
    """
    if not copy.table.kept or not copy.is_filled:
        return True
    if copy.read_at is None:
        copy.read_at = source.position()
    return position is not None and position.covers(copy.read_at)


def end_copy(conn: Connection, source: Source, name: str, copy: TableCopy, seq: int) -> None:
    """Commit that a copy is whole; its table is Synced once the stream is past this moment.

    Args:
        name: the source's. seq: the last one given out.
    """
    table = copy.table
    after = source.position() if copy.view is None else copy.view.position
    facts = {
        "source": name, "table": table.name, "drift": copy.drift, "seq": seq, "is_whole": copy.is_whole,
        "consistent_from": str(after), "base_seq": copy.base_seq, "exact": copy.view is not None,
    }  # fmt: skip
    with wrap_errors(table=table.name), conn.transaction():
        conn.execute(QUERIES["end_copy"], facts)
        conn.execute(QUERIES["forget_copy"], facts)
        reach("end_copy")
    table.consistent_from, table.exact = after, copy.view is not None
    table.held = read_identities(conn, name).get(table.name, set())
    log.info("table copied", table=table.name, rows=copy.rows_done, duration_s=round(time.monotonic() - copy.began_at, 3))
