"""Rare events on captured and hand-made bytes: packed, tagged, held back, rolled back."""

import struct
import zlib

import pytest
import zstandard

from replicator import decode
from replicator.changes import Batch
from replicator.errors import PartialImage, StreamBroken, TableProblem, TransactionUnknown, UnsupportedEvent
from replicator.events import Event
from replicator.gtids import TaggedGtid, dump_command, encode_gtids, parse_tagged
from replicator.items import Idle
from replicator.packets import PADDING_BYTES
from replicator.payload import open_event, open_payload
from replicator.position import GtidSet
from replicator.xa import Held, parse_prepare, parse_statement
from tests.binlog_writer import (
    COMMIT_US,
    LONGEST_PAYLOAD,
    Binlog,
    Field,
    pack_integer,
    write_gtid,
    write_image,
    write_mariadb_gtid,
    write_query,
    write_rows,
    write_table_map,
)
from tests.decoding import FIRST_SEQ, Tables, Walked, make_stream, walk
from warehouse.settings import ReplicatorSettings

MAP = write_table_map(7, "plant", "readings", (Field("id", 3), Field("n", 3)), [0])
# From MySQL 9.7: GTID ...:blue:1.
TAGGED = bytes.fromhex(
    "027600000002f902e502fd03990299037e22c5036102510204f1030000000204040608626c756508000a040c7fc30a66c8d76006107d041283120b"
)
UUID_TEXT = "beb9ffa6-e63f-11f1-9894-02fc00000001"
# From MySQL 9.7: BEGIN, table map, one insert of two rows, XID, all compressed.
PAYLOAD = bytes.fromhex(
    "0201000301c60101910028b52ffd20c6450400a2861825902bc30140e9bb725aca99ef74ec05cc8f10847f2f5a7f84893b904b8de2fdf9b7bda54c01ff"
    "7f0741e0f0dffc7a2f34141a0e66b3108a0a60937dad1ef189b3f28e8354aaa24c240ef2f433fc1884b9ac80cbbce089e78fdb1181e7c3a854aa0a1000"
    "a004c4511582256f4f2b411f305656964173e0c211b6e636b2ac07c403230fc00b"
)


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


def read_all(buffer: object) -> bytes:
    """Everything that a buffer unpacks, read event by event."""
    out = b""
    while buffer.read(19):
        out += buffer.data[buffer.at : buffer.end].tobytes()
        buffer.at = buffer.end
    return out


def transaction(*numbers: int) -> list[tuple[int, bytes]]:
    """The events of a transaction behind its GTID."""
    return [
        (Event.QUERY, write_query("BEGIN")),
        (Event.TABLE_MAP, MAP),
        insert(*numbers),
        (Event.XID, struct.pack("<Q", 1)),
    ]


# ------------------------------------------------------------------------------------------------ payload
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


# ------------------------------------------------------------------------------------------------ GTIDs
def test_a_captured_tagged_gtid() -> None:
    """All parts of the event are read."""
    gtid = parse_tagged(TAGGED)
    assert gtid == TaggedGtid(bytes.fromhex(UUID_TEXT.replace("-", "")), "blue", 1, 1795329756629699)


@pytest.mark.parametrize("cut", range(0, len(TAGGED) - 1, 5))
def test_a_cut_tagged_gtid(cut: int) -> None:
    """A short event is told."""
    with pytest.raises((StreamBroken, UnsupportedEvent)):
        parse_tagged(TAGGED[:cut])


def test_tagged_transactions_keep_their_origin() -> None:
    """Tags come and go from one transaction to the next; each counts its own numbers."""
    binlog = Binlog()
    server = bytes.fromhex(UUID_TEXT.replace("-", ""))
    events = [(Event.GTID, write_gtid(7, uuid=server)), (Event.GTID_TAGGED, TAGGED), (Event.GTID, write_gtid(8, uuid=server))]
    for n, (kind, body) in enumerate(events):
        binlog.add(kind, body)
        for each in transaction(n):
            binlog.add(*each)
    walked = walk_events(binlog)
    assert keys(walked) == [0, 1, 2]
    assert walked.position is not None
    assert str(walked.position.gtids) == f"{UUID_TEXT}:7-8,{UUID_TEXT}:blue:1"
    assert walked.transactions[1] == (1, 1795329756629699)


