"""Snapshots: the first copy of a table, and every later one that somebody asked for.

Reads the whole table through the binary protocol, which carries floating point numbers exactly, and has replacement.py put
the rows in the place of the mirror's. Takes no locks: changes that happen meanwhile reach the mirror through the stream, which
replaces rows until it has passed the position after the copy. Only where replaying a change would do harm the table is read
as of one position; see read_view.py. Owns which tables are copied together, and the state that each ends in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from replicator.apply import REFUSALS
from replicator.copy_bars import Bar, CopyBars
from replicator.copy_plan import estimate_rows
from replicator.errors import LockRefused, SchemaChanged, SourceUnavailable, TableProblem
from replicator.fit import fit_mirror, keep_key
from replicator.locks import MirrorLocked, transaction_with_short_waits
from replicator.mirror import LIVE, QUERIES, MirrorTable
from replicator.quarantine import ROW_REFUSALS, read_identities
from replicator.read_view import ReadView
from replicator.refused import explain
from replicator.replacement import Replacement
from replicator.result import ResultReader
from replicator.schema import Registry
from replicator.source import MIRRORED, Source, SourceTable
from warehouse.db import Connection
from warehouse.db import wrap_errors as wrap_warehouse_errors
from warehouse.service import Stop

log = structlog.get_logger()

_REPORT_S = 5


class CopyRefused(TableProblem):
    """Postgres does not take the rows or columns of the source."""


class Interrupted(Exception):
    """Somebody asked to stop in the middle of a copy; nothing of it is committed."""


def copy_table(
    conn: Connection, source: Source, registry: Registry, table: MirrorTable, seq: int, stop: Stop, view: ReadView | None = None
) -> int:
    """Copy a table afresh and commit it; the last _seq given out.

    Args:
        conn: the connection that holds the source's lock.
        table: its state becomes Snapshotting, and Synced once the stream has passed the end of the copy.
        seq: the last _seq given out before.
        view: where to read the table as of one position. A table without a key is always read so.

    Raises:
        Interrupted: stop was requested; the mirror is as it was before.
    """
    started = time.monotonic()
    before = source.position()
    found = describe_again(conn, source, registry, table)
    if found is None:
        return seq
    was = (table.columns, table.key, table.kept)
    gone = table.describe_as(found)
    table.consistent_from = None
    registry.set_state(table, "Snapshotting")
    bars, reported = CopyBars(), started
    reader = own_view = None
    try:
        with wrap_warehouse_errors(table=table.name), transaction_with_short_waits(conn, table):
            registry.write(conn, before)
            # By itself, so that nobody waits for this lock while the rows are read.
            is_fit = bool(table.key) and keep_key(conn, table)
            if is_fit:
                fit_mirror(conn, registry, table, gone)
        registry.written()
        if not found.key and view is None:
            view = own_view = ReadView(source, [table.name])
        if view is not None and source.describe(table.name) != found:
            raise SourceUnavailable(f"{table.name} was altered while its copy began")
        estimate = estimate_rows(source, table.name, None if view is None else view.connection)
        reader = ResultReader(source, found, seq, view)
        replacement = Replacement(conn, source, registry, table, view, gone, is_fit=is_fit)

        def report(rows: int) -> None:
            nonlocal reported
            if time.monotonic() - reported > _REPORT_S:
                reported = time.monotonic()
                bar = Bar(table.name, rows, max(rows, estimate), rows / (reported - started))
                bars.show([bar])
                rate = round(bar.rows_per_s)
                log.info("copying", table=bar.name, rows=rows, of=bar.estimate, rows_per_s=rate, left_s=bar.left_s)
            if stop.requested:
                raise Interrupted

        try:
            last_seq, after, rows = replacement.write(reader, report)
        except ROW_REFUSALS as error:
            log.info("copying piece by piece", table=table.name, reason=explain(error))
            if view is None:
                reader.close()
            else:
                # what is left of the result is in the way of the next one
                reader.skip_rest()
            reader = ResultReader(source, found, seq, view)
            last_seq, after, rows = replacement.write(reader, report, in_pieces=True)
    except MirrorLocked as locked:
        table.columns, table.key, table.kept = was
        registry.postpone(table, locked)
        return seq
    except REFUSALS as error:
        drop_request(conn, registry, table)
        hint = "Mend the cause (a view of your own may hold a column's type), then resync the table."
        registry.reject(
            table.number, CopyRefused(f"Postgres refused the copy: {str(error).strip().splitlines()[0]}", hint=hint)
        )
        return seq
    except TableProblem as error:
        drop_request(conn, registry, table)
        registry.reject(table.number, error)
        return seq
    finally:
        bars.close()
        if own_view is not None:
            own_view.close()
        elif reader is not None and view is None:
            reader.close()
    table.consistent_from, table.exact, table.resync = after, view is not None, False
    table.copied_after = before
    table.held = read_identities(conn, registry.name).get(table.name, set())
    log.info("table copied", table=table.name, rows=rows, duration_s=round(time.monotonic() - started, 3))
    return last_seq


def describe_again(conn: Connection, source: Source, registry: Registry, table: MirrorTable) -> SourceTable | None:
    """The table as the source has it now; None where it cannot be copied, which its state then says."""
    found = source.describe(table.name)
    if found is None:
        drop_request(conn, registry, table)
        registry.set_state(table, "DroppedSource", "the source has no such table")
        return None
    problem = registry.find_problem(found)
    if problem is not None:
        drop_request(conn, registry, table)
        table.describe_as(found)
        registry.reject(table.number, problem)
        return None
    return found


def copy_tables(
    conn: Connection, source: Source, registry: Registry, tables: Sequence[MirrorTable], seq: int, stop: Stop
) -> int:
    """Copy tables that cascades tie together as of one position, or a single table; the last _seq given out.

    Args and raises: as copy_table.
    """
    if len(tables) == 1 and not tables[0].foreign_keys:
        return copy_table(conn, source, registry, tables[0], seq, stop)
    for table in tables:
        if not table.resync:
            registry.require_resync(table, SchemaChanged("copied with the tables that foreign-key cascades tie it to"))
    # A crash between two of the copies must not leave a table behind the others.
    with wrap_warehouse_errors(), conn.transaction():
        registry.write(conn, source.position())
    registry.written()
    left = []
    for table in tables:
        lost = registry.lost_parent(table)
        if lost is None:
            left.append(table)
        else:
            drop_request(conn, registry, table)
            registry.reject(table.number, lost)
    seq = _copy_together(conn, source, registry, left, seq, stop)
    registry.reject_orphans()
    return seq


def _copy_together(conn: Connection, source: Source, registry: Registry, left: list[MirrorTable], seq: int, stop: Stop) -> int:
    """Copy tables as of one position; those that cannot be copied leave the others to be copied again."""
    while left:
        there = [table for table in left if _is_lockable(source, table)]
        try:
            view = ReadView(source, [table.name for table in there])
        except LockRefused as problem:
            for table in left:
                if table.foreign_keys:
                    drop_request(conn, registry, table)
                    registry.reject(table.number, problem)
                else:
                    seq = copy_table(conn, source, registry, table, seq, stop)
            return seq
        try:
            failed = None
            for table in left:
                seq = copy_table(conn, source, registry, table, seq, stop, view if table in there else None)
                if table.state not in LIVE:
                    failed = table
                    break
        finally:
            view.close()
        if failed is None:
            return seq
        # Its result may not be read to its end, and the others need one position.
        left.remove(failed)
    return seq


def _is_lockable(source: Source, table: MirrorTable) -> bool:
    found = source.describe(table.name)
    return found is not None and found.table_type in MIRRORED


def drop_request(conn: Connection, registry: Registry, table: MirrorTable) -> None:
    """Take a request back that cannot be met, so that it is not tried again and again."""
    table.resync = False
    with wrap_warehouse_errors(table=table.name):
        conn.execute(QUERIES["drop_request"], {"source": registry.name, "table": table.name})
