"""A binlog of the table plant.readings, made by hand."""

import struct

from replicator.events import Event
from tests.binlog_writer import (
    COMMIT_US,
    Binlog,
    Field,
    write_format_description,
    write_image,
    write_rows,
    write_table_map,
)
from tests.decoding import Tables, Walked, make_stream, walk

FIELDS = (
    Field("id", 3),
    Field("name", 15, b"\x50\0", collation=45),
    Field("amount", 246, b"\x0a\x02"),
    Field("at", 18, b"\x03"),
)
MAP = write_table_map(7, "plant", "readings", FIELDS, [0])


def image(number: int, name: str | None = "valve") -> bytes:
    """A row image of FIELDS."""
    text = None if name is None else bytes([len(name.encode())]) + name.encode()
    packed = 0x8000000000 + ((2024 * 13 + 2 << 5 | 29) << 17 | 23 << 12 | 59 << 6 | 58)
    return write_image([struct.pack("<i", number), text, b"\x80\0\0\x0c\x22", packed.to_bytes(5, "big") + b"\x13\x8d"])


def insert(*images: bytes, version: int = 2) -> tuple[int, bytes]:
    """A rows event of inserts."""
    kind = Event.WRITE_ROWS if version == 2 else Event.WRITE_ROWS_V1
    return kind, write_rows(7, len(FIELDS), images, version=version)


def simple_binlog(*, checksum: bool = True) -> Binlog:
    """A file's first events, then three transactions: inserts, an update, a delete."""
    binlog = Binlog(checksum=checksum)
    binlog.add(Event.ROTATE, struct.pack("<Q", 4) + b"binlog.000002", pos=0, flags=0x20)
    binlog.add(Event.FORMAT_DESCRIPTION, write_format_description(checksum=checksum))
    binlog.add(Event.PREVIOUS_GTIDS, bytes(8))
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), insert(image(1), image(2, None))])
    update = write_rows(7, len(FIELDS), [image(2), image(20, "pümp")], update=True)
    binlog.add_transaction(2, [(Event.TABLE_MAP, MAP), (Event.UPDATE_ROWS, update)], commit_us=COMMIT_US + 1)
    delete = write_rows(7, len(FIELDS), [image(1)])
    binlog.add_transaction(3, [(Event.TABLE_MAP, MAP), (Event.DELETE_ROWS, delete)], commit_us=COMMIT_US + 2)
    return binlog


def walk_bytes(data: bytes, **options: object) -> Walked:
    """What comes out of these bytes with the table wanted."""
    return walk(make_stream([data], Tables({"readings": (0,)}), **options))


def key(number: int) -> tuple[bytes, ...]:
    """The key fields of a row."""
    return (struct.pack("!i", number),)
