"""The walk over packets and events, on bytes made by hand: what counts, and where the position ends up."""

import datetime
import decimal
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from replicator import decode
from replicator.errors import StreamBroken
from replicator.events import Event
from replicator.position import GtidSet
from replicator.typemap import Kind
from tests.binlog_writer import (
    COMMIT_US,
    LONGEST_PAYLOAD,
    SERVER_ID,
    TIME_S,
    Binlog,
    Field,
    write_gtid,
    write_image,
    write_mariadb_gtid,
    write_packets,
    write_query,
    write_rows,
    write_table_map,
)
from tests.decoding import CHARSETS, FIRST_SEQ, Tables, load, make_stream, read_own, walk
from tests.naive_decoder import read_image
from tests.readings import FIELDS, MAP, image, insert, key, simple_binlog, walk_bytes


@pytest.mark.parametrize("checksum", [True, False])
def test_rows_keys_and_positions_come_out(checksum: bool) -> None:
    """Inserts, an update and a delete, with their keys before and after, their numbers and the position behind them."""
    binlog = simple_binlog(checksum=checksum)
    walked = walk_bytes(binlog.stream(), checksum=checksum)
    assert [(c.op, c.key, c.old_key, c.seq) for c in walked.changes] == [
        (decode.INSERT, key(1), (), FIRST_SEQ + 1),
        (decode.INSERT, key(2), (), FIRST_SEQ + 2),
        (decode.UPDATE, key(20), key(2), FIRST_SEQ + 3),
        (decode.DELETE, (), key(1), FIRST_SEQ + 4),
    ]
    assert walked.transactions == [(1, COMMIT_US), (2, COMMIT_US + 1), (3, COMMIT_US + 2)]
    assert walked.position is not None
    assert (walked.position.file, walked.position.pos) == ("binlog.000002", binlog.pos)
    assert str(walked.position.gtids) == "00010203-0405-0607-0809-0a0b0c0d0e0f:1-3"
    assert read_own(walked.changes[2]) == (FIRST_SEQ + 3, COMMIT_US + 1, None)


def test_values_are_those_of_the_twin() -> None:
    """The tuple's fields, read by psycopg, are what the slow decoder reads from the image."""
    tables = Tables({"readings": (0,)})
    walked = walk(make_stream([simple_binlog().stream()], tables))
    columns = tables.maps[0].columns
    assert columns is not None
    values = [load(field, column) for field, column in zip(walked.changes[0].fields, columns, strict=False)]
    assert values == read_image(image(1), columns, CHARSETS)
    assert values == [1, "valve", decimal.Decimal("12.34"), datetime.datetime(2024, 2, 29, 23, 59, 58, 500500)]


def test_any_cut_of_the_bytes_gives_the_same() -> None:
    """Where the socket's reads end must not matter; every byte by itself, and every place for one cut."""
    data = simple_binlog().stream()
    whole = walk_bytes(data)
    single = walk(make_stream([data[i : i + 1] for i in range(len(data))], Tables({"readings": (0,)})))
    assert (single.changes, single.position) == (whole.changes, whole.position)
    for cut in range(1, len(data), 7):
        parts = walk(make_stream([data[:cut], data[cut:]], Tables({"readings": (0,)})))
        assert (parts.changes, parts.position) == (whole.changes, whole.position)


def test_a_transaction_counts_only_when_it_is_whole() -> None:
    """Cut off anywhere inside the last transaction, the stream yields the two before it and stands behind them."""
    binlog = simple_binlog()
    start = len(write_packets(b"")) and sum(4 + 1 + len(event) for event in binlog.events[:-5])
    data = binlog.stream()
    for end in range(start, len(data)):
        walked = walk_bytes(data[:end])
        assert len(walked.changes) == 3
        assert walked.position is not None
        assert str(walked.position.gtids).endswith(":1-2")


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_rows_events(version: int) -> None:
    """MariaDB still writes version 1, whose events lack the extra data."""
    binlog = Binlog()
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), insert(image(5), version=version)])
    assert [c.key for c in walk_bytes(binlog.stream()).changes] == [key(5)]


def test_extra_data_of_rows_events_is_stepped_over() -> None:
    """A partition's number stands before the columns."""
    binlog = Binlog()
    body = write_rows(7, len(FIELDS), [image(5)], extra=b"\x01\x02\x03\x04")
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), (Event.WRITE_ROWS, body)])
    assert [c.key for c in walk_bytes(binlog.stream()).changes] == [key(5)]


