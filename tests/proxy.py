"""A TCP proxy on 127.0.0.1 for fault tests: it can cut every connection, hold all bytes back, and cut after so many bytes."""

import contextlib
import select
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_STEP_S = 0.02
_BLOCK_BYTES = 65536


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
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, name=f"proxy-{self.port}")]
        self._threads[0].start()

    def cut(self, after_bytes: int = 0, refuse: bool = False) -> None:
        """Reset every connection, at once or when the server has sent `after_bytes` more.

        New connections are served again at once, or with `refuse` are reset until `resume`.
        """
        with self._lock:
            self._refusing = refuse
            if after_bytes:
                self._cut_at = self.bytes_down + after_bytes
            else:
                self._generation += 1

    def stall(self) -> None:
        """Hold back all bytes in both directions while the connections stay open, as a dead network does."""
        self._flowing.clear()

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
            orderly = self._pump(client, server, generation)
        for each in (client, server):
            each.close() if orderly else _reset(each)

    def _pump(self, client: socket.socket, server: socket.socket, generation: int) -> bool:
        """Forward in both directions, blocked by neither, until an end closes (True) or the proxy cuts (False)."""
        other = {client: server, server: client}
        waiting: dict[socket.socket, bytes] = {client: b"", server: b""}  # bytes to send, by where they go
        ended = False
        for each in other:
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while generation == self._generation:
            if not self._flowing.wait(_STEP_S):
                continue
            readers = [] if ended else [each for each in other if not waiting[other[each]]]
            writers = [each for each in other if waiting[each]]
            readable, writable, _ = select.select(readers, writers, [], _STEP_S)
            if generation != self._generation or not self._flowing.is_set():
                continue
            for each in readable:
                block = each.recv(_BLOCK_BYTES)
                ended = ended or not block
                if each is server:
                    block, cut = self._count(block)
                    if cut:
                        client.settimeout(1)
                        client.sendall(block)
                        return False
                waiting[other[each]] = block
            for each in writable:
                sent = each.send(waiting[each])
                waiting[each] = waiting[each][sent:]
            if ended and not any(waiting.values()):
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


def _reset(end: socket.socket) -> None:
    """Close with a reset instead of an orderly end, as a firewall or a crash would."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
