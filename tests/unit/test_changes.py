"""The decoder's arrays: what is handed out, the tail of an unfinished transaction that stays, parts, and growing."""

import struct

import numpy as np
import pytest

from replicator import changes, decode
from replicator.changes import ChangeBuffer, gtid_runs
from replicator.events import Event
from replicator.items import Idle
from replicator.plan import Plans
from replicator.position import Position
from tests.binlog_writer import COMMIT_US, Binlog, Field, write_image, write_rows, write_table_map
from tests.decoding import CHARSETS, FIRST_SEQ, Tables, make_stream, read_changes, read_own, walk
from warehouse.settings import ReplicatorSettings

FIELDS = (Field("id", 3), Field("name", 15, b"\x50\0", collation=45), Field("day", 10))
MAP = (Event.TABLE_MAP, write_table_map(7, "d", "t", FIELDS, [0]))


def row(n: int) -> bytes:
    """A row; each third has a date that Postgres does not have."""
    text = f"row {n}".encode()
    return write_image([struct.pack("<i", n), bytes([len(text)]) + text, bytes(3) if n % 3 == 0 else b"\x22\xd0\x0f"])


def rows(*numbers: int) -> tuple[int, bytes]:
    """An insert."""
    return Event.WRITE_ROWS, write_rows(7, len(FIELDS), [row(n) for n in numbers])


def test_the_tail_of_an_unfinished_transaction_stays() -> None:
    """Whole transactions are handed out; the rows behind them, keys and raw images too, come right with their commit."""
    binlog = Binlog()
    binlog.add_transaction(1, [MAP, rows(1, 2, 3)])
    binlog.add_transaction(2, [MAP, rows(4)])
    binlog.add_transaction(3, [MAP, rows(5, 6), (Event.UPDATE_ROWS, write_rows(7, 3, [row(6), row(9)], update=True)), rows(7)])
    whole = walk(make_stream([binlog.stream()], Tables({"t": (0, 1)})))
    data = binlog.stream()
    starts = np.cumsum([0] + [len(event) + 5 for event in binlog.events])
    for cut in starts[1:-1]:
        stream = make_stream([data[:cut]], Tables({"t": (0, 1)}))
        found = walk(stream)
        stream._packets._pieces.append(data[cut:])
        stream._packets._misses = 0
        walk(stream, found)
        assert found.changes == whole.changes
        assert found.position == whole.position
        assert found.transactions == whole.transactions


def test_a_huge_transaction_comes_in_parts() -> None:
    """Parts say that they are parts; all rows come once and in order, and only the end moves the position."""
    binlog = Binlog()
    binlog.add_transaction(1, [MAP, rows(0)])
    binlog.add_transaction(2, [MAP, *(rows(*range(10 * n, 10 * n + 10)) for n in range(1, 60))])
    settings = ReplicatorSettings(linger_ms=0, batch_rows=20)
    data = binlog.stream()
    pieces = [data[i : i + 500] for i in range(0, len(data), 500)]
    stream = make_stream(pieces, Tables({"t": (0,)}), settings=settings)
    found, positions = [], []
    for item in stream.items():
        if isinstance(item, Idle):
            break
        found += [(struct.unpack("!i", c.key[0])[0], c.seq) for c in read_changes(item, ["t"])]
        positions.append((item.whole, str(item.position.gtids).rpartition(":")[2]))
    assert [number for number, _ in found] == [0, *range(10, 600)]
    assert [seq for _, seq in found] == list(range(FIRST_SEQ + 1, FIRST_SEQ + 592))
    assert positions[0] == (True, "1")
    assert positions[-1] == (True, "1-2")
    assert len(positions) > 3
    assert all(position == (False, "1") for position in positions[1:-1])


def test_a_batch_ends_with_the_transaction_that_fills_it() -> None:
    """Transactions are not torn for the sake of a batch's size: one below two batches comes whole, and nothing behind it."""
    binlog = Binlog()
    for number in range(1, 6):
        binlog.add_transaction(number, [MAP, rows(*range(100 * number, 100 * number + 15))])
    settings = ReplicatorSettings(linger_ms=0, batch_rows=10)
    stream = make_stream([binlog.stream()], Tables({"t": (0,)}), settings=settings)
    sizes = []
    for item in stream.items():
        if isinstance(item, Idle):
            break
        sizes.append((item.whole, len(item.changes), len(item.transactions)))
    assert sizes == [(True, 15, 1)] * 5


