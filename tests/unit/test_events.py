"""Rare events: their layouts, and what is refused as damaged."""

import struct

import pytest

from replicator.errors import StreamBroken
from replicator.events import HARMLESS, UNSUPPORTED, Event, Query, Rotate, parse_checksum_algorithm, parse_query, parse_rotate
from replicator.payload import UNPACKED
from tests.binlog_writer import write_format_description, write_query


def test_rotate() -> None:
    """The offset, then the name."""
    assert parse_rotate(struct.pack("<Q", 4) + b"binlog.000012") == Rotate("binlog.000012", 4)


@pytest.mark.parametrize("name", [b"", b"binlog", b"binlog.", b"binlog.12x", b"\xff\xfe.000001", b"a\0b.000001", b"a/b.000001"])
def test_a_rotate_that_names_no_file(name: bytes) -> None:
    """A damaged event must not send the position anywhere."""
    with pytest.raises(StreamBroken):
        parse_rotate(struct.pack("<Q", 4) + name)


def test_a_rotate_beyond_any_file() -> None:
    """An offset that no file has."""
    with pytest.raises(StreamBroken):
        parse_rotate(struct.pack("<Q", 1 << 63) + b"binlog.000012")


@pytest.mark.parametrize("checksum", [True, False])
def test_checksum_algorithm(checksum: bool) -> None:
    """Said before the checksum field, which is always there."""
    assert parse_checksum_algorithm(write_format_description(checksum=checksum) + bytes(4)) is checksum


@pytest.mark.parametrize(("offset", "value"), [(0, 3), (56, 13), (-5, 2)])
def test_a_format_that_is_not_known(offset: int, value: int) -> None:
    """Another binlog version, header length or checksum algorithm."""
    body = bytearray(write_format_description() + bytes(4))
    body[offset] = value
    with pytest.raises(StreamBroken):
        parse_checksum_algorithm(bytes(body))
    with pytest.raises(StreamBroken):
        parse_checksum_algorithm(bytes(body[:40]))


def test_query() -> None:
    """Database and text, behind status variables of any length."""
    assert parse_query(write_query("DROP TABLE t", "shöp", status=bytes(300))) == Query("shöp", "DROP TABLE t")
    assert parse_query(write_query("", "")) == Query("", "")


@pytest.mark.parametrize("size", [0, 12, 13, 15, 20])
def test_a_query_that_is_too_short(size: int) -> None:
    """Shorter than its own lengths say."""
    with pytest.raises(StreamBroken):
        parse_query(write_query("x", "database", status=bytes(9))[:size])


def test_every_event_type_has_one_fate() -> None:
    """Handled, harmless or refused; nothing is both."""
    handled = {
        Event.QUERY, Event.ROTATE, Event.FORMAT_DESCRIPTION, Event.XID, Event.TABLE_MAP, Event.HEARTBEAT, Event.GTID,
        Event.ANONYMOUS_GTID, Event.MARIADB_GTID, Event.WRITE_ROWS, Event.UPDATE_ROWS, Event.DELETE_ROWS,
        Event.WRITE_ROWS_V1, Event.UPDATE_ROWS_V1, Event.DELETE_ROWS_V1, Event.TRANSACTION_PAYLOAD, Event.GTID_TAGGED,
        Event.PARTIAL_UPDATE_ROWS, *UNPACKED,
    }  # fmt: skip
    assert not HARMLESS & UNSUPPORTED.keys()
    assert not (handled - {Event.HEARTBEAT}) & (HARMLESS | UNSUPPORTED.keys())
    assert handled | HARMLESS | UNSUPPORTED.keys() == set(Event)
