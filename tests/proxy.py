"""A TCP proxy on 127.0.0.1 for fault tests: it cuts at any byte, holds bytes back, delays them, and lets few through."""

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

_STEP_S, _SHORT_STEP_S = 0.02, 0.002
_BLOCK_BYTES, _BLOCKS = 65536, 16


class Proxy:
    """Forwards connections to (host, port); `port` is where to connect instead. One thread accepts, one serves a connection."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = "127.0.0.1"
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0  # accepted so far
        self.bytes_down = 0  # forwarded from the server so far
        self._lock = threading.Lock()
        self._generation = 0
        self._cut_at: int | None = None
        self._is_orderly = False
        self._delay_s, self._bytes_per_s = 0.0, float("inf")
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, name=f"proxy-{self.port}")]
        self._threads[0].start()

    def cut(self, after_bytes: int = 0, *, refuse: bool = False, orderly: bool = False) -> None:
        """Reset every connection, at once or when the server has sent `after_bytes` more.

        New connections are served again at once, or with `refuse` are reset until `resume`. With `orderly` the connections end
        as if the other side had closed them, in the middle of whatever it was sending.
        """
        with self._lock:
            self._refusing, self._is_orderly = refuse, orderly
            if after_bytes:
                self._cut_at = self.bytes_down + after_bytes
            else:
                self._generation += 1

    def stall(self) -> None:
        """Hold back all bytes in both directions while the connections stay open, as a dead network does."""
        self._flowing.clear()

    def slow(self, delay_s: float = 0.0, bytes_per_s: float = float("inf")) -> None:
        """Let bytes take so long in each direction, and so many through in a second; without arguments, at once."""
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s

    def resume(self) -> None:
        """Let bytes and new connections through again."""
        self._refusing = False
        self._flowing.set()

    def close(self) -> None:
        """Reset every connection, stop listening, and wait for the threads to end."""
        self._closed = True
        self.cut()
        self._flowing.set()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                if not select.select([self._listener], [], [], _STEP_S)[0]:
                    continue
                client, _ = self._listener.accept()
            except (OSError, ValueError):  # closed meanwhile
                return
            self.connections += 1
            if self._refusing:
                _reset(client)
                continue
            thread = threading.Thread(target=self._serve, args=(client, self._generation), name=f"proxy-{self.port}-serve")
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, generation: int) -> None:
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:
            _reset(client)
            return
        orderly = False
        with contextlib.suppress(OSError):
            orderly = self._pump(client, server, generation) or self._is_orderly
        for each in (client, server):
            each.close() if orderly else _reset(each)

    def _pump(self, client: socket.socket, server: socket.socket, generation: int) -> bool:
        """Forward in both directions, blocked by neither, until an end closes (True) or the proxy cuts (False)."""
        other = {client: server, server: client}
        lines = {client: _Line(), server: _Line()}  # by where the bytes go
        ended = False
        for each in other:
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while generation == self._generation:
            if not self._flowing.wait(_STEP_S):
                continue
            readers = [] if ended else [each for each in other if lines[other[each]].has_room]
            writers = [each for each in other if lines[each].is_due]
            is_slow = any(line.blocks for line in lines.values()) and not writers
            readable, writable, _ = select.select(readers, writers, [], _SHORT_STEP_S if is_slow else _STEP_S)
            if generation != self._generation or not self._flowing.is_set():
                continue
            for each in readable:
                block = each.recv(min(_BLOCK_BYTES, max(1, int(min(_BLOCK_BYTES, self._bytes_per_s * _STEP_S)))))
                ended = ended or not block
                if each is server:
                    block, cut = self._count(block)
                    if cut:
                        client.settimeout(1)
                        client.sendall(b"".join([*(rest for _, rest in lines[client].blocks), block]))
                        return False
                if block:
                    lines[other[each]].add(block, self._delay_s, self._bytes_per_s)
            for each in writable:
                lines[each].sent(each.send(lines[each].blocks[0][1]))
            if ended and not any(line.blocks for line in lines.values()):
                return True
        return False

    def _count(self, block: bytes) -> tuple[bytes, bool]:
        """Count bytes from the server; shorten the block where a cut is due in it, and say whether it is."""
        cut = False
        with self._lock:
            if self._cut_at is not None and self.bytes_down + len(block) >= self._cut_at:
                block = block[: self._cut_at - self.bytes_down]
                self._cut_at = None
                self._generation += 1
                cut = True
            self.bytes_down += len(block)
        return block, cut


class _Line:
    """One direction of a connection: what is on its way.

    Attributes:
        blocks: of bytes, each with when it arrives, in time.monotonic() seconds.
    """

    def __init__(self) -> None:
        self.blocks: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0

    @property
    def has_room(self) -> bool:
        """Whether more may be sent."""
        return len(self.blocks) < _BLOCKS

    @property
    def is_due(self) -> bool:
        """Whether something has arrived."""
        return bool(self.blocks) and self.blocks[0][0] <= time.monotonic()

    def add(self, block: bytes, delay_s: float, bytes_per_s: float) -> None:
        """Send it on its way."""
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + len(block) / bytes_per_s
        self.blocks.append((self._free_at + delay_s, block))

    def sent(self, size: int) -> None:
        """So much of the first block was taken."""
        due, block = self.blocks.popleft()
        if size < len(block):
            self.blocks.appendleft((due, block[size:]))


def _reset(end: socket.socket) -> None:
    """Close with a reset instead of an orderly end, as a firewall or a crash would."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
