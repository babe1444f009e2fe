"""Snapshots: the first copy of a table, and every later one that somebody asked for.

Reads the whole table through the binary protocol, which carries floating point numbers exactly, turns the rows into COPY
tuples with the stream's kernels, and commits them with the table's state in one transaction. Takes no locks: changes that
happen meanwhile reach the mirror through the stream, which replaces rows until it has passed the position after the copy.
Only where replaying a change would do harm the table is read as of one position; see read_view.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import structlog
from psycopg import sql

from replicator.apply import REFUSALS
from replicator.copy_bars import Bar, CopyBars
from replicator.copy_binary import COPY_HEADER, COPY_TRAILER, copy_statement, copy_tuples
from replicator.copy_plan import estimate_rows
from replicator.crash import reach
from replicator.errors import LockRefused, SchemaChanged, SourceUnavailable, TableProblem
from replicator.fit import fit_mirror, keep_key, leave_rows
from replicator.history import put_all_back, save_all
from replicator.locks import MirrorLocked, transaction_with_short_waits, wait_as_usual
from replicator.mirror import LIVE, QUERIES, MirrorTable, key_object
from replicator.mirror_ddl import mirror_key
from replicator.multiset import keep_rows, record_vanished_rows
from replicator.position import Position
from replicator.quarantine import ROW_REFUSALS, Poison, of_tuple, read_identities, set_aside
from replicator.read_view import ReadView
from replicator.refused import explain, find_refused
from replicator.result import ResultReader
from replicator.rows import Rows
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
            last_seq, after, rows = _write(conn, source, registry, table, reader, report, view, _copy_rows, gone, is_fit=is_fit)
        except ROW_REFUSALS as error:
            log.info("copying piece by piece", table=table.name, reason=explain(error))
            if view is None:
                reader.close()
            else:
                # what is left of the result is in the way of the next one
                reader.skip_rest()
            reader = ResultReader(source, found, seq, view)
            last_seq, after, rows = _write(
                conn, source, registry, table, reader, report, view, _copy_welcome_rows, gone, is_fit=is_fit
            )
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


_Report = Callable[[int], None]
_CopyRows = Callable[[Connection, MirrorTable, ResultReader, _Report], tuple[int, list[Poison]]]


def _write(
    conn: Connection, source: Source, registry: Registry, table: MirrorTable, reader: ResultReader, report: _Report,
    view: ReadView | None, copy_rows: _CopyRows, gone: list[str], *, is_fit: bool,
) -> tuple[int, Position, int]:  # fmt: skip
    """Put a result in the place of a mirror's rows and commit; the last _seq given out, when the copy is whole, its rows."""
    lock = bool(table.key) and not is_fit
    with wrap_warehouse_errors(table=table.name), transaction_with_short_waits(conn, table, lock=lock):
        kept_keys = (is_fit or not table.key) and _keep_keys(conn, table)
        empty = set() if is_fit or table.key else fit_mirror(conn, registry, table, gone)
        known = [column["mirror_name"] for column in table.columns if column["mirror_name"] not in empty]
        wait_as_usual(conn)
        has_history = (is_fit or not table.key) and save_all(conn, table, known)
        if table.key and not is_fit:
            leave_rows(conn, registry, table)
        # DELETE, not TRUNCATE: others read the old rows until the copy is committed.
        conn.execute(sql.SQL("DELETE FROM {}").format(table.identifier))
        if table.key and not is_fit:
            fit_mirror(conn, registry, table, gone)
        rows, refused = copy_rows(conn, table, reader, report)
        refused += reader.take_set_aside()
        if has_history:
            put_all_back(conn, table, known)
        last_seq = reader.seq + (_record_vanished(conn, registry, table, reader.seq) if kept_keys else 0)
        after = source.position() if view is None else view.position
        facts = {
            "source": registry.name, "table": table.name, "rows": rows, "raw_rows": reader.raw_rows,
            "seq": last_seq + len(refused), "consistent_from": str(after), "exact": view is not None,
        }  # fmt: skip
        reach("end_copy")
        # it ends what was held before
        conn.execute(QUERIES["finish_snapshot"], facts)
        for poison in refused:
            last_seq += 1
            set_aside(conn, registry.name, table, f"copy of the whole table up to {after}", last_seq, poison)
        conn.execute(QUERIES["write_seq"], {"source": registry.name, "seq": last_seq})
        conn.execute(QUERIES["notify"], {"source": registry.name, "seq": last_seq})
    return last_seq, after, rows