def test_the_dump_command() -> None:
    """Without tags the set is written in the old form, with one in the new; both end their ranges one behind the last."""
    plain = GtidSet.parse(f"{UUID_TEXT}:1-5:8")
    server = bytes.fromhex(UUID_TEXT.replace("-", ""))
    ranges = struct.pack("<QQQQQ", 2, 1, 6, 8, 9)
    assert encode_gtids(plain) == struct.pack("<Q", 1) + server + ranges
    tagged = GtidSet.parse(f"{UUID_TEXT}:1-5:8:blue:3")
    head = bytes([1, 2, 0, 0, 0, 0, 0, 1])
    assert encode_gtids(tagged) == head + server + b"\0" + ranges + server + b"\x08blue" + struct.pack("<QQQ", 1, 3, 4)
    packet = dump_command(77, plain)
    assert len(packet) == 4 + int.from_bytes(packet[:3], "little")
    assert packet[3:5] == b"\0\x1e"


# ------------------------------------------------------------------------------------------------ XA
def write_prepare(name: bytes, *, one_phase: bool = False) -> bytes:
    """The body of an XA_PREPARE event."""
    return struct.pack("<BiII", one_phase, 1, len(name), 0) + name


def add_prepared(binlog: Binlog, gtid: int, name: bytes, *numbers: int, one_phase: bool = False) -> None:
    """Add an XA transaction up to its XA PREPARE."""
    xid = f"X'{name.hex()}',X'',1"
    binlog.add(Event.GTID, write_gtid(gtid))
    binlog.add(Event.QUERY, write_query(f"XA START {xid}"))
    binlog.add(Event.TABLE_MAP, MAP)
    binlog.add(*insert(*numbers))
    binlog.add(Event.QUERY, write_query(f"XA END {xid}"))
    binlog.add(Event.XA_PREPARE, write_prepare(name, one_phase=one_phase))


def add_decision(binlog: Binlog, gtid: int, verb: str, name: bytes) -> None:
    """Add XA COMMIT or XA ROLLBACK."""
    binlog.add(Event.GTID, write_gtid(gtid, commit_us=COMMIT_US + gtid))
    binlog.add(Event.QUERY, write_query(f"XA {verb} X'{name.hex()}',X'',1"))


def test_xa_rows_count_at_their_commit() -> None:
    """Held rows come with the number and the time of the decision, in the order of the decisions."""
    binlog = Binlog()
    add_prepared(binlog, 1, b"a", 10, 11)
    add_prepared(binlog, 2, b"b", 20)
    add_prepared(binlog, 3, b"c", 30)
    binlog.add_transaction(4, [(Event.TABLE_MAP, MAP), insert(1)])
    add_decision(binlog, 5, "COMMIT", b"c")
    add_decision(binlog, 6, "ROLLBACK", b"b")
    add_prepared(binlog, 7, b"d", 40, one_phase=True)
    add_decision(binlog, 8, "COMMIT", b"a")
    walked = walk_events(binlog)
    assert keys(walked) == [1, 30, 40, 10, 11]
    assert [change.seq for change in walked.changes] == list(range(FIRST_SEQ + 1, FIRST_SEQ + 6))
    assert walked.changes[1].commit_us == COMMIT_US + 5
    assert walked.position is not None
    assert str(walked.position.gtids).endswith(":1-8")
    assert walked.position.pos == binlog.pos


def test_xa_held_events_outlive_the_stream() -> None:
    """What one stream hands out to be kept is what another needs to carry out the commit."""
    first = Binlog()
    add_prepared(first, 1, b"a", *range(100))
    stream = make_stream([first.stream()], Tables({"readings": (0,)}))
    item = next(stream.items())
    assert isinstance(item, Batch)
    assert not len(item.changes)
    assert [change.xid for change in item.xa] == ["X'61',X'',1"]
    kept = Held()
    assert item.xa[0].held is not None
    for part in item.xa[0].held.parts():
        kept.append(part)
    second = Binlog()
    add_decision(second, 2, "COMMIT", b"a")
    assert keys(walk_events(second, prepared={"X'61',X'',1": kept})) == list(range(100))