def test_arrays_that_come_back_leave_nothing_behind() -> None:
    """A transaction without a GTID, decoded into arrays that held one with a GTID, has no number."""
    binlog = Binlog()
    binlog.add_transaction(1, [MAP, rows(1)])
    stream = make_stream([binlog.stream()], Tables({"t": (0,)}))
    items = stream.items()
    first = next(items)
    assert int(first.transactions[0]["number"]) == 1
    first.release()
    stream._changes._allocate()
    stream._changes._allocate()
    stream._changes.transactions[0] = first.transactions[0]
    decode.commit(stream._state, stream._changes.transactions)
    assert int(stream._changes.transactions[1]["number"]) == 0


def test_numbers_after_what_others_took() -> None:
    """A batch can be numbered anew, in its records and in its tuples."""
    binlog = Binlog()
    delete = (Event.DELETE_ROWS, write_rows(7, len(FIELDS), [row(1)]))
    binlog.add_transaction(1, [MAP, rows(1, 2, 3), delete, rows(4)])
    stream = make_stream([binlog.stream()], Tables({"t": (0,)}))
    batch = next(item for item in stream.items() if not isinstance(item, Idle)).after(5000)
    assert batch.seq == 5005
    made = read_changes(batch, ["t"])
    assert [c.seq for c in made] == [5001, 5002, 5003, 5004, 5005]
    assert [read_own(c)[:2] for c in made if c.fields] == [(seq, COMMIT_US) for seq in (5001, 5002, 5003, 5005)]


def test_growing_keeps_what_is_there() -> None:
    """Every array gets larger; its content stays."""
    buffer = ChangeBuffer(0)
    sizes = len(buffer.out), len(buffer.keys), len(buffer.changes)
    buffer.out[:3] = buffer.keys[:3] = (1, 2, 3)
    buffer.changes["seq"][:2] = (8, 9)
    buffer.state[decode.EVENT_BYTES] = 100
    buffer.grow()
    assert len(buffer.out) >= 2 * sizes[0]
    assert len(buffer.keys) >= 2 * sizes[1]
    assert len(buffer.changes) == 2 * sizes[2]
    assert buffer.out[:3].tolist() == buffer.keys[:3].tolist() == [1, 2, 3]
    assert buffer.changes["seq"][:2].tolist() == [8, 9]


def test_a_batch_owns_its_arrays() -> None:
    """What was handed out does not change while more is decoded."""
    binlog = Binlog()
    binlog.add_transaction(1, [MAP, rows(1, 2)])
    more = Binlog()
    more.add_transaction(2, [MAP, rows(*range(100, 150))])
    stream = make_stream([binlog.stream()], Tables({"t": (0,)}))
    items = stream.items()
    batch = next(items)
    assert not isinstance(batch, Idle)
    before = read_changes(batch, ["t"])
    stream._packets._pieces.append(more.stream())
    next(items)
    assert read_changes(batch, ["t"]) == before


@pytest.mark.parametrize("mariadb", [False, True])
def test_runs_of_gtids(mariadb: bool) -> None:
    """Runs end where the origin or, for MySQL, the tag changes or a number is left out; those without one are passed over."""
    made = np.zeros(7, decode.TRANSACTION)
    made["number"] = [1, 2, 4, 5, 0, 6, 1]
    made["domain"], made["server"] = [0, 0, 0, 0, 0, 0, 2], [9, 9, 9, 9, 0, 8, 9]
    made["origin"][:, 15] = [1, 1, 1, 1, 0, 1, 2]
    uuid = "00000000-0000-0000-0000-00000000000"
    expected = [(f"{uuid}1", 1, 2), (f"{uuid}1", 4, 6), (f"{uuid}2:blue", 1, 1)]
    if mariadb:
        expected = [("0-9", 1, 5), ("0-8", 6, 6), ("2-9", 1, 1)]
    assert gtid_runs(made, mariadb=mariadb, tags=("", "green", "blue")) == expected
    assert gtid_runs(made[:0], mariadb=mariadb) == []
    assert changes.Batch(made[:0], made, made[:0], made[:0], Plans(CHARSETS), Position("a.1", 4), 0).commit_us == 0
