"""The binlog stream: connects through the transport library, then reads the socket itself.

Yields whole source transactions as batches of decoded changes, the statements between them, and a tick when nothing comes.
Owns the dump connection and the decoding buffers. Never writes anywhere and never reconnects: an error ends the stream, and
its owner opens a new one at the last committed position, because only that position is known to be right.
"""

from __future__ import annotations

import select
import ssl
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pymysqlreplication import BinLogStreamReader

from replicator import decode, events
from replicator.charsets import Charsets
from replicator.errors import (
    MissingMetadata,
    SourceSilent,
    SourceUnavailable,
    StreamBroken,
    TableProblem,
    UnsupportedEvent,
)
from replicator.events import HARMLESS, UNSUPPORTED, Event
from replicator.plan import Plans
from replicator.position import Flavor, Position
from replicator.source import Source, error_for, wrap_errors
from replicator.statements import first_word, is_control, is_dml
from replicator.tablemap import TABLE_ID_BYTES, TableMap, parse_table_map, table_id_of
from warehouse.settings import ReplicatorSettings

SOCKET_BYTES = 1 << 20
PADDING_BYTES = 64
FIRST_BYTES = 1 << 20
FIRST_CHANGES = 4096
LARGEST_KEPT_BYTES = 64 << 20
TICK_S = 0.1
MISSED_HEARTBEATS = 3


@dataclass(frozen=True)
class Choice:
    """A wanted table: a number that its changes carry, and the positions of its key's columns."""

    table: int
    key: tuple[int, ...]


class Chooser(Protocol):
    """Decides about tables; the mirror's side of the stream."""

    def choose(self, table_map: TableMap) -> Choice | None:
        """What to do with the rows of a table as its table map describes it; None: pass over them."""

    def reject(self, table: int, problem: TableProblem) -> None:
        """The rows of a chosen table cannot be read; they are passed over from here on."""


@dataclass(frozen=True)
class Batch:
    """Whole transactions, decoded. The arrays are valid until the stream is asked for the next item.

    Attributes:
        changes: (n,) decode.CHANGE. transactions: (t,) decode.TRANSACTION.
        out, keys: uint8, what the changes' offsets point into.
        plans: what the changes' plan numbers mean.
        position: the end of the last transaction. seq: the last _seq given out.
    """

    changes: NDArray[np.void]
    transactions: NDArray[np.void]
    out: NDArray[np.uint8]
    keys: NDArray[np.uint8]
    plans: Plans
    position: Position
    seq: int

    @property
    def commit_us(self) -> int:
        """Commit time at the source of the last transaction, microseconds since 1970."""
        return int(self.transactions[-1]["commit_us"])


@dataclass(frozen=True)
class Statement:
    """A statement that was committed between batches, with the position behind it."""

    query: events.Query
    position: Position
    commit_us: int


@dataclass(frozen=True)
class Idle:
    """Nothing came for a moment; the position behind what was read so far."""

    position: Position


Item = Batch | Statement | Idle


