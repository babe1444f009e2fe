"""Events that come packed: MySQL's compressed transactions and MariaDB's compressed events.

Owns unpacking them into a buffer that the kernel walks like the socket's. Knows nothing of what the events mean.

Sources: MySQL source documentation, "Transaction_payload_event" and its codecs; MariaDB source, log_event.cc
(binlog_buf_compress and row_log_event_uncompress).
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from replicator.errors import StreamBroken
from replicator.events import HEADER_BYTES, Event
from replicator.packets import PADDING_BYTES

READ_BYTES = 1 << 20
_END, _SIZE, _COMPRESSION, _UNPACKED_SIZE = 0, 1, 2, 3
_ZSTD, _NONE = 0, 255
# A window of the highest compression level; a frame that asks for more is refused.
_LARGEST_WINDOW_BYTES = 1 << 27

# What each of MariaDB's compressed events is once unpacked.
UNPACKED = {
    Event.MARIADB_QUERY_COMPRESSED: Event.QUERY,
    Event.MARIADB_WRITE_ROWS_COMPRESSED_V1: Event.WRITE_ROWS_V1,
    Event.MARIADB_UPDATE_ROWS_COMPRESSED_V1: Event.UPDATE_ROWS_V1,
    Event.MARIADB_DELETE_ROWS_COMPRESSED_V1: Event.DELETE_ROWS_V1,
    Event.MARIADB_WRITE_ROWS_COMPRESSED: Event.WRITE_ROWS,
    Event.MARIADB_UPDATE_ROWS_COMPRESSED: Event.UPDATE_ROWS,
    Event.MARIADB_DELETE_ROWS_COMPRESSED: Event.DELETE_ROWS,
}


class Reader(Protocol):
    """Where unpacked bytes come from."""

    def readinto(self, target: memoryview, /) -> int | None:
        """Write the next bytes into target; how many, 0 at the end.

        Raises:
            zstandard.ZstdError: the bytes are damaged.
        """


class EventBuffer:
    """Events one after another, without packets and checksums: data[at:end]. Stands in for a PacketBuffer.

    Args:
        reader: unpacks a little at a time, so that memory holds one event and not the whole transaction.
        size: how many bytes it gives in all.
    """

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader, self._left = reader, size
        self.data: NDArray[np.uint8] = np.empty(min(size, READ_BYTES) + PADDING_BYTES, np.uint8)
        self.at = 0
        self.end = 0

    def read(self, wanted: int) -> bool:
        """Unpack more, with room for `wanted` bytes from `at` on; False at the end.

        Raises:
            StreamBroken: the bytes are damaged, are fewer or more than was said, or end inside an event.
        """
        have = self.end - self.at
        if wanted - have > self._left and (have or self._left):
            raise StreamBroken("packed events end inside an event")
        if not self._left:
            return False
        self._make_room(max(wanted, min(READ_BYTES, have + self._left)))
        try:
            size = self._reader.readinto(self.data.data[self.end : len(self.data) - PADDING_BYTES])
        except zstandard.ZstdError as error:
            raise StreamBroken(f"packed events cannot be unpacked: {error}") from None
        if not size or size > self._left:
            raise StreamBroken("packed events are not as long as their header says")
        self.end += size
        self._left -= size
        return True

    def _make_room(self, wanted: int) -> None:
        have = self.end - self.at
        target = self.data
        if wanted > len(target) - PADDING_BYTES:
            target = np.empty(wanted + PADDING_BYTES, np.uint8)
        target[:have] = self.data[self.at : self.end].copy()
        self.data, self.at, self.end = target, 0, have


def open_payload(body: bytes) -> EventBuffer:
    """The events inside a TRANSACTION_PAYLOAD event.

    Args:
        body: the event without its header and checksum: fields of type, length and value, each a packed integer, then
            the packed events.

    Raises:
        StreamBroken: the event is not as its format says, or packed in a way that is not known.
    """
    at, compression, size, unpacked = 0, -1, -1, -1
    while True:
        kind, at = _read_integer(body, at)
        if kind == _END:
            break
        length, at = _read_integer(body, at)
        value, _ = _read_integer(body, at) if kind <= _UNPACKED_SIZE else (0, at)
        at += length
        if kind == _SIZE:
            size = value
        elif kind == _COMPRESSION:
            compression = value
        elif kind == _UNPACKED_SIZE:
            unpacked = value
    if size != len(body) - at:
        raise StreamBroken("a TRANSACTION_PAYLOAD event is not as long as it says")
    packed = io.BytesIO(body[at:])
    if compression == _NONE:
        return EventBuffer(packed, size)
    if compression != _ZSTD or unpacked < 0:
        raise StreamBroken(f"a TRANSACTION_PAYLOAD event is packed by the unknown method {compression}")
    unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW_BYTES)
    return EventBuffer(unpacker.stream_reader(packed, read_across_frames=True), unpacked)


def open_event(event: bytes) -> EventBuffer:
    """The event inside one of MariaDB's compressed events.

    Args:
        event: with its header, without its checksum.

    Raises:
        StreamBroken: the event is not as its format says.
    """
    kind = Event(event[4])
    body = event[HEADER_BYTES:]
    if kind == Event.MARIADB_QUERY_COMPRESSED:
        if len(body) < 13:
            raise StreamBroken("a compressed QUERY event is too short")
        start = 13 + int(struct.unpack_from("<H", body, 11)[0]) + body[8] + 1
    else:
        start = 8 if UNPACKED[kind] <= Event.DELETE_ROWS_V1 else 8 + int.from_bytes(body[8:10], "little")
        width, start = _read_integer(body, start)
        is_update = UNPACKED[kind] in (Event.UPDATE_ROWS_V1, Event.UPDATE_ROWS)
        start += (width + 7) // 8 * (2 if is_update else 1)
    rest = body[:start] + _inflate(body[start:])
    header = (
        event[:4] + bytes([UNPACKED[kind]]) + event[5:9] + struct.pack("<I", HEADER_BYTES + len(rest)) + event[13:HEADER_BYTES]
    )
    return EventBuffer(io.BytesIO(header + rest), HEADER_BYTES + len(rest))


def _inflate(packed: bytes) -> bytes:
    """Undo binlog_buf_compress: one byte (high bit, method 0 for zlib, length of the size), the size, the zlib stream."""
    if not packed or packed[0] & 0xF0 != 0x80:
        raise StreamBroken("a compressed event is packed in an unknown way")
    start = 1 + (packed[0] & 7)
    size = int.from_bytes(packed[1:start], "big")
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed[start:], size + 1)
    except zlib.error as error:
        raise StreamBroken(f"a compressed event cannot be unpacked: {error}") from None
    if len(data) != size or not unpacker.eof:
        raise StreamBroken("a compressed event is not as long as it says")
    return data


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer and the offset behind it."""
    if at >= len(data):
        raise StreamBroken("an event is shorter than its own lengths say")
    first = data[at]
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}.get(first, 0)
    if not size or at + 1 + size > len(data):
        raise StreamBroken("an event is shorter than its own lengths say")
    return int.from_bytes(data[at + 1 : at + 1 + size], "little"), at + 1 + size