def test_xa_with_a_payload_and_with_rollbacks() -> None:
    """A whole XA transaction may be packed, and parts of it taken back."""
    xid = "X'61',X'',1"
    events = bare_events(
        (Event.QUERY, write_query(f"XA START {xid}")), (Event.TABLE_MAP, MAP), insert(1),
        (Event.QUERY, write_query("SAVEPOINT `s`")), (Event.TABLE_MAP, MAP), insert(2),
        (Event.QUERY, write_query("ROLLBACK TO `s`")),
        (Event.TABLE_MAP, MAP), insert(3), (Event.QUERY, write_query(f"XA END {xid}")), (Event.XA_PREPARE, write_prepare(b"a")),
    )  # fmt: skip
    binlog = Binlog()
    binlog.add(Event.GTID, write_gtid(1))
    binlog.add(Event.TRANSACTION_PAYLOAD, write_payload(events))
    add_decision(binlog, 2, "COMMIT", b"a")
    assert keys(walk_events(binlog)) == [1, 3]


def test_xa_commit_of_an_unknown_transaction() -> None:
    """Its rows are lost to the stream, so no table can be relied on."""
    binlog = Binlog()
    add_decision(binlog, 1, "COMMIT", b"z")
    add_decision(binlog, 2, "ROLLBACK", b"y")
    tables = Tables({"readings": (0,)})
    walked = walk_events(binlog, tables=tables)
    assert [type(problem) for _, problem in tables.rejected] == [TransactionUnknown]
    assert walked.position is not None
    assert str(walked.position.gtids).endswith(":1-2")


def test_mariadb_xa() -> None:
    """MariaDB marks the GTID in place of an XA START."""
    binlog = Binlog()
    binlog.add(Event.MARIADB_GTID, write_mariadb_gtid(1, flags=0x4C))
    binlog.add(Event.TABLE_MAP, MAP)
    binlog.add(*insert(1, 2, version=1))
    binlog.add(Event.QUERY, write_query("XA END X'61',X'',1"))
    binlog.add(Event.XA_PREPARE, write_prepare(b"a"))
    binlog.add(Event.MARIADB_GTID, write_mariadb_gtid(2, flags=0x8D))
    binlog.add(Event.QUERY, write_query("XA COMMIT X'61',X'',1"))
    assert keys(walk_events(binlog, mariadb=True)) == [1, 2]


def test_xa_texts() -> None:
    """Statement and event name a transaction alike."""
    assert parse_statement("XA COMMIT X'6131',X'',7") == ("COMMIT", "X'6131',X'',7")
    assert parse_statement("xa rollback x'0aFF'") == ("ROLLBACK", "X'0aff',X'',1")
    assert parse_prepare(struct.pack("<BiII", 1, 7, 2, 1) + b"a1b") == (True, "X'6131',X'62',7")
    for body in (b"", struct.pack("<BiII", 0, 1, 2, 2) + b"abc"):
        with pytest.raises(StreamBroken):
            parse_prepare(body)
    with pytest.raises(StreamBroken):
        parse_statement("XA COMMIT a")


# ------------------------------------------------------------------------------------------------ rollbacks
def add_rows(binlog: Binlog, *numbers: int) -> None:
    """Add a table map and inserts."""
    binlog.add(Event.TABLE_MAP, MAP)
    binlog.add(*insert(*numbers))