def _copy_rows(conn: Connection, table: MirrorTable, reader: ResultReader, report: _Report) -> tuple[int, list[Poison]]:
    """Copy a result into a mirror in one go; how many rows it has."""
    rows = 0
    with conn.cursor() as cursor, cursor.copy(copy_statement(table)) as copy:
        copy.write(COPY_HEADER)
        reach("begin_copy")
        for count, block in reader.blocks():
            copy.write(block)
            reach("copy")
            rows += count
            report(rows)
        copy.write(COPY_TRAILER)
    return rows, []


def _copy_welcome_rows(conn: Connection, table: MirrorTable, reader: ResultReader, report: _Report) -> tuple[int, list[Poison]]:
    """Copy a result into a mirror block by block, without the rows that Postgres refuses; how many it took, and these."""
    rows, refused = 0, list[Poison]()
    for _, block in reader.blocks():
        found, poison = _copy_block(conn, table, bytes(block)) if len(block) else (0, [])
        rows += found
        refused += poison
        report(rows)
    return rows, refused


def _copy_block(conn: Connection, table: MirrorTable, block: bytes) -> tuple[int, list[Poison]]:
    tuples = Rows.parse(block, np.zeros(len(table.columns), np.uint8))
    try:
        with conn.transaction():
            copy_tuples(conn, copy_statement(table), block)
        return len(tuples), []
    except ROW_REFUSALS:
        refused = find_refused(conn, table, len(tuples), tuples.tuples)
        if not refused:
            raise
    welcome = np.setdiff1d(np.arange(len(tuples)), list(refused))
    copy_tuples(conn, copy_statement(table), tuples.tuples(welcome))
    return len(welcome), [of_tuple(table, tuples.tuples(np.array([i])), why) for i, why in refused.items()]


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


def _keep_keys(conn: Connection, table: MirrorTable) -> bool:
    """Keep the mirror's keys beside it until the copy is there; False where it has no rows, or other key columns."""
    if not table.key and mirror_key(conn, table):
        return False
    conn.execute("DROP TABLE IF EXISTS pg_temp.kept_keys")
    if not table.key:
        return keep_rows(conn, table)
    columns = sql.SQL(", ").join(table.key_identifiers)
    statement = sql.SQL("CREATE TEMP TABLE kept_keys ON COMMIT DROP AS SELECT {} FROM {}").format(columns, table.identifier)
    return conn.execute(statement).rowcount > 0


def _record_vanished(conn: Connection, registry: Registry, table: MirrorTable, seq: int) -> int:
    """Record the keys that were there before the copy and are not any more as deleted; how many."""
    if not table.key:
        return record_vanished_rows(conn, registry.name, table, seq)
    same = sql.SQL(" AND ").join([sql.SQL("m.{0} = k.{0}").format(name) for name in table.key_identifiers])
    statement = sql.SQL(
        "INSERT INTO warehouse.deleted_rows (source, table_name, key, seq)"
        " SELECT {source}, {table}, {key}, {seq} + row_number() OVER () FROM pg_temp.kept_keys k"
        " WHERE NOT EXISTS (SELECT FROM {mirror} m WHERE {same})"
    ).format(
        key=key_object(table, sql.SQL("k.")), mirror=table.identifier, same=same, source=sql.Literal(registry.name),
        table=sql.Literal(table.name), seq=sql.Literal(seq),
    )  # fmt: skip
    return conn.execute(statement).rowcount
