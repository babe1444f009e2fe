"""The rows of a source table as COPY tuples, read through the binary protocol with the stream's kernels.

The protocol carries floating point numbers exactly, so a row that is read here has the same bytes as one that came by the
stream. Owns a prepared SELECT and the walk over its result; knows nothing of what the rows are for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.changes import ChangeBuffer
from replicator.errors import RowProblem, SchemaChanged, SourceUnavailable, TableProblem
from replicator.liveness import Connection
from replicator.multiset import pack
from replicator.packets import TICK_S, PacketBuffer
from replicator.plan import Plans
from replicator.quarantine import MOST_REFUSED, Poison, take_result
from replicator.read_view import ReadView
from replicator.source import Source, SourceTable, error_for, wrap_errors
from replicator.typemap import Column, Kind
from replicator.values import finish_rows

# MySQL internals, "Command Phase" and "Prepared Statements".
_PREPARE, _EXECUTE = 0x16, 0x17
_SILENCE_S = 600


@dataclass(frozen=True)
class Parameter:
    """A value for a statement's placeholder.

    Attributes:
        type_code: of the protocol. unsigned: for integers.
        value: as a binary result row has it, the length in front where its type has one.
    """

    type_code: int
    value: bytes
    unsigned: bool = False


class PreparedSelect:
    """A prepared statement that selects a table's columns.

    Args:
        connection: a connection that does nothing else.
        text: the statement, with `?` for parameters.
    """

    def __init__(self, connection: Connection, text: str, what: str) -> None:
        self._connection, self._what = connection, what
        self._definitions: bytes | None = None
        with wrap_errors(f"cannot read {what}"):
            # Texts come as they are stored, and a slow reader is waited for. Rows of transactions that may still be rolled
            # back must not be seen, whatever the server's default is.
            connection.query("SET SESSION character_set_results = NULL, net_write_timeout = 3600")
            connection.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection._execute_command(_PREPARE, text)
            connection.wait_for_answer()
            reply: Any = connection._read_packet()
            self._statement, columns, parameters = struct.unpack_from("<IHH", reply.get_all_data(), 1)
            for count in (parameters, columns):
                for _ in range(count + 1 if count else 0):
                    connection._read_packet()

    def execute(self, parameters: Sequence[Parameter] = ()) -> PacketBuffer:
        """Run it; the packets from its first row on.

        Raises:
            SourceUnavailable: the connection broke.
            SchemaChanged: the columns are not those of the run before, because somebody altered the table.
        """
        # No cursor, one iteration.
        body = struct.pack("<BIBI", _EXECUTE, self._statement, 0, 1)
        if parameters:
            body += bytes((len(parameters) + 7) // 8) + b"\1"
            body += b"".join(struct.pack("<BB", each.type_code, 0x80 * each.unsigned) for each in parameters)
            body += b"".join(each.value for each in parameters)
        with wrap_errors(f"cannot read {self._what}"):
            # From here on PyMySQL reads nothing until the result's end.
            self._connection._write_bytes(len(body).to_bytes(3, "little") + b"\0" + body)
        packets = PacketBuffer(self._connection._sock, _SILENCE_S, self._connection.watch())
        head = packets.take_packet()
        if head[0] == 0xFF:
            raise _server_error(head, self._what)
        # one byte, or two behind 0xFC: no table has more columns
        columns = head[0] if head[0] < 0xFB else int.from_bytes(head[1:3], "little")
        definitions = b"".join(packets.take_packet() for _ in range(columns))
        packets.take_packet()
        if self._definitions is not None and definitions != self._definitions:
            raise SchemaChanged("the source's table was altered while it was read")
        self._definitions = definitions
        return packets


class ResultReader:
    """The rows of one table as COPY tuples, in blocks.

    Args:
        source: where to connect; a connection of its own is opened.
        table: what to select.
        seq: the last _seq given out.
        view: what to read instead, on its own connection.
        where: a condition, as the server takes it; empty for all rows.
    """

    _last_row = b""
    _packets: PacketBuffer | None = None
    _where = ""

    def __init__(self, source: Source, table: SourceTable, seq: int, view: ReadView | None = None, where: str = "") -> None:
        self._connection = source.open() if view is None else view.connection
        self._where = where
        self._set_aside: list[Poison] = []
        self._plans = Plans(source.charsets())
        self._plan = self._plans.add(tuple(map(as_selected, table.columns)), table.key, wanted=True, table=0)
        self._changes = ChangeBuffer(seq)
        self._table = table
        self.raw_rows = 0

    def take_set_aside(self) -> list[Poison]:
        """The rows that were read since the last time and cannot be represented; they are in no block."""
        found, self._set_aside = self._set_aside, []
        return found

    def close(self) -> None:
        """Close the connection at once, in the middle of a result if need be."""
        self._connection._force_close()

    def skip_rest(self) -> None:
        """Read the result that is under way to its end, so that its connection can be used again."""
        if self._packets is not None:
            self._changes.state[decode.CHANGES] = self._changes.state[decode.OUT] = 0
            for _ in self._walk(self._packets):
                pass
        self._packets = None
        self._set_aside.clear()

    @property
    def seq(self) -> int:
        """The last _seq given out."""
        return int(self._changes.state[decode.SEQ])

    def blocks(self) -> Iterator[tuple[int, memoryview]]:
        """How many rows, and their COPY tuples; none where nothing came for a while, so that the caller may look around.

        Raises:
            SourceUnavailable: the connection broke.
            TableProblem: a row cannot be represented.
        """
        self._packets = self._execute()
        for block in self._walk(self._packets):
            if block is None:
                yield 0, memoryview(b"")
                continue
            rows, out, raw = block
            self.raw_rows += int(raw.sum())
            if self._table.key:
                target = np.empty(int(rows["image_bytes"].sum()), np.uint8)
                decode.gather(np.arange(len(rows)), rows, out, target)
                yield len(rows), target.data
            else:
                yield len(rows), pack(np.arange(len(rows)), rows, out, len(self._table.columns))
        self._packets = None

    def _execute(self) -> PacketBuffer:
        return PreparedSelect(self._connection, self._whole_text(), self._table.name).execute()

    def _whole_text(self) -> str:
        return f"SELECT {select_list(self._table)} FROM {quote_table(self._table.name)}{self._where}"  # noqa: S608 - quoted

    def _walk(
        self, packets: PacketBuffer, most_rows: int = 1 << 30
    ) -> Iterator[tuple[NDArray[np.void], NDArray[np.uint8], NDArray[np.bool_]] | None]:
        """The result's rows as changes with their bytes, and which have a _raw; None where nothing comes for a while.

        The arrays are used again for the next block. Rows that cannot be represented are in take_set_aside().
        """
        state, plans, changes = self._changes.state, self._plans, self._changes
        plan = plans.plans[self._plan]
        seen = 0
        while True:
            state[decode.AT] = packets.at
            code = decode.consume_result(
                packets.data, packets.end, state, self._plan, plan, plans.columns, plans.blob, plans.labels, changes.out,
                changes.changes[:most_rows], changes.digits,
            )  # fmt: skip
            packets.at = int(state[decode.AT])
            if changes.rows > seen:
                seen = changes.rows
                self._last_row = packets.data[int(state[decode.ROW_AT]) : packets.at].tobytes()
            if code == decode.FULL and not changes.rows:
                state[decode.EVENT_BYTES] = state[decode.WANTED_BYTES]
                changes.grow()
            elif code in (decode.FULL, decode.SERVER_EOF) and changes.rows:
                rows = changes.changes[: changes.rows]
                yield self._finish(rows, changes.out)
                seen = state[decode.CHANGES] = state[decode.OUT] = 0
            elif code == decode.SERVER_EOF:
                return
            elif code == decode.NEED_DATA:
                if not packets.read(TICK_S, int(state[decode.WANTED_BYTES])):
                    yield None
            elif code == decode.SPLIT:
                state[decode.JOINED] = packets.join_packets()
            else:
                raise _server_error(packets.take_packet(), self._table.name)

    def _finish(
        self, rows: NDArray[np.void], out: NDArray[np.uint8]
    ) -> tuple[NDArray[np.void], NDArray[np.uint8], NDArray[np.bool_]]:
        problems: dict[int, TableProblem] = {}
        finished, raw = finish_rows(self._plans, rows, out, is_result=True, reject=problems.__setitem__)
        if not problems:
            return rows, finished, raw
        names = [self._table.columns[i].name for i in self._table.key]
        for i, problem in problems.items():
            if not isinstance(problem, RowProblem):
                raise problem
            if len(problems) > MOST_REFUSED:
                raise type(problem)(
                    f"{len(problems)} of {len(rows)} rows that follow each other, as the first of them: {problem}"
                )
            self._set_aside.append(take_result(self._plans, rows, out, i, str(problem), names))
        kept = np.ones(len(rows), np.bool_)
        kept[list(problems)] = False
        return rows[kept], finished, raw[kept]


def limit_parameter(rows: int) -> Parameter:
    """A number of rows for LIMIT."""
    return Parameter(8, rows.to_bytes(8, "little"), unsigned=True)


def as_selected(column: Column) -> Column:
    """The column as the SELECT yields it: labels as text."""
    return replace(column, kind=Kind.TEXT, charset="utf8mb4") if column.kind in (Kind.ENUM, Kind.SET) else column


def select_list(table: SourceTable) -> str:
    """The table's columns as they are selected."""
    parts = []
    for column in table.columns:
        name = quote_name(column.name)
        # The labels of information_schema have no characters beyond the basic plane; the server itself knows them all.
        if column.kind in (Kind.ENUM, Kind.SET):
            name = f"CONVERT({name} USING utf8mb4)"
        elif column.kind in (Kind.UUID, Kind.INET):
            name = f"CAST({name} AS BINARY({column.width}))"
        parts.append(name)
    return ", ".join(parts)


def quote_name(name: str) -> str:
    """A name as MySQL takes it, whatever is in it."""
    return "`" + name.replace("`", "``") + "`"


def quote_table(name: str) -> str:
    """database.table, quoted."""
    return ".".join(quote_name(part) for part in name.split(".", 1))


def _server_error(packet: bytes, what: str) -> Exception:
    if packet[:1] != b"\xff":
        return SourceUnavailable("a result row is not as the protocol says")
    text = packet[9:] if packet[3:4] == b"#" else packet[3:]
    return error_for(int.from_bytes(packet[1:3], "little"), text.decode("utf-8", "replace"), f"reading {what}")
