"""Binlog events: their types, which of them are known, and the layout of the rare ones.

Source: MySQL internals, "Binlog Event"; MariaDB knowledge base, "Replication Protocol".
Pure: parses bytes, never reads any. The frequent events (rows, table map, GTID, XID) are walked in decode.py.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from replicator.errors import StreamBroken

_FILE = re.compile(r"[^\x00-\x1f/\ufffd]+\.[0-9]+")
_BEYOND_ANY_FILE = 1 << 62
HEADER_BYTES = 19
CHECKSUM_BYTES = 4


class Event(IntEnum):
    """Event types as MySQL 9.7 and MariaDB 10.11 number them."""

    QUERY = 2
    STOP = 3
    ROTATE = 4
    INTVAR = 5
    RAND = 13
    USER_VAR = 14
    FORMAT_DESCRIPTION = 15
    XID = 16
    BEGIN_LOAD_QUERY = 17
    EXECUTE_LOAD_QUERY = 18
    TABLE_MAP = 19
    WRITE_ROWS_V1 = 23
    UPDATE_ROWS_V1 = 24
    DELETE_ROWS_V1 = 25
    INCIDENT = 26
    HEARTBEAT = 27
    IGNORABLE = 28
    ROWS_QUERY = 29
    WRITE_ROWS = 30
    UPDATE_ROWS = 31
    DELETE_ROWS = 32
    GTID = 33
    ANONYMOUS_GTID = 34
    PREVIOUS_GTIDS = 35
    TRANSACTION_CONTEXT = 36
    VIEW_CHANGE = 37
    XA_PREPARE = 38
    PARTIAL_UPDATE_ROWS = 39
    TRANSACTION_PAYLOAD = 40
    HEARTBEAT_V2 = 41
    GTID_TAGGED = 42
    MARIADB_ANNOTATE_ROWS = 160
    MARIADB_BINLOG_CHECKPOINT = 161
    MARIADB_GTID = 162
    MARIADB_GTID_LIST = 163
    MARIADB_START_ENCRYPTION = 164
    MARIADB_QUERY_COMPRESSED = 165
    MARIADB_WRITE_ROWS_COMPRESSED_V1 = 166
    MARIADB_UPDATE_ROWS_COMPRESSED_V1 = 167
    MARIADB_DELETE_ROWS_COMPRESSED_V1 = 168
    MARIADB_WRITE_ROWS_COMPRESSED = 169
    MARIADB_UPDATE_ROWS_COMPRESSED = 170
    MARIADB_DELETE_ROWS_COMPRESSED = 171


# These say nothing about rows. INTVAR, RAND and USER_VAR only ever precede a statement, and a statement that changes
# rows is refused by itself.
HARMLESS = frozenset(
    {
        Event.STOP,
        Event.INTVAR,
        Event.RAND,
        Event.USER_VAR,
        Event.HEARTBEAT,
        Event.HEARTBEAT_V2,
        Event.IGNORABLE,
        Event.ROWS_QUERY,
        Event.PREVIOUS_GTIDS,
        Event.TRANSACTION_CONTEXT,
        Event.VIEW_CHANGE,
        Event.MARIADB_ANNOTATE_ROWS,
        Event.MARIADB_BINLOG_CHECKPOINT,
        Event.MARIADB_GTID_LIST,
        Event.MARIADB_START_ENCRYPTION,
    }
)

# Passing over these would lose rows.
UNSUPPORTED = {
    Event.INCIDENT: "the server says that its binlog may lack transactions (INCIDENT); copy the tables afresh",
    Event.XA_PREPARE: "an XA transaction was prepared that never began",
    Event.BEGIN_LOAD_QUERY: "LOAD DATA was logged as a statement; set binlog_format = ROW",
    Event.EXECUTE_LOAD_QUERY: "LOAD DATA was logged as a statement; set binlog_format = ROW",
}


@dataclass(frozen=True)
class Rotate:
    """The stream goes on in another file."""

    file: str
    pos: int


@dataclass(frozen=True)
class Query:
    """A statement as text: BEGIN, COMMIT, DDL, or a change of rows logged as a statement."""

    database: str
    text: str


def parse_rotate(body: bytes) -> Rotate:
    """The body of a ROTATE event without its checksum: 8 bytes offset, then the file's name to the end.

    Raises:
        StreamBroken: it does not name a binlog file, NAME.NUMBER.
    """
    if len(body) < 9:
        raise StreamBroken("a ROTATE event is too short")
    file = body[8:].decode("utf-8", "replace")
    pos = int(struct.unpack_from("<Q", body)[0])
    if not _FILE.fullmatch(file) or pos >= _BEYOND_ANY_FILE:
        raise StreamBroken(f"a ROTATE event names {file!r} at {pos}, which is not a place in a binlog file")
    return Rotate(file, pos)


def parse_checksum_algorithm(body: bytes) -> bool:
    """Whether the events after this FORMAT_DESCRIPTION carry a CRC32.

    Args:
        body: the event after its header, its own checksum field included. Since MySQL 5.6.1 and MariaDB 5.3 the last
            five bytes are the algorithm (0 none, 1 CRC32) and the checksum field, which is there in both cases.
    """
    if len(body) < 2 + 50 + 4 + 1 + 5:
        raise StreamBroken("a FORMAT_DESCRIPTION event is too short")
    version, header_bytes = int.from_bytes(body[:2], "little"), body[56]
    if (version, header_bytes) != (4, HEADER_BYTES):
        raise StreamBroken(f"binlog version {version} with headers of {header_bytes} bytes is not known")
    algorithm = body[-5]
    if algorithm not in (0, 1):
        raise StreamBroken(f"binlog checksum algorithm {algorithm} is not known")
    return algorithm == 1


def parse_error(packet: bytes) -> tuple[int, str]:
    """Number and text of an error that the server sends in the place of an event.

    Args:
        packet: with its header of four bytes; the end of a long one may be missing.

    Source: MySQL internals, "ERR_Packet".
    """
    body = packet[5 : 4 + int.from_bytes(packet[:3], "little")]
    # since protocol 4.1 an SQLSTATE comes before the text
    text = body[8:] if body[2:3] == b"#" else body[2:]
    return int.from_bytes(body[:2], "little"), text.decode("utf-8", "replace")


def is_intact(event: bytes) -> bool:
    """Whether the last four bytes of a whole event are its CRC32."""
    return zlib.crc32(event[:-CHECKSUM_BYTES]) == int.from_bytes(event[-CHECKSUM_BYTES:], "little")


def parse_query(body: bytes) -> Query:
    """The body of a QUERY event without its checksum.

    Layout: thread 4, seconds 4, database length 1, error 2, status variables' length 2, variables, database, NUL, text.
    """
    if len(body) < 13:
        raise StreamBroken("a QUERY event is too short")
    database_bytes = body[8]
    status_bytes = struct.unpack_from("<H", body, 11)[0]
    start = 13 + status_bytes
    end = start + database_bytes
    if len(body) < end + 1:
        raise StreamBroken("a QUERY event is shorter than its own lengths say")
    # The text is in the session's character set; only its keywords and names are looked at.
    return Query(body[start:end].decode("utf-8", "replace"), body[end + 1 :].decode("utf-8", "replace"))
