"""A socket's bytes in one growing buffer, for kernels that walk MySQL packets.

Owns the buffer and the joining of packets that are continued. Knows nothing of what is in the packets.
"""

from __future__ import annotations

import fcntl
import select
import ssl
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replicator.errors import SourceSilent, SourceUnavailable

FIRST_BYTES = 1 << 20
# Behind the last byte, so that a kernel may look a few bytes ahead of what it has checked.
PADDING_BYTES = 64
HEADER_BYTES = 4
LONGEST_PAYLOAD = 0xFFFFFF
TICK_S = 0.1


class PacketBuffer:
    """Bytes received and not yet used: data[at:end].

    Args:
        sock: a connected socket, plain or TLS.
        silence_s: how long nothing may come before the connection counts as broken.
        check: called every now and then while nothing comes; raises where that is enough.
    """

    def __init__(self, sock: Any, silence_s: float, check: Callable[[], None] | None = None) -> None:
        self._socket = sock
        self._silence_s, self._check = silence_s, check
        self.heard_at = time.monotonic()
        self.data: NDArray[np.uint8] = np.empty(FIRST_BYTES + PADDING_BYTES, np.uint8)
        self.at = 0
        self.end = 0

    def look(self) -> tuple[float, int] | None:
        """When bytes were read last, and how many wait in the socket; None where it is closed. For any thread."""
        waiting = bytearray(4)
        try:
            fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, waiting)
        except (OSError, ValueError):
            return None
        return self.heard_at, int.from_bytes(waiting, sys.byteorder)

    def can_read(self, timeout_s: float) -> bool:
        """Whether bytes have come, or come in time."""
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def read(self, timeout_s: float, wanted: int) -> bool:
        """Read what has come, with room for `wanted` bytes from `at` on; False where nothing came in time.

        Raises:
            SourceSilent: nothing came for too long.
            SourceUnavailable: the connection ended.
        """
        if not self.can_read(timeout_s):
            silence = time.monotonic() - self.heard_at
            if silence > self._silence_s:
                raise SourceSilent(f"the source has been silent for {silence:.0f} s", hint="The connection may be half open.")
            if self._check is not None:
                self._check()
            return False
        self._make_room(wanted)
        try:
            size = self._socket.recv_into(self.data.data[self.end : len(self.data) - PADDING_BYTES])
        except OSError as error:
            raise SourceUnavailable(f"the connection to the source broke: {error}") from None
        if size == 0:
            raise SourceUnavailable("the source closed the connection")
        self.end += size
        self.heard_at = time.monotonic()
        return True

    def read_until(self, size: int) -> None:
        """Wait until data[at : at + size] is there."""
        while self.end - self.at < size:
            self.read(TICK_S, size)

    def take_packet(self) -> bytes:
        """The payload of the next packet, which must not be a continued one."""
        self.read_until(HEADER_BYTES)
        size = self._payload_at(0)
        self.read_until(HEADER_BYTES + size)
        self.at += HEADER_BYTES + size
        return self.data[self.at - size : self.at].tobytes()

    def join_packets(self) -> int:
        """Make one of the packet at `at` and its continuations, in place; the bytes of its payload.

        The length does not fit into the packet's header, which is left as it is.
        """
        # Offsets count from `at`, because reading more may move everything.
        joined = LONGEST_PAYLOAD
        next_at = HEADER_BYTES + LONGEST_PAYLOAD
        last = False
        while not last:
            self.read_until(next_at + HEADER_BYTES)
            size = self._payload_at(next_at)
            self.read_until(next_at + HEADER_BYTES + size)
            self._move(next_at + HEADER_BYTES, HEADER_BYTES + joined, size)
            joined += size
            next_at += HEADER_BYTES + size
            last = size < LONGEST_PAYLOAD
        rest = self.end - self.at - next_at
        self._move(next_at, HEADER_BYTES + joined, rest)
        self.end = self.at + HEADER_BYTES + joined + rest
        return joined

    def _payload_at(self, offset: int) -> int:
        start = self.at + offset
        return int.from_bytes(self.data[start : start + 3].tobytes(), "little")

    def _move(self, start: int, target: int, size: int) -> None:
        self.data[self.at + target : self.at + target + size] = self.data[self.at + start : self.at + start + size]

    def _make_room(self, wanted: int) -> None:
        """Move what is left to the front where little room is behind it; the buffer fits the packet at hand."""
        left = self.end - self.at
        wanted = max(wanted, left + 1)
        room = len(self.data) - PADDING_BYTES
        reserve = FIRST_BYTES // 16
        if self.at + wanted <= room and room - self.end >= reserve:
            return
        size = max(FIRST_BYTES, 1 << (wanted + reserve).bit_length()) + PADDING_BYTES
        target = self.data if size == len(self.data) else np.empty(size, np.uint8)
        target[:left] = self.data[self.at : self.end]
        self.data, self.at, self.end = target, 0, left
