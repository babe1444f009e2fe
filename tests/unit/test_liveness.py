"""How long an answer of the source is waited for: as long as the stream's connection shows signs of life."""

import socket
import time

import pytest

from replicator.errors import SourceSilent
from replicator.liveness import Liveness
from replicator.packets import PacketBuffer


class Stream:
    """A stream's connection, seen from both ends."""

    silence_s = 0.05

    def __init__(self) -> None:
        self.server, self.client = socket.socketpair()
        self.packets = PacketBuffer(self.client, 60)

    def look(self) -> tuple[float, int] | None:
        """As the stream does it."""
        return self.packets.look()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.client.close()


def test_a_wait_ends_with_the_streams_silence() -> None:
    """Nothing comes: the wait ends; bytes that come and that nobody reads keep it going."""
    liveness = Liveness()
    with Stream() as stream:
        liveness.stream = stream
        check = liveness.watch()
        for _ in range(10):
            stream.server.send(b"x")
            time.sleep(stream.silence_s)
            check()
        with pytest.raises(SourceSilent):
            while True:
                time.sleep(stream.silence_s)
                check()


def test_nothing_is_said_without_a_stream_or_behind_a_full_buffer() -> None:
    """Before the stream and behind it, and where more bytes wait than may fit, silence says nothing."""
    liveness = Liveness()
    check = liveness.watch()
    check()
    time.sleep(2 * Stream.silence_s)
    check()
    with Stream() as stream:
        liveness.stream = stream
        stream.server.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                stream.server.send(bytes(1 << 16))
        for _ in range(3):
            check()
            time.sleep(2 * stream.silence_s)
    for _ in range(3):
        check()
        time.sleep(2 * stream.silence_s)
