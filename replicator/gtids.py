"""GTIDs on the wire: the event of a tagged GTID, and the command that asks for a dump behind a set of GTIDs.

The transport library knows no tags, so its dump command is replaced by one that does. Owns no connection.

Sources: MySQL source, libs/mysql/serialization/readme.md (the format of GTID_TAGGED events), control_events.h (their fields),
rpl_gtid_set.cc (Gtid_set::encode), and the manual's COM_BINLOG_DUMP_GTID.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pymysql

from replicator.errors import StreamBroken, UnsupportedEvent
from replicator.position import GtidSet

_COM_BINLOG_DUMP, _COM_BINLOG_DUMP_GTID = 0x12, 0x1E
_NON_BLOCKING, _THROUGH_GTID = 0x01, 0x04
_TAGGED = 1


@dataclass(frozen=True)
class TaggedGtid:
    """What a GTID_TAGGED event says; commit_us: microseconds since 1970."""

    uuid: bytes
    tag: str
    number: int
    commit_us: int


class _Message:
    """Reads MySQL's serialization format."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise StreamBroken("a GTID_TAGGED event is shorter than its own lengths say")
        self.at += size
        return self.data[self.at - size : self.at]

    def unsigned(self) -> int:
        """An integer of 1 to 9 bytes: as many low bits set as bytes follow, a clear bit, then the number."""
        first = self.take(1)[0]
        more = 0
        while more < 8 and first >> more & 1:
            more += 1
        rest = int.from_bytes(self.take(more), "little")
        return rest if more == 8 else first >> (more + 1) | rest << (7 - more)

    def signed(self) -> int:
        """An integer whose lowest bit is its sign."""
        value = self.unsigned()
        return -(value >> 1) - 1 if value & 1 else value >> 1

    def text(self) -> str:
        """A string behind its length."""
        return self.take(self.unsigned()).decode("ascii", "replace")

    def uuid(self) -> bytes:
        """Sixteen numbers."""
        return bytes(self.unsigned() & 0xFF for _ in range(16))


# The event's fields by their number: flags, uuid, number, tag, last committed, sequence number, commit time here, commit
# time at the origin, length, two server versions, group commit ticket.
_FIELDS: tuple[Callable[[_Message], Any], ...] = (
    _Message.unsigned, _Message.uuid, _Message.signed, _Message.text, _Message.signed, _Message.signed,
    _Message.unsigned, _Message.unsigned, _Message.unsigned, _Message.unsigned, _Message.unsigned, _Message.unsigned,
)  # fmt: skip


def parse_tagged(body: bytes) -> TaggedGtid:
    """The body of a GTID_TAGGED event without its checksum.

    Raises:
        StreamBroken: it is not as its format says.
        UnsupportedEvent: a newer server wrote it, with a field that must not be passed over.
    """
    message = _Message(body)
    if message.unsigned() != 1:
        raise UnsupportedEvent("a GTID_TAGGED event has an unknown version")
    size = message.unsigned()
    if size != len(body):
        raise StreamBroken("a GTID_TAGGED event is not as long as it says")
    if message.unsigned() >= len(_FIELDS):
        raise UnsupportedEvent("a GTID_TAGGED event has a field that this version does not know")
    found: dict[int, Any] = {}
    while message.at < size:
        number = message.unsigned()
        if number >= len(_FIELDS):
            # It may be passed over, as all behind it may; where it ends is not said.
            break
        found[number] = _FIELDS[number](message)
    if not {1, 2, 3} <= set(found) or found[2] < 1:
        raise StreamBroken("a GTID_TAGGED event lacks its GTID")
    return TaggedGtid(found[1], found[3], found[2], found.get(6, 0))


def encode_gtids(gtids: GtidSet) -> bytes:
    """A GTID set as the dump command carries it.

    The number of origins, each with uuid, tag (only where any has one), number of ranges and their ends, the last one plus
    one. With tags the count stands between two bytes that say so.
    """
    tagged = any(":" in origin for origin, _ in gtids.ranges)
    count = len(gtids.ranges)
    parts = [struct.pack("<Q", _TAGGED << 56 | count << 8 | _TAGGED if tagged else count)]
    for origin, ranges in gtids.ranges:
        server, _, tag = origin.partition(":")
        parts.append(uuid.UUID(server).bytes)
        if tagged:
            # at most 32 characters, so the length is one byte with its lowest bit clear
            parts.append(bytes([len(tag) << 1]) + tag.encode())
        parts.append(struct.pack("<Q", len(ranges)))
        parts += [struct.pack("<QQ", first, last + 1) for first, last in ranges]
    return b"".join(parts)


def dump_command(server_id: int, gtids: GtidSet, *, waits: bool = True) -> bytes:
    """The packet that asks for everything that is not in a set; waits: for new events at the end, too."""
    encoded = encode_gtids(gtids)
    flags = _THROUGH_GTID if waits else _THROUGH_GTID | _NON_BLOCKING
    body = struct.pack("<BHII", _COM_BINLOG_DUMP_GTID, flags, server_id, 0) + struct.pack("<QI", 4, len(encoded)) + encoded
    return struct.pack("<I", len(body)) + body


class GtidDumpConnection(pymysql.Connection):  # type: ignore[misc]
    """A connection that sends a dump command of ours in place of the one that asks by file and offset."""

    def __init__(self, *, dump: bytes, **arguments: Any) -> None:
        self._dump = dump
        super().__init__(**arguments)

    def _write_bytes(self, data: bytes) -> None:
        # Only a command's packet has the number 0.
        is_dump = data[3] == 0 and data[4] == _COM_BINLOG_DUMP
        super()._write_bytes(self._dump if is_dump else data)
