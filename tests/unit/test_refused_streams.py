"""Streams of bytes that are damaged, or hold what cannot be applied: nothing of it passes for rows."""

import struct

import pytest

from replicator.errors import SourceUnavailable, StreamBroken, UnsupportedEvent
from replicator.events import Event
from tests.binlog_writer import (
    Binlog,
    write_gtid,
    write_image,
    write_packets,
    write_query,
    write_rows,
    write_table_map,
)
from tests.decoding import Tables, Walked, make_stream, walk
from tests.readings import FIELDS, MAP, image, simple_binlog, walk_bytes


def flip(binlog: Binlog, event: int, offset: int, bit: int = 1) -> bytes:
    """The stream with one bit of one event turned."""
    changed = bytearray(binlog.events[event])
    changed[offset] ^= bit
    binlog.events[event] = bytes(changed)
    return binlog.stream()


def test_every_turned_bit_is_noticed() -> None:
    """A wrong bit anywhere in any event never yields other rows than the right ones, and never passes."""
    right = walk_bytes(simple_binlog().stream()).changes
    for event, original in enumerate(simple_binlog().events):
        for offset in range(len(original)):
            for bit in (1, 0x10, 0x80):
                walked = Walked()
                stream = make_stream([flip(simple_binlog(), event, offset, bit)], Tables({"readings": (0,)}))
                with pytest.raises((StreamBroken, UnsupportedEvent)):
                    walk(stream, walked)
                assert walked.changes == right[: len(walked.changes)]


def test_a_row_event_cannot_pass_for_a_format_description() -> None:
    """One turned bit makes 15 of 31; the last byte of the row must not be taken for "no checksums from here on"."""
    update = write_rows(7, 1, [write_image([bytes(4)])] * 2, update=True)
    table_map = write_table_map(7, "plant", "readings", FIELDS[:1], [0])
    binlog = Binlog()
    binlog.add_transaction(1, [(Event.TABLE_MAP, table_map), (Event.UPDATE_ROWS, update + bytes(80))])
    with pytest.raises(StreamBroken):
        walk_bytes(flip(binlog, 3, 4, 0x10))


@pytest.mark.parametrize("size", [1, 18, 19])
def test_an_event_without_room_for_its_header(size: int) -> None:
    """Neither a header nor a checksum fits."""
    with pytest.raises(StreamBroken):
        walk_bytes(write_packets(b"\0" + bytes(size)))


def test_an_empty_packet() -> None:
    """A packet without even its first byte."""
    with pytest.raises(StreamBroken):
        walk_bytes(b"\0\0\0\0")


def test_the_servers_error_is_passed_on() -> None:
    """An error packet in the middle of the stream carries the server's number and text."""
    text = b"\xff" + struct.pack("<H", 1236) + b"#HY000could not find next log"
    with pytest.raises(Exception, match="could not find next log"):
        walk_bytes(write_packets(text))


def test_the_servers_end_is_an_end() -> None:
    """EOF instead of an event: the server gave up, and may be asked again."""
    with pytest.raises(SourceUnavailable):
        walk_bytes(write_packets(b"\xfe\0\0\2\0"))


@pytest.mark.parametrize("width", [0, 1, 5, 300])
def test_another_number_of_columns_than_the_table_map(width: int) -> None:
    """Rows that do not fit their table map are never cut or filled."""
    binlog = Binlog()
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), (Event.WRITE_ROWS, write_rows(7, width, [image(1)]))])
    with pytest.raises(StreamBroken):
        walk_bytes(binlog.stream())


@pytest.mark.parametrize("left", [1, 5, 12])
def test_a_row_image_that_is_too_short(left: int) -> None:
    """The last image ends in the middle of a value, checksum right."""
    binlog = Binlog()
    rows = write_rows(7, len(FIELDS), [image(1), image(2)])
    binlog.add_transaction(1, [(Event.TABLE_MAP, MAP), (Event.WRITE_ROWS, rows[:-left])])
    with pytest.raises(StreamBroken):
        walk_bytes(binlog.stream())


def test_a_transaction_that_opens_inside_another() -> None:
    """A GTID while the transaction before is open."""
    binlog = Binlog()
    binlog.add(Event.GTID, write_gtid(1))
    binlog.add(Event.QUERY, write_query("BEGIN"))
    binlog.add(Event.GTID, write_gtid(2))
    with pytest.raises(StreamBroken):
        walk_bytes(binlog.stream())


@pytest.mark.parametrize("kind", [17, 18, 26, 38, 99])
def test_events_that_would_lose_rows(kind: int) -> None:
    """Known but not covered, and unknown: the stream stops and says the number or the remedy."""
    binlog = Binlog()
    binlog.add(kind, bytes(30))
    with pytest.raises(UnsupportedEvent):
        walk_bytes(binlog.stream())


def test_a_change_logged_as_a_statement() -> None:
    """Statement format changes rows without saying which."""
    binlog = Binlog()
    binlog.add(Event.GTID, write_gtid(1))
    binlog.add(Event.QUERY, write_query("BEGIN"))
    binlog.add(Event.QUERY, write_query("UPDATE readings SET amount = 0", "plant"))
    with pytest.raises(UnsupportedEvent, match="statement"):
        walk_bytes(binlog.stream())
