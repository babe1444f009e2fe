"""A table of two integers in a binlog, for tests that are about the events around its rows."""

import struct

import zstandard

from replicator.events import Event
from tests.binlog_writer import (
    Binlog,
    Field,
    pack_integer,
    write_image,
    write_query,
    write_rows,
    write_table_map,
)
from tests.decoding import Tables, Walked, make_stream, walk

MAP = write_table_map(7, "plant", "readings", (Field("id", 3), Field("n", 3)), [0])


def insert(*numbers: int, version: int = 2) -> tuple[int, bytes]:
    """A rows event of inserts."""
    images = [write_image([struct.pack("<i", number), struct.pack("<i", 0)]) for number in numbers]
    return (Event.WRITE_ROWS if version == 2 else Event.WRITE_ROWS_V1), write_rows(7, 2, images, version=version)


def walk_events(binlog: Binlog, *, tables: Tables | None = None, **options: object) -> Walked:
    """What comes out of these events with the table wanted."""
    return walk(make_stream([binlog.stream()], tables or Tables({"readings": (0,)}), checksum=binlog.checksum, **options))


def keys(walked: Walked) -> list[int]:
    """The numbers of the rows that came out, in order."""
    return [struct.unpack("!i", change.key[0] or b"")[0] for change in walked.changes]


def transaction(*numbers: int) -> list[tuple[int, bytes]]:
    """The events of a transaction behind its GTID."""
    return [
        (Event.QUERY, write_query("BEGIN")),
        (Event.TABLE_MAP, MAP),
        insert(*numbers),
        (Event.XID, struct.pack("<Q", 1)),
    ]


def bare_events(*bodies: tuple[int, bytes]) -> bytes:
    """Events without packets and checksums, as they lie in a payload."""
    binlog = Binlog(checksum=False)
    for kind, body in bodies:
        binlog.add(kind, body, pos=0)
    return b"".join(binlog.events)


def write_payload(data: bytes, *, method: int = 0, size: int | None = None) -> bytes:
    """The body of a TRANSACTION_PAYLOAD event."""
    packed = zstandard.ZstdCompressor().compress(data) if method == 0 else data
    fields = [(2, method), (3, len(data) if size is None else size), (1, len(packed))]
    head = b"".join(bytes([kind]) + pack_integer(len(pack_integer(value))) + pack_integer(value) for kind, value in fields)
    return head + b"\0" + packed
