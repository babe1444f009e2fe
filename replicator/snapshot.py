"""Snapshots: the first copy of a table, and every later one that somebody asked for.

Reads the whole table through the binary protocol, which carries floating point numbers exactly, turns the rows into COPY
tuples with the stream's kernels, and commits them with the table's state in one transaction. Takes no locks: changes that
happen meanwhile reach the mirror through the stream, which replaces rows until it has passed the position after the copy.
Only where replaying a change would do harm the table is read as of one position; see read_view.py.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from psycopg import sql

from replicator import decode
from replicator.apply import REFUSALS
from replicator.changes import ChangeBuffer
from replicator.copy_binary import COPY_HEADER, COPY_TRAILER, copy_statement
from replicator.errors import LockRefused, SchemaChanged, SourceUnavailable, TableProblem
from replicator.mirror import LIVE, QUERIES, MirrorTable, describe_columns, key_object
from replicator.mirror_ddl import create_mirror, fit_mirror, has_same_key
from replicator.multiset import keep_rows, pack, record_vanished_rows
from replicator.packets import TICK_S, PacketBuffer
from replicator.plan import Plans
from replicator.read_view import ReadView
from replicator.schema import Registry
from replicator.source import Source, SourceTable, error_for, wrap_errors
from replicator.typemap import Column, Kind
from replicator.values import finish_rows
from warehouse.db import Connection
from warehouse.db import wrap_errors as wrap_warehouse_errors
from warehouse.service import Stop

log = structlog.get_logger()

# MySQL internals, "Command Phase".
_PREPARE, _EXECUTE, _EXECUTE_BYTES = 0x16, 0x17, 10
_SILENCE_S = 600
_REPORT_S = 5


class CopyRefused(TableProblem):
    """Postgres does not take the rows or columns of the source."""


class Interrupted(Exception):
    """Somebody asked to stop in the middle of a copy; nothing of it is committed."""


class ResultReader:
    """The rows of one table as COPY tuples, in blocks.

    Args:
        source: where to connect; a connection of its own is opened.
        table: what to select.
        seq: the last _seq given out.
        view: what to read instead, on its own connection.
    """

    def __init__(self, source: Source, table: SourceTable, seq: int, view: ReadView | None = None) -> None:
        self._connection = source.open() if view is None else view.connection
        self._plans = Plans(source.charsets())
        self._plan = self._plans.add(tuple(map(_as_selected, table.columns)), table.key, wanted=True, table=0)
        self._changes = ChangeBuffer(seq)
        self._table = table
        self.raw_rows = 0

    def close(self) -> None:
        """Close the connection at once, in the middle of a result if need be."""
        self._connection._force_close()

    @property
    def seq(self) -> int:
        """The last _seq given out."""
        return int(self._changes.state[decode.SEQ])

    def blocks(self) -> Iterator[tuple[int, memoryview]]:
        """How many rows, and their COPY tuples.

        Raises:
            SourceUnavailable: the connection broke.
            TableProblem: a row cannot be represented.
        """
        packets = self._execute()
        state, plans, changes = self._changes.state, self._plans, self._changes
        plan = plans.plans[self._plan]
        while True:
            state[decode.AT] = packets.at
            code = decode.consume_result(
                packets.data, packets.end, state, self._plan, plan, plans.columns, plans.blob, plans.labels, changes.out,
                changes.changes, changes.digits,
            )  # fmt: skip
            packets.at = int(state[decode.AT])
            if code == decode.FULL and not changes.rows:
                state[decode.EVENT_BYTES] = state[decode.WANTED_BYTES]
                changes.grow()
            elif code in (decode.FULL, decode.SERVER_EOF) and changes.rows:
                yield changes.rows, self._take()
            elif code == decode.SERVER_EOF:
                return
            elif code == decode.NEED_DATA:
                if not packets.read(TICK_S, int(state[decode.WANTED_BYTES])):
                    # lets the caller look whether somebody asked to stop
                    yield 0, memoryview(b"")
            elif code == decode.SPLIT:
                state[decode.JOINED] = packets.join_packets()
            else:
                raise _error_of(packets)

    def _take(self) -> memoryview:
        """The tuples at hand, those that the kernel left filled in; the arrays are free again."""
        state, changes = self._changes.state, self._changes
        rows = changes.changes[: changes.rows]
        out, raw = finish_rows(self._plans, rows, changes.out, is_result=True, reject=_refuse)
        self.raw_rows += int(raw.sum())
        if self._table.key:
            target = np.empty(int(rows["image_bytes"].sum()), np.uint8)
            decode.gather(np.arange(len(rows)), rows, out, target)
            tuples = target.data
        else:
            tuples = pack(np.arange(len(rows)), rows, out, len(self._table.columns))
        state[decode.CHANGES] = state[decode.OUT] = 0
        return tuples

    def _execute(self) -> PacketBuffer:
        """Run the SELECT as a prepared statement, and read up to its first row."""
        connection = self._connection
        with wrap_errors(f"cannot read {self._table.name}"):
            connection.query("SET SESSION character_set_results = NULL")
            connection.query("SET SESSION net_write_timeout = 3600")
            connection._execute_command(_PREPARE, _select(self._table))
            reply: Any = connection._read_packet()
            statement, columns = struct.unpack_from("<IH", reply.get_all_data(), 1)
            for _ in range(columns + 1):
                connection._read_packet()
            # No cursor, one iteration, no parameters. From here on PyMySQL reads nothing any more.
            connection._write_bytes(struct.pack("<IBIBI", _EXECUTE_BYTES, _EXECUTE, statement, 0, 1))
        packets = PacketBuffer(connection._sock, _SILENCE_S)
        head = packets.take_packet()
        if head[0] == 0xFF:
            raise _server_error(head)
        for _ in range(columns + 1):
            packets.take_packet()
        return packets


def _refuse(row: int, problem: TableProblem) -> None:
    """A copy is whole or not there at all."""
    raise problem


def _as_selected(column: Column) -> Column:
    """The column as the SELECT yields it: labels as text."""
    return replace(column, kind=Kind.TEXT, charset="utf8mb4") if column.kind in (Kind.ENUM, Kind.SET) else column


def _select(table: SourceTable) -> str:
    parts = []
    for column in table.columns:
        name = "`" + column.name.replace("`", "``") + "`"
        # The labels of information_schema have no characters beyond the basic plane; the server itself knows them all.
        if column.kind in (Kind.ENUM, Kind.SET):
            name = f"CONVERT({name} USING utf8mb4)"
        elif column.kind in (Kind.UUID, Kind.INET):
            name = f"CAST({name} AS BINARY({column.width}))"
        parts.append(name)
    database, _, name = table.name.partition(".")
    quoted = ".".join("`" + part.replace("`", "``") + "`" for part in (database, name))
    return f"SELECT {', '.join(parts)} FROM {quoted}"  # noqa: S608 - identifiers only, quoted


def _error_of(packets: PacketBuffer) -> Exception:
    return _server_error(packets.take_packet())


def _server_error(packet: bytes) -> Exception:
    if packet[:1] != b"\xff":
        return SourceUnavailable("a result row is not as the protocol says")
    text = packet[9:] if packet[3:4] == b"#" else packet[3:]
    return error_for(int.from_bytes(packet[1:3], "little"), text.decode("utf-8", "replace"), "copying a table")


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
    found = source.describe(table.name)
    if found is None:
        _drop_request(conn, registry, table)
        registry.set_state(table, "DroppedSource", "the source has no such table")
        return seq
    problem = registry.find_problem(found)
    if problem is not None:
        _drop_request(conn, registry, table)
        table.columns, table.key = describe_columns(found.columns), [found.columns[i].name for i in found.key]
        registry.reject(table.number, problem)
        return seq
    table.columns, table.key = describe_columns(found.columns), [found.columns[i].name for i in found.key]
    table.consistent_from = None
    registry.set_state(table, "Snapshotting")
    with wrap_warehouse_errors(table=table.name), conn.transaction():
        registry.write(conn, before)
    registry.written()
    rows = 0
    reported = started
    reader = own_view = None
    try:
        if not found.key and view is None:
            view = own_view = ReadView(source, [table.name])
        if view is not None and source.describe(table.name) != found:
            raise SourceUnavailable(f"{table.name} was altered while its copy began")
        reader = ResultReader(source, found, seq, view)
        with wrap_warehouse_errors(table=table.name), conn.transaction(), conn.cursor() as cursor:
            create_mirror(conn, table)
            kept_keys = _keep_keys(conn, table)
            # DELETE, not TRUNCATE: others read the old rows until the copy is committed.
            cursor.execute(sql.SQL("DELETE FROM {}").format(table.identifier))
            fit_mirror(conn, table)
            with cursor.copy(copy_statement(table)) as copy:
                copy.write(COPY_HEADER)
                for count, block in reader.blocks():
                    copy.write(block)
                    rows += count
                    if stop.requested:
                        raise Interrupted
                    if time.monotonic() - reported > _REPORT_S:
                        reported = time.monotonic()
                        log.info("copying", table=table.name, rows=rows, rows_per_s=round(rows / (reported - started)))
                copy.write(COPY_TRAILER)
            last_seq = reader.seq + (_record_vanished(conn, registry, table, reader.seq) if kept_keys else 0)
            after = source.position() if view is None else view.position
            facts = {
                "source": registry.name, "table": table.name, "rows": rows, "raw_rows": reader.raw_rows, "seq": last_seq,
                "consistent_from": str(after), "exact": view is not None,
            }  # fmt: skip
            cursor.execute(QUERIES["finish_snapshot"], facts)
            cursor.execute(QUERIES["write_seq"], {"source": registry.name, "seq": last_seq})
            cursor.execute(QUERIES["notify"], {"source": registry.name, "seq": last_seq})
    except REFUSALS as error:
        _drop_request(conn, registry, table)
        hint = "Mend the cause (a view of your own may hold a column's type), then resync the table."
        registry.reject(
            table.number, CopyRefused(f"Postgres refused the copy: {str(error).strip().splitlines()[0]}", hint=hint)
        )
        return seq
    except TableProblem as error:
        _drop_request(conn, registry, table)
        registry.reject(table.number, error)
        return seq
    finally:
        if own_view is not None:
            own_view.close()
        elif reader is not None and view is None:
            reader.close()
    table.consistent_from, table.exact, table.resync = after, view is not None, False
    log.info("table copied", table=table.name, rows=rows, duration_s=round(time.monotonic() - started, 3))
    return last_seq


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
            _drop_request(conn, registry, table)
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
                    _drop_request(conn, registry, table)
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
    return found is not None and found.table_type == "BASE TABLE"


def _drop_request(conn: Connection, registry: Registry, table: MirrorTable) -> None:
    """Take a request back that cannot be met, so that it is not tried again and again."""
    table.resync = False
    with wrap_warehouse_errors(table=table.name):
        conn.execute(QUERIES["drop_request"], {"source": registry.name, "table": table.name})


def _keep_keys(conn: Connection, table: MirrorTable) -> bool:
    """Keep the mirror's keys beside it until the copy is there; False where it has no rows, or other key columns."""
    if not has_same_key(conn, table):
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
