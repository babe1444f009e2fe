"""XA transactions in the stream: held back from their preparation to the decision."""

import struct

import pytest

from replicator.changes import Batch
from replicator.errors import StreamBroken, TransactionUnknown
from replicator.events import Event
from replicator.xa import Held, parse_prepare, parse_statement
from tests.binlog_writer import (
    COMMIT_US,
    Binlog,
    write_gtid,
    write_mariadb_gtid,
    write_query,
)
from tests.decoding import FIRST_SEQ, Tables, make_stream
from tests.pairs import MAP, bare_events, insert, keys, walk_events, write_payload


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
