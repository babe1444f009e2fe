"""Packed events on captured and hand-made bytes: payloads of whole transactions, and MariaDB's compressed events."""

import zlib

import pytest

from replicator.errors import StreamBroken
from replicator.events import Event
from replicator.packets import PADDING_BYTES
from replicator.payload import open_event, open_payload
from tests.binlog_writer import (
    LONGEST_PAYLOAD,
    Binlog,
    write_gtid,
    write_image,
    write_mariadb_gtid,
    write_query,
    write_rows,
)
from tests.pairs import MAP, bare_events, insert, keys, transaction, walk_events, write_payload

# From MySQL 9.7: BEGIN, table map, one insert of two rows, XID, all compressed.
PAYLOAD = bytes.fromhex(
    "0201000301c60101910028b52ffd20c6450400a2861825902bc30140e9bb725aca99ef74ec05cc8f10847f2f5a7f84893b904b8de2fdf9b7bda54c01ff"
    "7f0741e0f0dffc7a2f34141a0e66b3108a0a60937dad1ef189b3f28e8354aaa24c240ef2f433fc1884b9ac80cbbce089e78fdb1181e7c3a854aa0a1000"
    "a004c4511582256f4f2b411f305656964173e0c211b6e636b2ac07c403230fc00b"
)


def read_all(buffer: object) -> bytes:
    """Everything that a buffer unpacks, read event by event."""
    out = b""
    while buffer.read(19):
        out += buffer.data[buffer.at : buffer.end].tobytes()
        buffer.at = buffer.end
    return out


def test_a_captured_payload() -> None:
    """The events that the server packed come out, with no byte too many."""
    data = read_all(open_payload(PAYLOAD))
    kinds, at = [], 0
    while at < len(data):
        kinds.append(data[at + 4])
        at += int.from_bytes(data[at + 9 : at + 13], "little")
    assert kinds == [Event.QUERY, Event.TABLE_MAP, Event.WRITE_ROWS, Event.XID]
    assert at == len(data) == 198


@pytest.mark.parametrize("method", [0, 255])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_packed_transaction_between_others(method: int, checksum: bool) -> None:
    """Rows, GTIDs and the position are those of the same transactions unpacked; checksums count again behind it."""
    binlog = Binlog(checksum=checksum)
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), insert(1)])
    binlog.add(Event.GTID, write_gtid(2))
    binlog.add(Event.TRANSACTION_PAYLOAD, write_payload(bare_events(*transaction(*range(2, 5000))), method=method))
    end = binlog.pos
    walked = walk_events(binlog)
    assert keys(walked) == list(range(1, 5000))
    assert [number for number, _ in walked.transactions] == [1, 2]
    assert walked.position is not None
    assert walked.position.pos == end
    binlog.add_transaction(3, [(Event.TABLE_MAP, MAP), insert(9000)])
    assert keys(walk_events(binlog))[-1] == 9000
    if checksum:
        binlog.events[-2] = binlog.events[-2][:-1] + bytes([binlog.events[-2][-1] ^ 1])
        with pytest.raises(StreamBroken, match="checksum"):
            walk_events(binlog)


def test_a_payload_is_unpacked_a_little_at_a_time() -> None:
    """The buffer stays small beside what is packed; an event that is larger still comes whole."""
    events = bare_events(*[insert(*range(1000)) for _ in range(3000)])
    buffer = open_payload(write_payload(events))
    unpacked = 0
    while buffer.read(20_000):
        assert len(buffer.data) < 2 << 20
        taken = (buffer.end - buffer.at) // 2 + 1
        unpacked += taken
        buffer.at += taken
    assert unpacked + buffer.end - buffer.at == len(events)
    big = bytes(LONGEST_PAYLOAD + 1000)
    whole = open_payload(write_payload(big))
    while whole.end - whole.at < len(big):
        assert whole.read(len(big))
    assert len(whole.data) < len(big) + (2 << 20) + PADDING_BYTES


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\0", PAYLOAD[:-1], PAYLOAD + b"x", PAYLOAD[:40] + bytes(40) + PAYLOAD[80:], b"\2\1\7" + PAYLOAD[3:],
        write_payload(bytes(100), size=99), write_payload(bytes(100), size=101),
        write_payload(bytes(30), method=255, size=0)[:-1],
    ],
)  # fmt: skip
def test_a_damaged_payload(body: bytes) -> None:
    """Every damage stops the stream with its place; nothing of the transaction counts."""
    binlog = Binlog()
    binlog.add(Event.GTID, write_gtid(1))
    binlog.add(Event.TRANSACTION_PAYLOAD, body)
    with pytest.raises(StreamBroken):
        walk_events(binlog)


def test_a_payload_that_ends_inside_an_event() -> None:
    """The last event is cut."""
    binlog = Binlog()
    binlog.add(Event.GTID, write_gtid(1))
    binlog.add(Event.TRANSACTION_PAYLOAD, write_payload(bare_events(*transaction(1))[:-3]))
    with pytest.raises(StreamBroken, match="inside an event"):
        walk_events(binlog)


def test_a_payload_inside_a_payload() -> None:
    """No server writes that."""
    binlog = Binlog()
    inner = bare_events((Event.TRANSACTION_PAYLOAD, write_payload(bare_events(*transaction(1)))))
    binlog.add(Event.TRANSACTION_PAYLOAD, write_payload(inner))
    with pytest.raises(StreamBroken, match="another"):
        walk_events(binlog)


def compress(data: bytes) -> bytes:
    """MariaDB's packing of a part of an event."""
    size = len(data).to_bytes((len(data).bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(size)]) + size + zlib.compress(data)


def test_mariadb_compressed_events() -> None:
    """The statement of a QUERY event and the images of rows events are packed, the rest is as ever."""
    binlog = Binlog()
    binlog.add(Event.MARIADB_GTID, write_mariadb_gtid(1))
    binlog.add(Event.TABLE_MAP, MAP)
    _, body = insert(*range(300), version=1)
    binlog.add(Event.MARIADB_WRITE_ROWS_COMPRESSED_V1, body[:10] + compress(body[10:]))
    update = write_rows(7, 2, [write_image([bytes(4), bytes(4)]), write_image([b"\5\0\0\0", bytes(4)])], update=True, version=1)
    binlog.add(Event.MARIADB_UPDATE_ROWS_COMPRESSED_V1, update[:11] + compress(update[11:]))
    binlog.add(Event.XID, bytes(8))
    query = write_query("ALTER TABLE readings ADD x INT", "plant")
    binlog.add(Event.MARIADB_GTID, write_mariadb_gtid(2, flags=1))
    binlog.add(
        Event.MARIADB_QUERY_COMPRESSED, query.replace(b"ALTER", b"\xff")[: query.index(b"ALTER")] + compress(b"ALTER TABLE x")
    )
    walked = walk_events(binlog, mariadb=True)
    assert keys(walked) == [*range(300), 5]
    assert walked.statements == ["ALTER TABLE x"]


@pytest.mark.parametrize(
    "packed", [b"", b"\x00", b"\x91\x05xxxxx", b"\x81\x05xxxxx", compress(b"12345")[:-1], b"\x81\x04" + compress(b"12345")[2:]]
)
def test_damaged_compressed_events(packed: bytes) -> None:
    """Unknown methods, cut streams and wrong sizes are told."""
    _, body = insert(1, version=1)
    event = bare_events((Event.MARIADB_WRITE_ROWS_COMPRESSED_V1, body[:10] + packed))
    with pytest.raises(StreamBroken):
        open_event(event)
