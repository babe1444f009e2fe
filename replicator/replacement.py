"""One result of the source takes the place of all rows of a mirror.

Owns the transaction in which that happens: readers have the old rows until it commits, and with it commit the keys that are
gone, the rows that Postgres refuses, and where the copy stands. When a table is copied, and what becomes of it where that
fails, is snapshot.py's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from psycopg import sql

from replicator.copy_binary import COPY_HEADER, COPY_TRAILER, copy_statement, copy_tuples
from replicator.crash import reach
from replicator.fit import fit_mirror, leave_rows
from replicator.history import put_all_back, save_all
from replicator.locks import transaction_with_short_waits, wait_as_usual
from replicator.mirror import QUERIES, MirrorTable, key_object
from replicator.mirror_ddl import mirror_key
from replicator.multiset import keep_rows, record_vanished_rows
from replicator.position import Position
from replicator.quarantine import ROW_REFUSALS, Poison, of_tuple, set_aside
from replicator.read_view import ReadView
from replicator.refused import find_refused
from replicator.result import ResultReader
from replicator.rows import Rows
from replicator.schema import Registry
from replicator.source import Source
from warehouse.db import Connection, wrap_errors

Report = Callable[[int], None]
"""Called with the rows so far; what it raises ends the copy."""


class Replacement:
    """One table, whose rows are to be replaced.

    Args:
        conn: the connection that holds the source's lock.
        view: what the rows are read in; None where the stream goes on over them.
        gone: the mirror's names of columns that the source has no longer.
        is_fit: the mirror has the table's columns already, and the key that it had.
    """

    def __init__(
        self, conn: Connection, source: Source, registry: Registry, table: MirrorTable, view: ReadView | None, gone: list[str],
        *, is_fit: bool,
    ) -> None:  # fmt: skip
        self.conn, self.source, self.registry, self.table = conn, source, registry, table
        self._view, self._gone, self._is_fit = view, gone, is_fit

    def write(self, reader: ResultReader, report: Report, *, in_pieces: bool = False) -> tuple[int, Position, int]:
        """Put a result in the place of the mirror's rows and commit.

        Args:
            in_pieces: block by block, without the rows that Postgres refuses.

        Returns:
            The last _seq given out, the position at which the copy is whole, and how many rows it has.

        Raises:
            MirrorLocked: the mirror must be altered, and somebody reads it.
            psycopg.DataError, psycopg.errors.ProgramLimitExceeded: Postgres refuses a row, and in_pieces is False.
        """
        conn, registry, table, view = self.conn, self.registry, self.table, self._view
        is_kept = self._is_fit or not table.key
        with wrap_errors(table=table.name), transaction_with_short_waits(conn, table, lock=not is_kept):
            kept_keys = is_kept and _keep_keys(conn, table)
            empty = set() if table.key else fit_mirror(conn, registry, table, self._gone)
            known = [column["mirror_name"] for column in table.columns if column["mirror_name"] not in empty]
            wait_as_usual(conn)
            has_history = is_kept and save_all(conn, table, known)
            if not is_kept:
                leave_rows(conn, registry, table)
            # DELETE, not TRUNCATE: others read the old rows until the copy is committed.
            conn.execute(sql.SQL("DELETE FROM {}").format(table.identifier))
            if not is_kept:
                fit_mirror(conn, registry, table, self._gone)
            rows, refused = (_copy_welcome_rows if in_pieces else _copy_rows)(conn, table, reader, report)
            refused += reader.take_set_aside()
            if has_history:
                put_all_back(conn, table, known)
            last_seq = reader.seq + (_record_vanished(conn, registry.name, table, reader.seq) if kept_keys else 0)
            after = self.source.position() if view is None else view.position
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


def _copy_rows(conn: Connection, table: MirrorTable, reader: ResultReader, report: Report) -> tuple[int, list[Poison]]:
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


def _copy_welcome_rows(conn: Connection, table: MirrorTable, reader: ResultReader, report: Report) -> tuple[int, list[Poison]]:
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


def _record_vanished(conn: Connection, source: str, table: MirrorTable, seq: int) -> int:
    """Record the keys that were there before the copy and are not any more as deleted; how many."""
    if not table.key:
        return record_vanished_rows(conn, source, table, seq)
    same = sql.SQL(" AND ").join([sql.SQL("m.{0} = k.{0}").format(name) for name in table.key_identifiers])
    statement = sql.SQL(
        "INSERT INTO warehouse.deleted_rows (source, table_name, key, seq)"
        " SELECT {source}, {table}, {key}, {seq} + row_number() OVER () FROM pg_temp.kept_keys k"
        " WHERE NOT EXISTS (SELECT FROM {mirror} m WHERE {same})"
    ).format(
        key=key_object(table, sql.SQL("k.")), mirror=table.identifier, same=same, source=sql.Literal(source),
        table=sql.Literal(table.name), seq=sql.Literal(seq),
    )  # fmt: skip
    return conn.execute(statement).rowcount
