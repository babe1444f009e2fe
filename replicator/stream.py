"""The binlog stream: connects through the transport library, then reads the socket itself.

Yields whole source transactions as batches of decoded changes, the statements between them, and a tick when nothing comes.
Owns the dump connection. Never writes anywhere and never reconnects: an error ends the stream, and its owner opens a new
one at the last committed position, because only that position is known to be right.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from replicator import decode, events
from replicator.changes import Batch, ChangeBuffer, gtid_runs
from replicator.crash import reach
from replicator.dump import open_dump
from replicator.errors import MissingMetadata, SourceUnavailable, StreamBroken, UnsupportedEvent
from replicator.events import HARMLESS, UNSUPPORTED, Event
from replicator.items import Chooser, Idle, Item, Statement
from replicator.packets import TICK_S, PacketBuffer
from replicator.payload import UNPACKED, open_event
from replicator.plan import Plans
from replicator.position import Position, file_number
from replicator.rare import RareEvents
from replicator.source import Source, error_for
from replicator.statements import first_word, is_control, is_dml
from replicator.tablemap import TABLE_ID_BYTES, parse_table_map, table_id_of
from replicator.xa import Held
from warehouse.settings import ReplicatorSettings

MISSED_HEARTBEATS = 3


class Stream(RareEvents):
    """A dump connection, read from one position on.

    Args:
        source: where to connect.
        settings: batch sizes and linger.
        position: where to begin. seq: the last _seq given out.
        chooser: decides which tables are wanted.
        prepared: XA transactions that were prepared before the position, by xid.
        skipped: places of events that are passed over, at the price of copying every table afresh.
    """

    def __init__(
        self, source: Source, settings: ReplicatorSettings, position: Position, seq: int, chooser: Chooser,
        prepared: dict[str, Held], skipped: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        super().__init__(prepared, skipped)
        self.source, self.settings, self.chooser = source, settings, chooser
        self.position = position
        self.charsets = source.charsets()
        self.plans = Plans(self.charsets)
        self._mariadb = source.flavor == "mariadb"
        self._files = [position.file]
        # Room for two batches and the events that reach their ends; only what is larger is handed on in parts.
        self._changes = ChangeBuffer(seq, 9 * settings.batch_bytes // 4, 9 * settings.batch_rows // 4)
        self._state = self._changes.state
        self._state[decode.ENOUGH_ROWS], self._state[decode.ENOUGH_BYTES] = settings.batch_rows, settings.batch_bytes
        self._state[decode.LOG_POS] = position.pos
        # Until the first FORMAT_DESCRIPTION says otherwise; see dump.py.
        self._state[decode.CHECKSUM] = True
        self._renewed = False
        self._reader = open_dump(source, position, self.silence_s)
        self._packets = self._socket_packets = PacketBuffer(self._reader._stream_connection._sock, self.silence_s)

    def close(self) -> None:
        """Close the dump connection."""
        connection = self._reader._stream_connection
        # Wakes the thread that may be waiting for bytes; a connection that is broken already needs no waking.
        with suppress(OSError, AttributeError):
            connection._sock.shutdown(socket.SHUT_RDWR)
        # PyMySQL's own close() would send a QUIT and wait for it behind megabytes of events.
        connection._force_close()

    def renew_choices(self) -> int:
        """Ask about every table again, from the next item on; the number that the first new plan will have."""
        self._renewed = True
        return len(self.plans.tables)

    @property
    def heard_at(self) -> float:
        """When the source last sent something, in time.monotonic() seconds."""
        return self._socket_packets.heard_at

    @property
    def silence_s(self) -> float:
        """How long the source may send nothing."""
        return MISSED_HEARTBEATS * self.source.settings.heartbeat_s

    def look(self) -> tuple[float, int] | None:
        """See liveness.Stream."""
        return self._socket_packets.look()

    def items(self) -> Iterator[Item]:
        """Batches, statements and ticks, in the source's order, without end.

        Raises:
            SourceUnavailable, SourceSilent: the connection ended or nothing came for three heartbeats.
            PositionLost: the server no longer has the position.
            StreamBroken, UnsupportedEvent: the stream holds what cannot be applied.
        """
        linger_until = 0.0
        while True:
            if self._renewed:
                self._renewed = False
                self.plans.drop_bindings()
            code = self._consume()
            if code == decode.EVENT:
                yield from self._handle_event()
            elif code == decode.SPLIT:
                self._state[decode.JOINED] = self._socket_packets.join_packets()
            elif not self._changes.whole and self._is_full(1 if self._changes.is_parted else 2):
                yield replace(self._changes.part(self.plans, self.position), files=tuple(self._files), tags=tuple(self._tags))
            elif code == decode.NEED_DATA and self._outer:
                self._read_packed()
            elif code == decode.FULL and not self._changes.whole:
                self._changes.grow()
            elif code == decode.FULL or (code == decode.NEED_DATA and self._is_due(linger_until)):
                yield from self._batch()
                linger_until = 0.0
            elif code != decode.NEED_DATA:
                self._raise_for(code)
            elif not self._socket_packets.read(TICK_S, int(self._state[decode.WANTED_BYTES])):
                yield Idle(self.position)
            elif linger_until == 0:
                reach("read")
                linger_until = time.monotonic() + self.settings.linger_ms / 1000

    def _is_due(self, linger_until: float) -> bool:
        """True where whole transactions wait and nothing that belongs with them is to be had in time."""
        if not self._changes.whole:
            return False
        return self._is_full() or not self._socket_packets.can_read(max(0.0, linger_until - time.monotonic()))

    def _is_full(self, batches: int = 1) -> bool:
        """True where so many batches are decoded. A transaction that is not whole after two is handed on in parts."""
        state, settings = self._state, self.settings
        rows, size = batches * settings.batch_rows, batches * settings.batch_bytes
        return bool(state[decode.CHANGES] >= rows or state[decode.OUT] >= size)

    def _consume(self) -> int:
        packets, changes, plans = self._packets, self._changes, self.plans
        self._state[decode.AT] = packets.at
        code = decode.consume(
            packets.data, packets.end, self._state, plans.slots, plans.plans, plans.columns, plans.blob, plans.labels,
            changes.out, changes.keys, changes.changes, changes.transactions, changes.digits,
        )  # fmt: skip
        packets.at = int(self._state[decode.AT])
        return int(code)

    def _batch(self) -> Iterator[Batch]:
        """Yield all whole transactions."""
        reach("decode")
        files = tuple(self._files)
        self._advance()
        yield replace(self._changes.batch(self.plans, self.position), files=files, tags=tuple(self._tags), xa=self._take_xa())

    def _advance(self) -> None:
        transactions = self._changes.transactions[: self._changes.whole]
        last = transactions[-1]
        runs = gtid_runs(transactions, mariadb=self._mariadb, tags=self._tags)
        self.position = self.position.moved(self._files[int(last["file"])], int(last["end_pos"]), runs)
        # Transactions name their file by its index, and only the newest is still needed.
        self._files = [self._files[int(self._state[decode.FILE])]]
        self._state[decode.FILE] = 0

    # ------------------------------------------------------------------------------------------------ rare events
    def _handle_event(self) -> Iterator[Item]:
        """Deal with an event that the kernel handed over."""
        state = self._state
        at, size, kind = int(state[decode.EVENT_AT]), int(state[decode.EVENT_BYTES]), int(state[decode.EVENT_TYPE])
        event = self._packets.data[at : at + size].tobytes()
        has_checksum = bool(state[decode.CHECKSUM]) and kind != Event.FORMAT_DESCRIPTION
        body = event[events.HEADER_BYTES : -events.CHECKSUM_BYTES if has_checksum else None]
        if state[decode.HOLD]:
            self._hold(kind, event[: events.HEADER_BYTES] + body)
        elif kind == Event.QUERY:
            yield from self._handle_query(events.parse_query(body))
        elif kind == Event.TABLE_MAP:
            self._handle_table_map(body)
        elif kind == Event.ROTATE:
            self._handle_rotate(events.parse_rotate(body))
        elif kind == Event.FORMAT_DESCRIPTION:
            if not events.is_intact(event):
                self._raise_for(decode.BAD_CHECKSUM)
            state[decode.CHECKSUM] = events.parse_checksum_algorithm(body)
        elif kind == Event.TRANSACTION_PAYLOAD:
            self._open_payload(body)
        elif kind in UNPACKED:
            self._open_packed(open_event(event[: events.HEADER_BYTES] + body))
        elif kind == Event.GTID_TAGGED:
            self._begin_tagged(body)
        elif kind == Event.MARIADB_GTID:
            self._begin_mariadb_xa(body)
        elif kind == Event.PARTIAL_UPDATE_ROWS:
            self._refuse_partial(body)
        elif kind in UNSUPPORTED:
            self._refuse(UnsupportedEvent(UNSUPPORTED[Event(kind)], event_type=kind, position=self._place()))
        elif kind == Event.HEARTBEAT:
            self._handle_heartbeat(body)
        elif kind not in HARMLESS:
            self._refuse(
                UnsupportedEvent(
                    f"the stream has an event of the unknown type {kind}",
                    hint="Passing over it could lose rows, so the stream stops here. Report it with the server's version.",
                    event_type=kind,
                    position=self._place(),
                )
            )

    def _handle_rotate(self, rotate: events.Rotate) -> None:
        if self._state[decode.IN_TRANSACTION]:
            raise StreamBroken("a binlog file ends inside a transaction", position=self._place())
        if rotate.file != self._files[-1]:
            self._files.append(rotate.file)
        self._state[decode.FILE] = len(self._files) - 1
        self._state[decode.LOG_POS] = rotate.pos

    def _handle_heartbeat(self, body: bytes) -> None:
        """A heartbeat names the end of what was sent, so the position moves on although nothing was committed."""
        if not self._changes.whole and not self._state[decode.IN_TRANSACTION]:
            self.position = self.position.moved(body.decode("utf-8", "replace"), int(self._state[decode.LOG_POS]))

    def _handle_table_map(self, body: bytes) -> None:
        table_id = table_id_of(body)
        if self.plans.find(body, table_id) is not None:
            return
        table_map = parse_table_map(body, self.charsets.names, self.charsets.decode_label, mariadb=self._mariadb)
        choice = self.chooser.choose(table_map, self._at_hand())
        rest = body[TABLE_ID_BYTES:]
        if choice is None:
            number = self.plans.add((), (), wanted=False, table=-1, map_body=rest)
        else:
            number = self.plans.add(
                choice.columns or table_map.columns or (), choice.key, wanted=True, table=choice.table, map_body=rest
            )
        self.plans.bind(table_id, number)

    def _at_hand(self) -> Position:
        """A place in the transaction at hand, which counts as read."""
        transactions = self._changes.transactions[: self._changes.whole + 1]
        runs = gtid_runs(transactions, mariadb=self._mariadb, tags=self._tags)
        return self.position.moved(self._files[int(self._state[decode.FILE])], int(self._state[decode.LOG_POS]), runs)

    def _handle_query(self, query: events.Query) -> Iterator[Item]:
        state = self._state
        word = first_word(query.text)
        in_transaction = bool(state[decode.IN_TRANSACTION])
        if in_transaction and word in ("SAVEPOINT", "RELEASE", "ROLLBACK"):
            self._undo(query.text)
            return
        if word == "XA":
            self._handle_xa(query.text)
            return
        if is_control(query.text):
            raise UnsupportedEvent(f"the stream has the statement {query.text[:60]!r}", position=self._place())
        if is_dml(query.text):
            self._refuse(
                UnsupportedEvent(
                    "a change of rows is logged as a statement",
                    hint="Set binlog_format = ROW for every session, then see operations.md, 'UnsupportedEvent'.",
                    statement=query.text[:200],
                    position=self._place(),
                )
            )
            return
        if self._changes.whole:
            yield from self._batch()
        commit_us = int(self._changes.transactions[0]["commit_us"])
        if in_transaction or query.text.rstrip().upper().endswith("START TRANSACTION"):
            # CREATE TABLE ... SELECT: the rows follow in the same transaction, so the position stays before it.
            state[decode.IN_TRANSACTION] = 1
            yield Statement(query, self.position, commit_us)
        else:
            decode.commit(state, self._changes.transactions)
            self._advance()
            self._changes.drop_whole()
            yield Statement(query, self.position, commit_us)

    def _raise_for(self, code: int) -> None:
        """Raise what a return code of the kernel says; a partial row image only costs its table."""
        state = self._state
        if code == decode.UNKNOWN_TABLE:
            at = int(state[decode.EVENT_AT]) + events.HEADER_BYTES
            if self.plans.restore(table_id_of(self._packets.data[at : at + 8].tobytes())):
                return
        if code == decode.PARTIAL_IMAGE:
            plan = int(state[decode.PLAN_AT_FAULT])
            self.chooser.reject(
                self.plans.tables[plan],
                MissingMetadata("a row image lacks columns", hint="Set binlog_row_image = FULL for every session."),
            )
            self.plans.turn_away(plan)
            return
        if code == decode.SERVER_ERROR:
            at = int(state[decode.AT])
            raise error_for(*events.parse_error(self._packets.data[at : at + 512].tobytes()), "binlog dump")
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

    def decoded_to(self) -> tuple[tuple[int, int], bool]:
        """The place in the binlog up to which events were looked at, and whether that is inside a transaction."""
        state = self._state
        is_inside = bool(state[decode.IN_TRANSACTION] or state[decode.PENDING] or self._outer)
        return (file_number(self._files[int(state[decode.FILE])]), int(state[decode.LOG_POS])), is_inside

    def _place(self) -> str:
        return f"{self._files[int(self._state[decode.FILE])]}:{int(self._state[decode.LOG_POS])}"
