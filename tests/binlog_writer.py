"""Writes binlog events and packets, byte by byte as MySQL 9.7 and MariaDB 10.11 lay them out, for tests of the decoder.

Source: MySQL source documentation, "Binlog Event" and "Table_map_event"; MariaDB knowledge base, "Replication Protocol".
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterable, Sequence

from replicator.events import Event

UUID = bytes(range(16))
COMMIT_US = 1_700_000_000_123_456
TIME_S = 1_700_000_000
SERVER_ID = 77
LONGEST_PAYLOAD = 0xFFFFFF


def pack_integer(value: int) -> bytes:
    """A length-encoded integer."""
    if value < 251:
        return bytes([value])
    if value < 1 << 16:
        return b"\xfc" + struct.pack("<H", value)
    if value < 1 << 24:
        return b"\xfd" + struct.pack("<I", value)[:3]
    return b"\xfe" + struct.pack("<Q", value)


def pack_bitmap(bits: Sequence[bool], *, high_first: bool = False) -> bytes:
    """Bits in whole bytes, the first in the lowest place, or in the highest."""
    out = bytearray((len(bits) + 7) // 8)
    for i, bit in enumerate(bits):
        if bit:
            out[i // 8] |= 0x80 >> i % 8 if high_first else 1 << i % 8
    return bytes(out)


@dataclasses.dataclass(frozen=True)
class Field:
    """A column as a TABLE_MAP event describes it.

    Attributes:
        type: the type number. metadata: its bytes in the event.
        collation: for text, and for ENUM and SET. labels: in the column's character set.
    """

    name: str
    type: int
    metadata: bytes = b""
    unsigned: bool = False
    collation: int = 0
    labels: tuple[bytes, ...] = ()


NUMERIC = frozenset({1, 2, 3, 4, 5, 8, 9, 246})
TEXT = frozenset({15, 252, 253, 254})


def write_table_map(
    table_id: int, database: str, table: str, fields: Sequence[Field], key: Sequence[int] = (), *, full: bool = True
) -> bytes:
    """The body of a TABLE_MAP event, with the optional metadata that binlog_row_metadata = FULL adds."""
    body = struct.pack("<Q", table_id)[:6] + b"\1\0"
    for name in (database, table):
        body += bytes([len(name.encode())]) + name.encode() + b"\0"
    body += pack_integer(len(fields)) + bytes(field.type for field in fields)
    metadata = b"".join(field.metadata for field in fields)
    body += pack_integer(len(metadata)) + metadata + pack_bitmap([True] * len(fields))
    return body + (write_optional_metadata(fields, key) if full else b"")


def write_optional_metadata(fields: Sequence[Field], key: Sequence[int]) -> bytes:
    """Signs, character sets, names, labels and the key, each as type, length and value."""
    real = [field.metadata[0] if field.type == 254 and field.metadata[0] in (247, 248) else field.type for field in fields]
    numbers = [field.unsigned for field, type_ in zip(fields, real, strict=True) if type_ in NUMERIC]
    parts: list[tuple[int, bytes]] = [(1, pack_bitmap(numbers, high_first=True))]
    texts = [field.collation for field, type_ in zip(fields, real, strict=True) if type_ in TEXT]
    choices = [field.collation for field, type_ in zip(fields, real, strict=True) if type_ in (247, 248)]
    parts.append((3, b"".join(map(pack_integer, texts))))
    parts.append((4, b"".join(pack_integer(len(f.name.encode())) + f.name.encode() for f in fields)))
    for number, wanted in ((5, 248), (6, 247)):
        labels = [field.labels for field, type_ in zip(fields, real, strict=True) if type_ == wanted]
        parts.append((number, b"".join(_write_labels(each) for each in labels)))
    parts.append((8, b"".join(map(pack_integer, key))))
    parts.append((11, b"".join(map(pack_integer, choices))))
    return b"".join(bytes([number]) + pack_integer(len(value)) + value for number, value in parts if value)


def _write_labels(labels: Sequence[bytes]) -> bytes:
    return pack_integer(len(labels)) + b"".join(pack_integer(len(label)) + label for label in labels)


def write_image(values: Sequence[bytes | None]) -> bytes:
    """A row image; each value as it lies in it, its length prefix included."""
    return pack_bitmap([value is None for value in values]) + b"".join(value for value in values if value is not None)


def write_rows(
    table_id: int, columns: int, images: Iterable[bytes], *, update: bool = False, version: int = 2,
    present: Sequence[bool] | None = None, extra: bytes = b"",
) -> bytes:  # fmt: skip
    """The body of a rows event; for an update the images before and after in turn."""
    body = struct.pack("<Q", table_id)[:6] + b"\1\0"
    if version == 2:
        body += struct.pack("<H", 2 + len(extra)) + extra
    bitmap = pack_bitmap(present if present is not None else [True] * columns)
    return body + pack_integer(columns) + bitmap * (2 if update else 1) + b"".join(images)


def write_gtid(number: int, *, uuid: bytes = UUID, commit_us: int = COMMIT_US, original_us: int | None = None) -> bytes:
    """The body of MySQL's GTID event."""
    body = b"\1" + uuid + struct.pack("<q", number) + b"\2" + struct.pack("<qq", number - 1, number)
    stamp = commit_us | (0 if original_us is None else 1 << 55)
    body += struct.pack("<Q", stamp)[:7]
    if original_us is not None:
        body += struct.pack("<Q", original_us)[:7]
    return body + pack_integer(300) + struct.pack("<I", 90700)


