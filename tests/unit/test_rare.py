"""Rare events on captured and hand-made bytes: tagged GTIDs, rollbacks, parts of rows."""

import struct

import pytest

from replicator import decode
from replicator.changes import Batch
from replicator.errors import PartialImage, StreamBroken, TableProblem, UnsupportedEvent
from replicator.events import Event
from replicator.gtids import TaggedGtid, dump_command, encode_gtids, parse_tagged
from replicator.items import Idle
from replicator.position import GtidSet
from tests.binlog_writer import (
    Binlog,
    Field,
    write_gtid,
    write_image,
    write_query,
    write_rows,
    write_table_map,
)
from tests.decoding import FIRST_SEQ, Tables, make_stream
from tests.pairs import MAP, insert, keys, transaction, walk_events
from warehouse.settings import ReplicatorSettings

# From MySQL 9.7: GTID ...:blue:1.
TAGGED = bytes.fromhex(
    "027600000002f902e502fd03990299037e22c5036102510204f1030000000204040608626c756508000a040c7fc30a66c8d76006107d041283120b"
)
UUID_TEXT = "beb9ffa6-e63f-11f1-9894-02fc00000001"


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
