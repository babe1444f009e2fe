"""What the stream does at rare events: packed events, tagged GTIDs, savepoints, XA transactions, partial updates.

Owns the buffers that stand in for the socket's while packed events are walked, and the XA transactions held back.
The other half of stream.Stream, and never used without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from replicator import decode
from replicator.changes import ChangeBuffer
from replicator.errors import EventSkipped, PartialImage, StreamBroken, TransactionUnknown, UnsupportedEvent
from replicator.events import HARMLESS, HEADER_BYTES, Event, parse_query
from replicator.gtids import parse_tagged
from replicator.packets import PacketBuffer
from replicator.payload import UNPACKED, EventBuffer, open_payload
from replicator.plan import Plans
from replicator.statements import first_word
from replicator.tablemap import table_id_of
from replicator.xa import PREPARED_FLAG, Held, XaChange, parse_prepare, parse_statement

if TYPE_CHECKING:
    from replicator.items import Chooser

_ROWS = frozenset(
    {
        Event.TABLE_MAP, Event.WRITE_ROWS, Event.UPDATE_ROWS, Event.DELETE_ROWS, Event.WRITE_ROWS_V1, Event.UPDATE_ROWS_V1,
        Event.DELETE_ROWS_V1, Event.PARTIAL_UPDATE_ROWS, *UNPACKED,
    }
)  # fmt: skip
_LARGEST_KEPT_BYTES = 1 << 20
_TO_SAVEPOINT = re.compile(r"\s*ROLLBACK\s+(?:WORK\s+)?TO\s+(?:SAVEPOINT\s+)?(.+?)\s*$", re.IGNORECASE | re.DOTALL)
_SAVEPOINT = re.compile(r"\s*SAVEPOINT\s+(.+?)\s*$", re.IGNORECASE | re.DOTALL)


class RareEvents:
    """Handlers of rare events.

    Args:
        prepared: XA transactions that were prepared before the stream's position, by xid.
        skipped: places of events that are passed over.
    """

    _state: np.ndarray[tuple[int], np.dtype[np.int64]]
    _changes: ChangeBuffer
    _packets: PacketBuffer | EventBuffer
    _socket_packets: PacketBuffer
    plans: Plans
    chooser: Chooser
    _place: Callable[[], str]

    def __init__(self, prepared: dict[str, Held], skipped: frozenset[str] = frozenset()) -> None:
        self._skipped = skipped
        # Buffers that wait until the one at hand is used up, whether their events have checksums, and what is to be done then.
        self._outer: list[tuple[PacketBuffer | EventBuffer, int, Callable[[], None] | None]] = []
        self._tags = [""]
        self._savepoints: dict[str, tuple[int, int]] = {}
        self._prepared = prepared
        self._held = Held()
        self._xa: list[XaChange] = []

    def _take_xa(self) -> tuple[XaChange, ...]:
        xa, self._xa = tuple(self._xa), []
        return xa

    def _refuse(self, error: UnsupportedEvent) -> None:
        """Stop the stream at the event at hand, or pass over it where somebody asked for that."""
        if self._place() in self._skipped:
            self.chooser.distrust(EventSkipped(f"an event was skipped: {error.message}", position=self._place()))
            return
        at, size = int(self._state[decode.EVENT_AT]), int(self._state[decode.EVENT_BYTES])
        error.raw = self._packets.data[at : at + min(size, _LARGEST_KEPT_BYTES)].tobytes()
        raise error

    # ------------------------------------------------------------------------------------------------ packed events
    def _open_payload(self, body: bytes) -> None:
        if self._outer:
            raise StreamBroken("a compressed transaction holds another one", position=self._place())
        self._open_packed(open_payload(body))

    def _open_packed(self, buffer: EventBuffer, at_end: Callable[[], None] | None = None) -> None:
        """Walk the events of a buffer before what follows; at_end is called behind the last of them."""
        self._outer.append((self._packets, int(self._state[decode.CHECKSUM]), at_end))
        self._packets = buffer
        self._state[decode.BARE], self._state[decode.CHECKSUM] = 1, 0

    def _read_packed(self) -> None:
        """Unpack more events, or go back to where they came from."""
        assert isinstance(self._packets, EventBuffer)
        if self._packets.read(int(self._state[decode.WANTED_BYTES])):
            return
        self._packets, self._state[decode.CHECKSUM], at_end = self._outer.pop()
        self._state[decode.BARE] = bool(self._outer)
        if at_end is not None:
            at_end()

    # ------------------------------------------------------------------------------------------------ GTIDs
    def _begin_tagged(self, body: bytes) -> None:
        gtid = parse_tagged(body)
        if self._state[decode.IN_TRANSACTION]:
            raise StreamBroken("a transaction begins inside another", position=self._place())
        if gtid.tag not in self._tags:
            self._tags.append(gtid.tag)
        transaction = self._changes.transactions[self._changes.whole]
        transaction["origin"] = np.frombuffer(gtid.uuid, np.uint8)
        transaction["domain"], transaction["number"] = self._tags.index(gtid.tag), gtid.number
        transaction["commit_us"] = gtid.commit_us or int(self._state[decode.EVENT_TIME]) * 1_000_000
        self._state[decode.PENDING] = 1

    # ------------------------------------------------------------------------------------------------ savepoints
    def _undo(self, text: str) -> None:
        """Remember a savepoint, or take back the changes behind one, or those of the whole transaction.

        In a row-format binlog a transaction's own changes are those of transactional tables; the others are logged in
        transactions of their own, which no rollback takes back.
        """
        state = self._state
        word = first_word(text)
        savepoint, target = _SAVEPOINT.match(text), _TO_SAVEPOINT.match(text)
        if word == "RELEASE":
            return
        if savepoint is not None:
            self._savepoints[savepoint[1]] = (int(state[decode.COMMITS]), int(state[decode.SEQ]))
            return
        rows = self._changes.rows_at_hand
        if target is not None:
            commits, seq = self._savepoints.get(target[1], (-1, 0))
            if commits != state[decode.COMMITS]:
                raise StreamBroken(f"a rollback to a savepoint that was never set: {target[1]!r}", position=self._place())
            undone = int(state[decode.SEQ]) - seq
        else:
            undone = rows
            # where whole transactions wait, the parts are of the first of them
            self._changes.is_undone |= self._changes.is_parted and not self._changes.whole
        if undone > rows:
            raise UnsupportedEvent(
                "a part of a transaction is rolled back that was too large to be held in memory",
                hint="Raise replicator.batch_rows and replicator.batch_bytes, then start again.",
                position=self._place(),
            )
        state[decode.CHANGES] -= undone
        state[decode.SEQ] -= undone
        if target is None:
            self._commit()

    def _commit(self) -> None:
        decode.commit(self._state, self._changes.transactions)

    # ------------------------------------------------------------------------------------------------ XA
    def _begin_mariadb_xa(self, body: bytes) -> None:
        """MariaDB says with the GTID that a prepared transaction follows; it logs no XA START."""
        if body[12] & PREPARED_FLAG:
            self._begin_hold()

    def _begin_hold(self) -> None:
        self._held = Held()
        self._state[decode.IN_TRANSACTION] = self._state[decode.HOLD] = 1

    def _hold(self, kind: int, event: bytes) -> None:
        """Keep an event of an XA transaction, which has no checksum any more, or end the transaction."""
        if kind == Event.XA_PREPARE:
            self._state[decode.HOLD] = 0
            one_phase, xid = parse_prepare(event[HEADER_BYTES:])
            if one_phase:
                self._open_packed(self._held.open(), self._commit)
                return
            self._prepared[xid] = self._held
            self._commit()
            self._xa.append(XaChange(xid, self._held))
        elif kind in _ROWS or (kind == Event.QUERY and first_word(parse_query(event[HEADER_BYTES:]).text) != "XA"):
            self._held.add_event(event)
        elif kind != Event.QUERY and kind not in HARMLESS:
            raise UnsupportedEvent(
                "an XA transaction has an event that does not belong there", event_type=kind, position=self._place()
            )

    def _handle_xa(self, text: str) -> None:
        verb, xid = parse_statement(text)
        if verb == "START":
            self._begin_hold()
        elif verb == "ROLLBACK":
            self._prepared.pop(xid, None)
            self._decide(xid)
        elif verb == "COMMIT":
            held = self._prepared.pop(xid, None)
            if held is None:
                hint = "It was prepared before the mirror's first position."
                self.chooser.distrust(
                    TransactionUnknown(f"the source committed the XA transaction {xid}, which is not known", hint=hint)
                )
                self._decide(xid)
                return
            self._state[decode.IN_TRANSACTION] = 1
            self._open_packed(held.open(), lambda: self._decide(xid))
        else:
            raise UnsupportedEvent(f"the stream has the statement {text[:60]!r}", position=self._place())

    def _decide(self, xid: str) -> None:
        self._commit()
        self._xa.append(XaChange(xid))

    # ------------------------------------------------------------------------------------------------ partial rows
    def _refuse_partial(self, body: bytes) -> None:
        """Rows of which only parts are logged cost their table; a table that is not wanted loses nothing."""
        table_id = table_id_of(body)
        self.plans.restore(table_id)
        slot = self.plans.slots[table_id & (decode.SLOTS - 1)]
        if slot["table_id"] != table_id:
            raise StreamBroken("a rows event names a table id without a table map", position=self._place())
        plan = int(slot["plan"])
        if self.plans.plans[plan]["wanted"]:
            hint = "Unset binlog_row_value_options for every session, then resync the table."
            problem = PartialImage("a session logs parts of JSON values (PARTIAL_JSON)", hint=hint)
            self.chooser.reject(self.plans.tables[plan], problem)
            self.plans.turn_away(plan)
