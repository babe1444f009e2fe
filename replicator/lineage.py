"""Lineage: whether a server's binlog is the one that the mirror was read from, or goes on where that one ended.

GTIDs and offsets are numbers, and after a reset, or on a server that was restored, the same numbers can name other
transactions. So the head of the binlog file that a position lies in is remembered and compared, and before another server
is followed its binlog is read from the last transaction that the mirror has. Owns short dump connections of its own, which
never wait for new events. Decides nothing; servers.py does.

Source: MySQL internals, "COM_BINLOG_DUMP" and "Binlog Event"; MariaDB knowledge base, "Replication Protocol".
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import pymysql

from replicator.events import CHECKSUM_BYTES, HEADER_BYTES, Event, parse_checksum_algorithm
from replicator.gtids import dump_command, parse_tagged
from replicator.position import GtidSet

_COM_BINLOG_DUMP = 0x12
_NON_BLOCKING = 0x01
_FIRST_POS = 4
_END, _LONGEST_END = 0xFE, 9
_PACKET_HEADER_BYTES = 4
_BEGINNINGS = frozenset({Event.GTID, Event.ANONYMOUS_GTID, Event.GTID_TAGGED, Event.MARIADB_GTID})
_LISTS = frozenset({Event.PREVIOUS_GTIDS, Event.MARIADB_GTID_LIST})
# A first transaction comes within a few events; where a server logs something else there the head is shorter.
_MOST_EVENTS = 20


def read_head(connection: pymysql.Connection[Any], file: str) -> str:
    """What tells a binlog file from another of the same name: when it was begun, what came before it, its first transaction.

    Args:
        connection: used up by this; so it is for find_strays.

    Returns:
        Up to three words; the third one comes with the file's first transaction. See is_same_head.
    """
    words: list[str] = []
    command = struct.pack("<BIHI", _COM_BINLOG_DUMP, _FIRST_POS, _NON_BLOCKING, 0) + file.encode()
    for count, (kind, time_s, body) in enumerate(_dump(connection, command)):
        if kind == Event.FORMAT_DESCRIPTION and not words and time_s:
            words.append(str(time_s))
        elif kind in _LISTS and len(words) == 1:
            words.append(f"{zlib.crc32(body):08x}")
        elif kind in _BEGINNINGS and words:
            # some servers log no list in their first file
            words += ["-"] * (2 - len(words))
            words.append(f"{time_s}:{zlib.crc32(body):08x}")
        if len(words) == 3 or count > _MOST_EVENTS:
            break
    return " ".join(words)


def is_same_head(saved: str, found: str) -> bool:
    """Whether two heads can be of one file; a shorter one was read before the file had more."""
    return all(a == b for a, b in zip(saved.split(), found.split(), strict=False))


def is_whole_head(head: str) -> bool:
    """Whether a head names the file's first transaction."""
    return len(head.split()) == 3


def find_strays(connection: pymysql.Connection[Any], gtids: GtidSet, last: str) -> list[str]:
    """Transactions that a MySQL server logged before the last one that the mirror has, and that the mirror does not have.

    Such a transaction would come too late: what it changed may have been changed again by what the mirror has. Those of the
    same origin with higher numbers are none: a replica with several appliers may log them in another order.

    Args:
        gtids: what the mirror has. last: the GTID in it that was applied last.
    """
    origin, _, number = last.rpartition(":")
    strays: list[str] = []
    asked = gtids.minus(GtidSet().add([(origin, int(number), int(number))]))
    command = dump_command(0, asked, waits=False)[_PACKET_HEADER_BYTES:]
    for kind, _, body in _dump(connection, command):
        found = _gtid_of(kind, body)
        if found is None:
            continue
        if found == (origin, int(number)):
            break
        if found[0] != origin:
            strays.append(f"{found[0]}:{found[1]}")
    return strays


def _gtid_of(kind: int, body: bytes) -> tuple[str, int] | None:
    if kind == Event.GTID_TAGGED:
        tagged = parse_tagged(body)
        return str(uuid.UUID(bytes=tagged.uuid)) + (f":{tagged.tag}" if tagged.tag else ""), tagged.number
    if kind == Event.GTID:
        return str(uuid.UUID(bytes=body[1:17])), int(struct.unpack_from("<Q", body, 17)[0])
    return None


def _dump(connection: pymysql.Connection[Any], command: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, time in seconds since 1970 and body of every event, up to the end of the binlog."""
    # A replica that does not say what it knows is refused, or gets other events (MariaDB).
    connection.query("SET @master_binlog_checksum = 'CRC32', @source_binlog_checksum = 'CRC32', @mariadb_slave_capability = 4")
    connection._execute_command(command[0], command[1:])
    has_checksums = True
    while True:
        packet: Any = connection._read_packet()
        data = packet.get_all_data()
        if data[0] == _END and len(data) < _LONGEST_END:
            return
        event = data[1:]
        kind = event[4]
        body = event[HEADER_BYTES:]
        if kind == Event.FORMAT_DESCRIPTION:
            has_checksums = parse_checksum_algorithm(body)
        elif has_checksums:
            body = body[:-CHECKSUM_BYTES]
        yield kind, int(struct.unpack_from("<I", event)[0]), body
