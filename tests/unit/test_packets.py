"""The buffer of a socket's bytes: reading, joining of continued packets, moving; the end and the silence of a connection."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from replicator import packets
from replicator.changes import ChangeBuffer
from replicator.errors import SourceSilent, SourceUnavailable
from replicator.packets import LONGEST_PAYLOAD, PacketBuffer
from replicator.plan import Plans
from replicator.result import ResultReader
from replicator.source import SourceTable
from replicator.typemap import BINARY, Column, Kind
from tests.binlog_writer import pack_integer, write_packets
from tests.decoding import CHARSETS, read_tuple


@contextlib.contextmanager
def sending(data: bytes, piece: int = 1 << 20, *, close: bool = False) -> Iterator[PacketBuffer]:
    """A buffer at one end of a socket pair into whose other end a thread writes."""
    near, far = socket.socketpair()

    def send() -> None:
        with contextlib.suppress(OSError):
            for start in range(0, len(data), piece):
                far.sendall(data[start : start + piece])
            if close:
                far.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield PacketBuffer(near, 5)
    finally:
        near.close()
        thread.join()
        far.close()


def test_packets_come_one_after_another() -> None:
    """Each packet's payload, however the bytes arrive."""
    payloads = [b"a", bytes(70_000), b"", b"xyz" * 100]
    with sending(b"".join(map(write_packets, payloads)), piece=1009) as buffer:
        assert [buffer.take_packet() for _ in payloads] == payloads


@pytest.mark.parametrize("size", [LONGEST_PAYLOAD, LONGEST_PAYLOAD + 1, 2 * LONGEST_PAYLOAD, 2 * LONGEST_PAYLOAD + 5])
def test_continued_packets_are_joined_in_place(size: int) -> None:
    """The payload of all parts is contiguous, and the packet behind them is untouched."""
    payload = (np.arange(size, dtype=np.uint32) * 2_654_435_761 >> 13).astype(np.uint8).tobytes()
    with sending(write_packets(payload) + write_packets(b"behind"), piece=1_000_003) as buffer:
        buffer.read_until(packets.HEADER_BYTES)
        assert buffer.join_packets() == size
        start = buffer.at + packets.HEADER_BYTES
        assert buffer.data[start : start + size].tobytes() == payload
        buffer.at = start + size
        assert buffer.take_packet() == b"behind"


def test_packets_of_many_megabytes() -> None:
    """The buffer grows with the packet at hand, and the small packet behind comes out as well."""
    with sending(write_packets(bytes(12 << 20)) + write_packets(bytes(3 << 20)) + write_packets(b"x")) as buffer:
        assert len(buffer.take_packet()) == 12 << 20
        assert len(buffer.data) > 12 << 20
        assert len(buffer.take_packet()) == 3 << 20
        assert buffer.take_packet() == b"x"


def test_room_is_behind_what_a_kernel_may_look_at() -> None:
    """Bytes are never read into the last cells, into which kernels may look ahead."""
    with sending(write_packets(bytes(5 << 20)), piece=333_333) as buffer:
        buffer.read_until(5 << 20)
        assert buffer.end + packets.PADDING_BYTES <= len(buffer.data)


def test_an_ended_connection_is_told() -> None:
    """The end in the middle of a packet is an error, not a short packet."""
    with sending(write_packets(b"whole")[:-1], close=True) as buffer, pytest.raises(SourceUnavailable, match="closed"):
        buffer.take_packet()


def test_silence_is_told() -> None:
    """A half-open connection says nothing, and after a while that is an error."""
    near, far = socket.socketpair()
    with near, far:
        buffer = PacketBuffer(near, 0.01)
        with pytest.raises(SourceSilent):
            buffer.read_until(4)


class FedReader(ResultReader):
    """A reader of a result set whose packets come from a buffer."""

    def __init__(self, table: SourceTable, buffer: PacketBuffer) -> None:
        self._plans = Plans(CHARSETS)
        self._plan = self._plans.add(table.columns, table.key, wanted=True, table=0)
        self._changes, self._table, self._buffer, self.raw_rows = ChangeBuffer(0), table, buffer, 0

    def _execute(self) -> PacketBuffer:
        return self._buffer


def test_a_result_row_of_several_packets() -> None:
    """A row of more than 16 MB between two small ones: each once, none swallowed."""
    columns = (Column("id", Kind.LONG), Column("data", Kind.BYTES, charset=BINARY, length_bytes=4))
    values = [b"small", bytes(range(256)) * (LONGEST_PAYLOAD // 256 + 9), b"", bytes(LONGEST_PAYLOAD), b"last"]
    rows = [b"\0\0" + struct.pack("<i", n) + pack_integer(len(value)) + value for n, value in enumerate(values)]
    stream = b"".join(map(write_packets, rows)) + write_packets(b"\xfe\0\0\2\0")
    with sending(stream) as buffer:
        blocks = [(count, bytes(block)) for count, block in FedReader(SourceTable("a.b", columns, (0,)), buffer).blocks()]
    assert sum(count for count, _ in blocks) == len(values)
    data = b"".join(block for _, block in blocks)
    for n, value in enumerate(values):
        size = 2 + 4 + 4 + 4 + len(value) + 12 + 4 + 4
        fields = read_tuple(data[:size])
        assert (fields[0], fields[1]) == (struct.pack("!i", n), value)
        data = data[size:]
    assert data == b""