class Stream:
    """A dump connection, read from one position on.

    Args:
        source: where to connect.
        settings: batch sizes and linger.
        position: where to begin. seq: the last _seq given out.
        chooser: decides which tables are wanted.
    """

    def __init__(self, source: Source, settings: ReplicatorSettings, position: Position, seq: int, chooser: Chooser) -> None:
        self.source, self.settings, self.chooser = source, settings, chooser
        self.position = position
        self.flavor: Flavor = source.flavor
        self.charsets: Charsets = source.charsets()
        self.plans = Plans(self.charsets)
        self.heard_at = time.monotonic()
        self._files = [position.file]
        self._data = _bytes(SOCKET_BYTES + PADDING_BYTES)
        self._end = 0
        self._state = np.zeros(decode.STATE_CELLS, np.int64)
        self._state[decode.SEQ] = seq
        self._state[decode.LOG_POS] = position.pos
        self._state[decode.CHECKSUM] = source.query("SELECT @@global.binlog_checksum")[0][0] != "NONE"
        self._out, self._keys = _bytes(FIRST_BYTES), _bytes(FIRST_BYTES)
        self._changes: NDArray[np.void] = np.zeros(FIRST_CHANGES, decode.CHANGE)
        self._transactions: NDArray[np.void] = np.zeros(1024, decode.TRANSACTION)
        self._digits = np.zeros(128, np.uint8)
        self._reader, self._socket = self._connect()

    def _connect(self) -> tuple[BinLogStreamReader, Any]:
        """Let the library log in, register and send the dump command; then only the socket is used."""
        arguments = self.source.connection_arguments()
        arguments["read_timeout"] = self._silence_s()
        start: dict[str, Any] = {"log_file": self.position.file, "log_pos": self.position.pos, "resume_stream": True}
        if self.position.gtids is not None and str(self.position.gtids):
            start = {"auto_position": str(self.position.gtids), "is_mariadb": self.flavor == "mariadb"}
        reader = BinLogStreamReader(
            connection_settings=arguments,
            server_id=self.source.settings.server_id,
            blocking=True,
            slave_heartbeat=self.source.settings.heartbeat_s,
            filter_non_implemented_events=False,
            report_slave="tailrace",
            enable_logging=False,
            **start,
        )
        with wrap_errors("cannot start the binlog dump"):
            reader._BinLogStreamReader__connect_to_stream()
        return reader, reader._stream_connection._sock

    def close(self) -> None:
        """Close the dump connection."""
        # PyMySQL's own close() would send a QUIT and wait for it behind megabytes of events.
        self._reader._stream_connection._force_close()

    def _silence_s(self) -> float:
        return MISSED_HEARTBEATS * self.source.settings.heartbeat_s

    # ------------------------------------------------------------------------------------------------ reading
    def items(self) -> Iterator[Item]:
        """Batches, statements and ticks, in the source's order, without end.

        Raises:
            SourceUnavailable, SourceSilent: the connection ended or nothing came for three heartbeats.
            PositionLost: the server no longer has the position.
            StreamBroken, UnsupportedEvent: the stream holds what cannot be applied.
        """
        linger_until = 0.0
        while True:
            code = self._consume()
            if code == decode.EVENT:
                yield from self._handle_event()
            elif code == decode.SPLIT:
                self._join_packets()
            elif code == decode.FULL and not self._state[decode.TRANSACTIONS]:
                self._grow()
            elif code == decode.FULL or (code == decode.NEED_DATA and self._is_due(linger_until)):
                yield from self._batch()
                linger_until = 0.0
            elif code != decode.NEED_DATA:
                self._raise_for(code)
            elif not self._read(TICK_S):
                yield Idle(self.position)
            elif linger_until == 0:
                linger_until = time.monotonic() + self.settings.linger_ms / 1000

    def _is_due(self, linger_until: float) -> bool:
        """True where whole transactions wait and nothing that belongs with them is to be had in time."""
        if not self._state[decode.TRANSACTIONS]:
            return False
        return self._is_full() or not self._can_read(max(0.0, linger_until - time.monotonic()))

    def _is_full(self) -> bool:
        return bool(
            self._state[decode.CHANGES] >= self.settings.batch_rows or self._state[decode.OUT] >= self.settings.batch_bytes
        )

    def _consume(self) -> int:
        plans = self.plans
        return int(
            decode.consume(
                self._data, self._end, self._state, plans.slots, plans.plans, plans.columns, plans.blob, plans.labels,
                self._out, self._keys, self._changes, self._transactions, self._digits,
            )
        )  # fmt: skip

    def _can_read(self, timeout_s: float) -> bool:
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def _read(self, timeout_s: float) -> bool:
        """Read what the socket has; False where nothing came in time."""
        if not self._can_read(timeout_s):
            silence = time.monotonic() - self.heard_at
            if silence > self._silence_s():
                raise SourceSilent(f"the source has been silent for {silence:.0f} s", hint="The connection may be half open.")
            return False
        self._make_room()
        try:
            size = self._socket.recv_into(self._data.data[self._end : len(self._data) - PADDING_BYTES])
        except OSError as error:
            raise SourceUnavailable(f"the binlog connection broke: {error}", position=self.position) from None
        if size == 0:
            raise SourceUnavailable("the source closed the binlog connection", position=self.position)
        self._end += size
        self.heard_at = time.monotonic()
        return True

    def _make_room(self) -> None:
        """Move what is left to the front where little room is behind it; the buffer fits the packet at hand."""
        at = int(self._state[decode.AT])
        left = self._end - at
        wanted = max(int(self._state[decode.WANTED_BYTES]), left + 1)
        room = len(self._data) - PADDING_BYTES
        if at + wanted <= room and room - self._end >= SOCKET_BYTES // 16:
            return
        size = max(SOCKET_BYTES, 1 << (wanted + SOCKET_BYTES // 16).bit_length()) + PADDING_BYTES
        target = self._data if size == len(self._data) else _bytes(size)
        target[:left] = self._data[at : self._end]
        self._data, self._end = target, left
        self._state[decode.AT] = 0

    def _join_packets(self) -> None:
        """Make one packet of an event that is longer than a packet can be (16 MiB - 1)."""
        # Offsets count from AT, because reading more may move everything.
        joined, next_at = 0xFFFFFF, 4 + 0xFFFFFF
        last = False
        while not last:
            self._read_until(next_at + 4)
            at = int(self._state[decode.AT])
            size = int.from_bytes(self._data[at + next_at : at + next_at + 3].tobytes(), "little")
            self._read_until(next_at + 4 + size)
            at = int(self._state[decode.AT])
            self._move(at + next_at + 4, at + 4 + joined, size)
            joined += size
            next_at += 4 + size
            last = size < 0xFFFFFF
        rest = self._end - at - next_at
        self._move(at + next_at, at + 4 + joined, rest)
        self._end = at + 4 + joined + rest
        self._state[decode.JOINED] = joined

    def _read_until(self, size: int) -> None:
        while self._end - int(self._state[decode.AT]) < size:
            self._state[decode.WANTED_BYTES] = size
            self._read(TICK_S)

    def _move(self, start: int, target: int, size: int) -> None:
        self._data[target : target + size] = self._data[start : start + size]

    # ------------------------------------------------------------------------------------------------ batches
    def _batch(self) -> Iterator[Batch]:
        """Yield everything up to the last whole transaction, and free it once the caller comes back."""
        state = self._state
        transactions = self._transactions[: int(state[decode.TRANSACTIONS])]
        taken = int(transactions[-1]["changes_end"])
        left = int(state[decode.CHANGES]) - taken
        self.position = self._position_after(transactions)
        seq = int(state[decode.SEQ]) - left
        yield Batch(self._changes[:taken], transactions, self._out, self._keys, self.plans, self.position, seq)
        self._free(taken, left)

    def _free(self, taken: int, left: int) -> None:
        """Move the changes of the unfinished transaction to the front of every array."""
        state = self._state
        done = int(state[decode.TRANSACTIONS])
        last = self._transactions[done - 1].copy()
        out_at, keys_at = int(last["out_end"]), int(last["keys_end"])
        out_left, keys_left = int(state[decode.OUT]) - out_at, int(state[decode.KEYS]) - keys_at
        self._transactions[0] = self._transactions[done]
        rest = self._changes[taken : taken + left]
        for field, shift in (("image", out_at), ("hard_at", out_at), ("key", keys_at), ("old_key", keys_at)):
            rest[field] -= shift
        self._changes[:left] = rest
        self._out[:out_left] = self._out[out_at : out_at + out_left]
        self._keys[:keys_left] = self._keys[keys_at : keys_at + keys_left]
        state[decode.CHANGES], state[decode.TRANSACTIONS] = left, 0
        state[decode.OUT], state[decode.KEYS] = out_left, keys_left
        if left == 0 and len(self._out) > LARGEST_KEPT_BYTES:
            self._out, self._keys = _bytes(FIRST_BYTES), _bytes(FIRST_BYTES)
            self._changes = np.zeros(FIRST_CHANGES, decode.CHANGE)
        # Positions name files by their index, and only the newest is still needed.
        self._files = [self._files[int(state[decode.FILE])]]
        state[decode.FILE] = 0

    def _grow(self) -> None:
        """Double the arrays, for one transaction that does not fit."""
        event_bytes = int(self._state[decode.EVENT_BYTES])
        self._out = _grown(self._out, 6 * event_bytes)
        self._keys = _grown(self._keys, 12 * event_bytes)
        self._changes = np.concatenate((self._changes, np.zeros(len(self._changes), decode.CHANGE)))

    def _position_after(self, transactions: NDArray[np.void]) -> Position:
        last = transactions[-1]
        runs: list[tuple[str, int, int]] = []
        numbered = transactions[transactions["number"] > 0]
        if len(numbered) and self.position.gtids is not None:
            numbers = numbered["number"]
            if self.flavor == "mysql":
                jumps = np.any(numbered["origin"][1:] != numbered["origin"][:-1], axis=1) | (numbers[1:] != numbers[:-1] + 1)
            else:
                jumps = (numbered["domain"][1:] != numbered["domain"][:-1]) | (
                    numbered["server"][1:] != numbered["server"][:-1]
                )
            firsts = np.concatenate(([0], np.nonzero(jumps)[0] + 1))
            lasts = np.concatenate((firsts[1:] - 1, [len(numbered) - 1]))
            runs = [
                (self._origin(numbered[first]), int(numbers[first]), int(numbers[last_of_run]))
                for first, last_of_run in zip(firsts, lasts, strict=True)
            ]
        return self.position.moved(self._files[int(last["file"])], int(last["end_pos"]), runs)

    def _origin(self, transaction: np.void) -> str:
        if self.flavor == "mariadb":
            return f"{transaction['domain']}-{transaction['server']}"
        return str(uuid.UUID(bytes=transaction["origin"].tobytes()))

    # ------------------------------------------------------------------------------------------------ rare events
    def _handle_event(self) -> Iterator[Item]:
        """Deal with an event that the kernel handed over."""
        state = self._state
        at, size, kind = int(state[decode.EVENT_AT]), int(state[decode.EVENT_BYTES]), int(state[decode.EVENT_TYPE])
        event = self._data[at : at + size].tobytes()
        has_checksum = bool(state[decode.CHECKSUM]) and kind not in (Event.FORMAT_DESCRIPTION, Event.ROTATE)
        body = event[events.HEADER_BYTES : -events.CHECKSUM_BYTES if has_checksum else None]
        if kind == Event.QUERY:
            yield from self._handle_query(events.parse_query(body))
        elif kind == Event.TABLE_MAP:
            self._handle_table_map(body)
        elif kind == Event.ROTATE:
            self._handle_rotate(event)
        elif kind == Event.FORMAT_DESCRIPTION:
            state[decode.CHECKSUM] = events.parse_checksum_algorithm(body)
            if state[decode.CHECKSUM] and not _is_intact(event):
                self._raise_for(decode.BAD_CHECKSUM)
        elif kind == Event.MARIADB_GTID:
            raise UnsupportedEvent(UNSUPPORTED[Event.XA_PREPARE], position=self._place())
        elif kind in UNSUPPORTED:
            raise UnsupportedEvent(UNSUPPORTED[Event(kind)], event_type=kind, position=self._place())
        elif kind not in HARMLESS:
            raise UnsupportedEvent(
                f"the stream has an event of the unknown type {kind}",
                hint="Passing over it could lose rows, so the stream stops here. Report it with the server's version.",
                position=self._place(),
            )

    def _handle_rotate(self, event: bytes) -> None:
        # Whether a ROTATE that the server makes up carries a checksum depends on the file before; its own bytes tell.
        end = -events.CHECKSUM_BYTES if _is_intact(event) else None
        rotate = events.parse_rotate(event[events.HEADER_BYTES : end])
        if self._state[decode.IN_TRANSACTION]:
            raise StreamBroken("a binlog file ends inside a transaction", position=self._place())
        if rotate.file != self._files[-1]:
            self._files.append(rotate.file)
        self._state[decode.FILE] = len(self._files) - 1
        self._state[decode.LOG_POS] = rotate.pos

    def _handle_table_map(self, body: bytes) -> None:
        table_id = table_id_of(body)
        if self.plans.find(body, table_id) is not None:
            return
        table_map = parse_table_map(body, self.charsets.names, self.charsets.decode_label)
        choice = self.chooser.choose(table_map)
        rest = body[TABLE_ID_BYTES:]
        if choice is None:
            number = self.plans.add((), (), wanted=False, table=-1, map_body=rest)
        else:
            number = self.plans.add(table_map.columns or (), choice.key, wanted=True, table=choice.table, map_body=rest)
        self.plans.bind(table_id, number)

    def _handle_query(self, query: events.Query) -> Iterator[Item]:
        state = self._state
        word = first_word(query.text)
        in_transaction = bool(state[decode.IN_TRANSACTION])
        if word in ("SAVEPOINT", "RELEASE"):
            return
        if is_control(query.text) and not (word == "ROLLBACK" and in_transaction and self._is_empty_transaction()):
            raise UnsupportedEvent(f"the stream has the statement {query.text[:60]!r}", position=self._place())
        if is_dml(query.text):
            raise UnsupportedEvent(
                "a change of rows is logged as a statement",
                hint="Set binlog_format = ROW for every session, then copy the table afresh.",
                statement=query.text[:200],
                position=self._place(),
            )
        if state[decode.TRANSACTIONS]:
            yield from self._batch()
        commit_us = int(self._transactions[0]["commit_us"])
        if word == "ROLLBACK":
            decode.commit(state, self._transactions)
        elif in_transaction or query.text.rstrip().upper().endswith("START TRANSACTION"):
            # CREATE TABLE ... SELECT: the rows follow in the same transaction, so the position stays before it.
            state[decode.IN_TRANSACTION] = 1
            yield Statement(query, self.position, commit_us)
        else:
            decode.commit(state, self._transactions)
            self.position = self._position_after(self._transactions[:1])
            self._free(0, 0)
            yield Statement(query, self.position, commit_us)

    def _is_empty_transaction(self) -> bool:
        done = int(self._state[decode.TRANSACTIONS])
        before = int(self._transactions[done - 1]["changes_end"]) if done else 0
        return int(self._state[decode.CHANGES]) == before

    def _raise_for(self, code: int) -> None:
        """Raise what a return code of the kernel says; a partial row image only costs its table."""
        state = self._state
        if code == decode.PARTIAL_IMAGE:
            plan = int(state[decode.PLAN_AT_FAULT])
            self.chooser.reject(
                self.plans.tables[plan],
                MissingMetadata("a row image lacks columns", hint="Set binlog_row_image = FULL for every session."),
            )
            self.plans.turn_away(plan)
            return
        if code == decode.SERVER_ERROR:
            at = int(state[decode.AT]) + 5
            text = self._data[at : at + 512].tobytes()
            message = text[8:] if text[2:3] == b"#" else text[2:]
            size = int.from_bytes(self._data[at - 5 : at - 2].tobytes(), "little") - (len(text) - len(message)) - 1
            raise error_for(int.from_bytes(text[:2], "little"), message[:size].decode("utf-8", "replace"), "binlog dump")
        if code == decode.SERVER_EOF:
            raise SourceUnavailable("the source ended the binlog dump", position=self._place())
        what = {
            decode.BAD_CHECKSUM: "an event's checksum is wrong",
            decode.UNKNOWN_TABLE: "a rows event names a table id without a table map",
        }.get(code, "an event is not as its format says")
        raise StreamBroken(
            what,
            hint="Nothing behind the position was applied. If it happens again at the same place, the binlog is damaged.",
            event_type=int(state[decode.EVENT_TYPE]),
            position=self._place(),
        )

    def _place(self) -> str:
        return f"{self._files[int(self._state[decode.FILE])]}:{int(self._state[decode.LOG_POS])}"


def _bytes(size: int) -> NDArray[np.uint8]:
    return np.empty(size, np.uint8)


def _grown(array: NDArray[np.uint8], more: int) -> NDArray[np.uint8]:
    grown = _bytes(2 * len(array) + more)
    grown[: len(array)] = array
    return grown


def _is_intact(event: bytes) -> bool:
    """True where the last four bytes are the event's CRC32."""
    stored = int.from_bytes(event[-events.CHECKSUM_BYTES :], "little")
    return zlib.crc32(event[: -events.CHECKSUM_BYTES]) == stored