def test_mariadb_transactions_and_statements() -> None:
    """A MariaDB GTID opens a transaction by itself; flag 1 is a statement alone. Commit times are whole seconds."""
    binlog = Binlog()
    binlog.add(Event.MARIADB_GTID, write_mariadb_gtid(5, domain=3))
    for kind, body in [(Event.TABLE_MAP, MAP), insert(image(1), version=1), (Event.XID, bytes(8))]:
        binlog.add(kind, body)
    binlog.add(Event.MARIADB_GTID, write_mariadb_gtid(6, domain=3, flags=1))
    binlog.add(Event.QUERY, write_query("CREATE TABLE x (id INT)", "plant"))
    walked = walk_bytes(binlog.stream(), mariadb=True)
    assert [(c.key, c.commit_us) for c in walked.changes] == [(key(1), TIME_S * 1_000_000)]
    assert walked.statements == ["CREATE TABLE x (id INT)"]
    assert walked.position is not None
    assert str(walked.position.gtids) == f"3-{SERVER_ID}-6"


def test_commit_as_a_statement_ends_a_transaction() -> None:
    """Tables without transactions are committed by a QUERY event."""
    binlog = Binlog()
    binlog.add(Event.GTID, write_gtid(1))
    binlog.add(Event.QUERY, write_query("BEGIN"))
    binlog.add(Event.TABLE_MAP, MAP)
    binlog.add(*insert(image(1)))
    binlog.add(Event.QUERY, write_query("COMMIT"))
    assert len(walk_bytes(binlog.stream()).changes) == 1


def test_the_second_commit_time_is_not_taken() -> None:
    """A transaction that came through another server has two commit times; ours is the one at this source."""
    binlog = Binlog()
    binlog.add(Event.GTID, write_gtid(1, original_us=COMMIT_US - 5_000_000))
    binlog.add(Event.QUERY, write_query("BEGIN"))
    binlog.add(Event.TABLE_MAP, MAP)
    binlog.add(*insert(image(1)))
    binlog.add(Event.XID, bytes(8))
    assert walk_bytes(binlog.stream()).changes[0].commit_us == COMMIT_US


def test_offsets_beyond_four_gigabytes() -> None:
    """The header's offset has 32 bits and wraps."""
    binlog = Binlog(pos=(1 << 32) - 300)
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), insert(image(1))])
    binlog.add_transaction(2, [(Event.TABLE_MAP, MAP), insert(image(2))])
    stream = make_stream([binlog.stream()], Tables({"readings": (0,)}))
    stream._state[decode.LOG_POS] = (1 << 32) - 300
    walked = walk(stream)
    assert walked.position is not None
    assert walked.position.pos == binlog.pos > 1 << 32


def test_a_new_table_id_alone_needs_no_new_plan() -> None:
    """The server numbers a table anew after it was closed; the columns are the same."""
    binlog = Binlog()
    tables = Tables({"readings": (0,)})
    for number, table_id in enumerate((7, 8, 7, 900), 1):
        body = write_rows(table_id, len(FIELDS), [image(number)])
        table_map = write_table_map(table_id, "plant", "readings", FIELDS, [0])
        binlog.add_transaction(number, [(Event.TABLE_MAP, table_map), (Event.WRITE_ROWS, body)])
    walked = walk(make_stream([binlog.stream()], tables))
    assert [c.key for c in walked.changes] == [key(1), key(2), key(3), key(4)]
    assert len(tables.maps) == 1


def test_a_statement_over_tables_whose_ids_share_a_slot() -> None:
    """Ids are looked up by their low bits; two tables of one statement may agree in these."""
    other = write_table_map(7 + decode.SLOTS, "plant", "others", FIELDS, [0])
    others = write_rows(7 + decode.SLOTS, len(FIELDS), [image(2)])
    binlog = Binlog()
    bodies = [(Event.TABLE_MAP, MAP), (Event.TABLE_MAP, other), insert(image(1)), (Event.WRITE_ROWS, others), insert(image(3))]
    binlog.add_transaction(1, bodies)
    walked = walk(make_stream([binlog.stream()], Tables({"readings": (0,), "others": (0,)})))
    assert [(c.table, c.key) for c in walked.changes] == [("readings", key(1)), ("others", key(2)), ("readings", key(3))]


def test_the_table_id_that_closes_a_statement() -> None:
    """0xFFFFFF is an event without rows, unless a table map gave that number to a table."""
    binlog = Binlog()
    dummy = write_rows(0xFFFFFF, 0, [])
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), insert(image(1)), (Event.WRITE_ROWS, dummy)])
    real = write_table_map(0xFFFFFF, "plant", "readings", FIELDS, [0])
    rows = write_rows(0xFFFFFF, len(FIELDS), [image(2)])
    binlog.add_transaction(2, [(Event.TABLE_MAP, real), (Event.WRITE_ROWS, rows)])
    assert [c.key for c in walk_bytes(binlog.stream()).changes] == [key(1), key(2)]