def test_rollbacks_take_rows_back() -> None:
    """To a savepoint set twice, to one before it, and of a whole transaction; numbers have no gap."""
    binlog = Binlog()
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), insert(1)])
    binlog.add(Event.GTID, write_gtid(2))
    binlog.add(Event.QUERY, write_query("BEGIN"))
    add_rows(binlog, 2)
    binlog.add(Event.QUERY, write_query("SAVEPOINT `s`"))
    add_rows(binlog, 3, 4)
    binlog.add(Event.QUERY, write_query("SAVEPOINT `s t`"))
    add_rows(binlog, 5)
    binlog.add(Event.QUERY, write_query("ROLLBACK TO `s t`"))
    add_rows(binlog, 6)
    binlog.add(Event.QUERY, write_query("ROLLBACK WORK TO SAVEPOINT `s`"))
    add_rows(binlog, 7)
    binlog.add(Event.XID, bytes(8))
    binlog.add(Event.GTID, write_gtid(3))
    binlog.add(Event.QUERY, write_query("BEGIN"))
    add_rows(binlog, 8, 9)
    binlog.add(Event.QUERY, write_query("ROLLBACK"))
    binlog.add_transaction(4, [(Event.TABLE_MAP, MAP), insert(10)])
    walked = walk_events(binlog)
    assert keys(walked) == [1, 2, 7, 10]
    assert [change.seq for change in walked.changes] == [FIRST_SEQ + n for n in range(1, 5)]
    assert [number for number, _ in walked.transactions] == [1, 2, 3, 4]


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT"])
def test_a_transaction_in_parts_and_a_rollback(end: str) -> None:
    """Parts are taken back by the batch with their own transaction's ROLLBACK, and not by that of a transaction behind it."""
    binlog = Binlog()
    binlog.add(Event.GTID, write_gtid(1))
    binlog.add(Event.QUERY, write_query("BEGIN"))
    for number in range(28):
        add_rows(binlog, 2 * number, 2 * number + 1)
    binlog.add(Event.QUERY, write_query(end))
    binlog.add(Event.GTID, write_gtid(2))
    binlog.add(Event.QUERY, write_query("BEGIN"))
    add_rows(binlog, 99)
    binlog.add(Event.QUERY, write_query("ROLLBACK"))
    binlog.add_transaction(3, [(Event.TABLE_MAP, MAP), insert(100)])
    data = binlog.stream()
    # what follows the last part comes at once, and so in one batch
    last = len(data) - 900
    pieces = [*(data[i : min(i + 100, last)] for i in range(0, last, 100)), data[last:]]
    stream = make_stream(pieces, Tables({"readings": (0,)}), settings=ReplicatorSettings(linger_ms=0, batch_rows=10))
    seen = []
    for item in stream.items():
        if isinstance(item, Idle):
            break
        assert isinstance(item, Batch)
        seen.append((item.whole, item.undone, [int(tx["number"]) for tx in item.transactions] if item.whole else []))
    assert seen[0] == (False, False, [])
    ends = [entry for entry in seen if entry[0]]
    assert [undone for _, undone, _ in ends] == [end == "ROLLBACK"] + [False] * (len(ends) - 1)
    assert [number for _, _, numbers in ends for number in numbers] == [1, 2, 3]
    assert str(stream.position.gtids).endswith(":1-3")


def test_a_savepoint_of_another_transaction() -> None:
    """A savepoint ends with its transaction."""
    binlog = Binlog()
    for number, text in ((1, "SAVEPOINT `s`"), (2, "ROLLBACK TO `s`")):
        binlog.add(Event.GTID, write_gtid(number))
        binlog.add(Event.QUERY, write_query("BEGIN"))
        add_rows(binlog, number)
        binlog.add(Event.QUERY, write_query(text))
        binlog.add(Event.XID, bytes(8))
    with pytest.raises(StreamBroken, match="savepoint"):
        walk_events(binlog)


# ------------------------------------------------------------------------------------------------ partial rows
def test_partial_updates_cost_their_table() -> None:
    """The table is rejected, other rows of the transaction count; a table that is not wanted does not matter."""
    binlog = Binlog()
    other = write_table_map(8, "plant", "other", (Field("id", 3), Field("n", 3)), [0])
    rows = write_rows(8, 2, [write_image([b"\5\0\0\0", bytes(4)])])
    partial = (Event.PARTIAL_UPDATE_ROWS, write_rows(7, 2, [], update=True))
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), (Event.TABLE_MAP, other), partial, (Event.WRITE_ROWS, rows), insert(1)])
    tables = Tables({"readings": (0,), "other": (0,)})
    assert keys(walk_events(binlog, tables=tables)) == [5]
    problems: list[tuple[int, TableProblem]] = tables.rejected
    assert [(number, type(problem)) for number, problem in problems] == [(0, PartialImage)]
    unwanted = Tables({"other": (0,)})
    assert [change.op for change in walk_events(binlog, tables=unwanted).changes] == [decode.INSERT]
    assert unwanted.rejected == []