def write_mariadb_gtid(number: int, *, domain: int = 0, flags: int = 0) -> bytes:
    """The body of MariaDB's GTID event; flag 1: a statement that stands alone."""
    return struct.pack("<QIB", number, domain, flags) + bytes(6)


def write_query(text: str, database: str = "", status: bytes = b"\0\0\0\0\0") -> bytes:
    """The body of a QUERY event."""
    name = database.encode()
    return struct.pack("<IIBHH", 9, 0, len(name), 0, len(status)) + status + name + b"\0" + text.encode()


def write_format_description(*, checksum: bool = True) -> bytes:
    """The body of a FORMAT_DESCRIPTION event up to its checksum field."""
    return struct.pack("<H50sIB", 4, b"9.7.0", 0, 19) + bytes(42) + bytes([checksum])


class Binlog:
    """Events one after another, framed as the dump connection sends them.

    Args:
        checksum: whether events carry a CRC32.
        pos: the offset of the first event in its file.
    """

    def __init__(self, *, checksum: bool = True, pos: int = 4) -> None:
        self.checksum, self.pos = checksum, pos
        self.events: list[bytes] = []

    def add(self, kind: int, body: bytes, *, time_s: int = TIME_S, pos: int | None = None, flags: int = 0) -> bytes:
        """Add an event; its bytes. pos: the offset behind it, 0 for an event that is in no file."""
        # A FORMAT_DESCRIPTION has a checksum always, because it is what says whether the others have one.
        has_checksum = self.checksum or kind == Event.FORMAT_DESCRIPTION
        size = 19 + len(body) + (4 if has_checksum else 0)
        self.pos += size if pos is None else 0
        end = (self.pos if pos is None else pos) & 0xFFFFFFFF
        event = struct.pack("<IBIIIH", time_s, kind, SERVER_ID, size, end, flags) + body
        if has_checksum:
            event += struct.pack("<I", zlib.crc32(event))
        self.events.append(event)
        return event

    def add_transaction(self, number: int, bodies: Sequence[tuple[int, bytes]], *, commit_us: int = COMMIT_US) -> None:
        """Add MySQL's GTID and BEGIN, these events, and XID."""
        self.add(Event.GTID, write_gtid(number, commit_us=commit_us))
        self.add(Event.QUERY, write_query("BEGIN"))
        for kind, body in bodies:
            self.add(kind, body)
        self.add(Event.XID, struct.pack("<Q", number))

    def stream(self) -> bytes:
        """All events as packets."""
        return b"".join(write_packets(b"\0" + event, n) for n, event in enumerate(self.events))


def write_packets(payload: bytes, number: int = 0) -> bytes:
    """A payload in as many packets as it needs; one of the greatest length is always followed by another."""
    out = []
    while True:
        part, payload = payload[:LONGEST_PAYLOAD], payload[LONGEST_PAYLOAD:]
        out.append(struct.pack("<I", len(part))[:3] + bytes([number % 256]) + part)
        number += 1
        if len(part) < LONGEST_PAYLOAD:
            return b"".join(out)