def test_tables_that_nobody_wants_are_passed_over() -> None:
    """Their rows are not even looked at."""
    binlog = Binlog()
    other = write_table_map(9, "plant", "secrets", FIELDS, [0])
    rows = write_rows(9, len(FIELDS), [b"\xff\xff not an image"])
    binlog.add_transaction(1, [(Event.TABLE_MAP, other), (Event.WRITE_ROWS, rows)])
    walked = walk_bytes(binlog.stream())
    assert walked.changes == []
    assert walked.transactions == [(1, COMMIT_US)]


def test_rows_without_a_table_map() -> None:
    """The decoder never guesses which table was meant."""
    binlog = Binlog()
    binlog.add_transaction(1, [insert(image(1))])
    with pytest.raises(StreamBroken, match="table id"):
        walk_bytes(binlog.stream())


def test_rows_outside_a_transaction() -> None:
    """A rows event without BEGIN cannot be placed."""
    binlog = Binlog()
    binlog.add(Event.TABLE_MAP, MAP)
    binlog.add(*insert(image(1)))
    with pytest.raises(StreamBroken):
        walk_bytes(binlog.stream())


def test_a_partial_image_costs_its_table_only() -> None:
    """binlog_row_image = MINIMAL in one session: that table is turned away, the other's rows come."""
    binlog = Binlog()
    short = write_image([struct.pack("<i", 1)])
    partial = write_rows(7, len(FIELDS), [short], present=[True, False, False, False])
    other = write_table_map(9, "plant", "others", FIELDS, [0])
    bodies = [(Event.TABLE_MAP, MAP), (Event.WRITE_ROWS, partial), insert(image(3)), (Event.TABLE_MAP, other)]
    binlog.add_transaction(1, [*bodies, (Event.WRITE_ROWS, write_rows(9, len(FIELDS), [image(4)]))])
    tables = Tables({"readings": (0,), "others": (0,)})
    walked = walk(make_stream([binlog.stream()], tables))
    assert [(c.table, c.key) for c in walked.changes] == [("others", key(4))]
    assert [(number, str(problem).splitlines()[0]) for number, problem in tables.rejected] == [(0, "a row image lacks columns")]


def test_a_full_array_stops_before_the_event_and_goes_on() -> None:
    """A transaction of many rows makes the arrays grow; nothing comes twice."""
    binlog = Binlog()
    events = [insert(*[image(100 * n + i, "x" * 70) for i in range(100)]) for n in range(90)]
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), *events])
    walked = walk_bytes(binlog.stream())
    assert [c.key for c in walked.changes] == [key(n) for n in range(9000)]
    assert [c.seq for c in walked.changes] == list(range(FIRST_SEQ + 1, FIRST_SEQ + 9001))


def test_more_transactions_than_the_array_holds() -> None:
    """Whole transactions are handed out when their array is full, the one at hand is kept."""
    binlog = Binlog()
    for number in range(1, 4500):
        binlog.add_transaction(number, [(Event.TABLE_MAP, MAP), insert(image(number))])
    walked = walk_bytes(binlog.stream())
    assert [c.key for c in walked.changes] == [key(n) for n in range(1, 4500)]
    assert [number for number, _ in walked.transactions] == list(range(1, 4500))
    assert walked.batches > 1
    assert walked.position is not None
    assert walked.position.gtids == GtidSet.parse("00010203-0405-0607-0809-0a0b0c0d0e0f:1-4499")


def test_an_event_of_several_packets() -> None:
    """More than 16 MB in one rows event, cut into packets, and another transaction behind it."""
    fields = (Field("id", 3), Field("data", 252, b"\4", collation=63))
    table_map = write_table_map(7, "plant", "readings", fields, [0])
    big = bytes(range(256)) * ((LONGEST_PAYLOAD + 5_000_000) // 256)
    binlog = Binlog()
    for number, data in enumerate((b"a", big, b"c"), 1):
        row = write_image([struct.pack("<i", number), struct.pack("<I", len(data)) + data])
        binlog.add_transaction(number, [(Event.TABLE_MAP, table_map), (Event.WRITE_ROWS, write_rows(7, 2, [row]))])
    data = binlog.stream()
    pieces = [data[i : i + 3_000_001] for i in range(0, len(data), 3_000_001)]
    walked = walk(make_stream(pieces, Tables({"readings": (0,)})))
    assert [c.fields[1] for c in walked.changes] == [b"a", big, b"c"]


# ---------------------------------------------------------------------------------------------------- pieces
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 64, 65, 79, 80, 81, 127, 128, 200, 1000])
def test_crc32_is_zlibs(size: int) -> None:
    """The same number for every length around the 8, 16 and 64 bytes of the steps."""
    data = bytes((7 * i + size) % 256 for i in range(size + 3))
    assert int(decode.crc32(np.frombuffer(data, np.uint8), 3, len(data))) == zlib.crc32(data[3:])


def test_runs_of_doubles_with_a_null_anywhere() -> None:
    """Seventy DOUBLEs in a row, one of them the key: without a NULL, and with one at each place in turn."""
    count, key_at = 70, 11
    fields = [Field(f"d{n}", 5, b"\x08") for n in range(count)]
    made = []
    for null in range(-1, count):
        values: list[bytes | None] = [struct.pack("<d", 1000 * (null + 1) + n) for n in range(count)]
        if null >= 0 and null != key_at:
            values[null] = None
        made.append(values)
    binlog = Binlog()
    rows = write_rows(7, count, [write_image(values) for values in made])
    table_map = write_table_map(7, "plant", "readings", fields, [key_at])
    binlog.add_transaction(1, [(Event.TABLE_MAP, table_map), (Event.WRITE_ROWS, rows)])
    walked = walk(make_stream([binlog.stream()], Tables({"readings": (key_at,)})))
    turned = [tuple(None if value is None else value[::-1] for value in values) for values in made]
    assert [change.fields[:count] for change in walked.changes] == turned
    assert [change.key for change in walked.changes] == [(values[key_at],) for values in turned]


@pytest.mark.parametrize("unsigned", [False, True])
def test_integers_at_their_ends(unsigned: bool) -> None:
    """Every size of integer, as a value and as the key, at the ends of its range and on both sides of zero."""
    sizes = {1: 1, 2: 2, 9: 3, 3: 4, 8: 8}
    for kind, size in sizes.items():
        bits = 8 * size
        low, high = (0, (1 << bits) - 1) if unsigned else (-(1 << bits - 1), (1 << bits - 1) - 1)
        numbers = sorted({low, low + 1, 0, 1, high - 1, high, *(() if unsigned else (-1,))})
        fields = [Field("id", kind, unsigned=unsigned), Field("n", kind, unsigned=unsigned)]
        raw = [number.to_bytes(size, "little", signed=not unsigned) for number in numbers]
        binlog = Binlog()
        rows = write_rows(7, 2, [write_image([value, value]) for value in raw])
        table_map = write_table_map(7, "plant", "readings", fields, [0])
        delete = (Event.DELETE_ROWS, write_rows(7, 2, [write_image([value, value]) for value in raw]))
        binlog.add_transaction(1, [(Event.TABLE_MAP, table_map), (Event.WRITE_ROWS, rows), delete])
        tables = Tables({"readings": (0,)})
        walked = walk(make_stream([binlog.stream()], tables))
        columns = tables.maps[0].columns
        assert columns is not None
        inserts, deletes = walked.changes[: len(numbers)], walked.changes[len(numbers) :]
        assert [[load(field, columns[0]) for field in change.fields[:2]] for change in inserts] == [[n, n] for n in numbers]
        assert [load(change.key[0], columns[0]) for change in inserts] == numbers
        assert [load(change.old_key[0], columns[0]) for change in deletes] == numbers


def test_the_kernels_run_uncompiled() -> None:
    """The same results without compilation, where a debugger can step through the kernels."""
    chosen = "rows_keys or twin or doubles or (crc32 and not 100) or whole"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", f"({chosen}) and not uncompiled"]
    done = subprocess.run(
        command, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout


def test_days_from_civil_are_pythons() -> None:
    """Every 37th day of the years that both know."""
    for ordinal in range(1, datetime.date.max.toordinal(), 37):
        day = datetime.date.fromordinal(ordinal)
        assert decode.days_from_civil(day.year, day.month, day.day) == ordinal - 719_163


def test_kinds_are_those_of_the_kernels() -> None:
    """The kernels name kinds by their numbers; a number that moves must be moved there too."""
    assert [kind.value for kind in Kind] == list(range(len(Kind)))
    assert (Kind.DOUBLE, Kind.DECIMAL, Kind.TEXT, Kind.BYTES, Kind.ENUM, Kind.SET, Kind.BIT) == (7, 8, 14, 15, 16, 17, 18)
