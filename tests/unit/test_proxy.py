"""The proxy of the fault tests does what those tests rely on."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxy import Proxy


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while block := connection.recv(4096):
                    connection.sendall(block)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=serve, args=(connection,))
            threads.append(thread)
            thread.start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join()


@pytest.fixture
def proxy(echo_port: int) -> Iterator[Proxy]:
    """A proxy before the echo server."""
    with Proxy("127.0.0.1", echo_port) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    """Connect through the proxy."""
    return socket.create_connection((proxy.host, proxy.port), timeout=10)


def read(connection: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes, or what comes before the end."""
    got = b""
    while len(got) < size and (block := connection.recv(size - len(got))):
        got += block
    return got


def test_bytes_pass_unchanged(proxy: Proxy) -> None:
    """A megabyte goes there and back, and an orderly end arrives as one."""
    sent = bytes(range(256)) * 4096
    with connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        got = read(connection, len(sent))
        sender.join()
        assert got == sent
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert proxy.bytes_down == len(sent)


def test_cut_resets_and_serves_again(proxy: Proxy) -> None:
    """A cut is an error at the client, not an orderly end; the next connection works."""
    with connect(proxy) as connection:
        connection.sendall(b"a")
        assert read(connection, 1) == b"a"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(proxy) as connection:
        connection.sendall(b"b")
        assert read(connection, 1) == b"b"
    assert proxy.connections == 2


def test_cut_after_bytes(proxy: Proxy) -> None:
    """Exactly so many bytes arrive before the reset."""
    proxy.cut(after_bytes=5)
    with connect(proxy) as connection:
        connection.sendall(b"0123456789")
        assert read(connection, 5) == b"01234"
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_orderly_cut(proxy: Proxy) -> None:
    """The server seems to have closed the connection in the middle of what it sent."""
    proxy.cut(after_bytes=5, orderly=True)
    with connect(proxy) as connection:
        connection.sendall(b"0123456789")
        assert read(connection, 10) == b"01234"


def test_slow_line(proxy: Proxy) -> None:
    """What is slow comes late, piece by piece, and unchanged; a cut does not drop what was sent before it."""
    sent = bytes(range(256)) * 16
    proxy.slow(0.05, 20_000)
    with connect(proxy) as connection:
        began = time.monotonic()
        connection.sendall(sent)
        assert connection.recv(len(sent)) == sent[:400]
        assert read(connection, len(sent) - 400) == sent[400:]
        # there and back
        assert time.monotonic() - began >= 0.1 + len(sent) / 20_000
        proxy.cut(after_bytes=len(sent) // 2, orderly=True)
        connection.sendall(sent)
        assert read(connection, len(sent)) == sent[: len(sent) // 2]


def test_stall_holds_bytes_back(proxy: Proxy) -> None:
    """Nothing arrives while stalled, and nothing is lost after it."""
    with connect(proxy) as connection:
        connection.sendall(b"a")
        assert read(connection, 1) == b"a"
        proxy.stall()
        connection.sendall(b"b")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.resume()
        connection.settimeout(10)
        assert read(connection, 1) == b"b"


def test_refuse_until_resume(proxy: Proxy) -> None:
    """With `refuse`, new connections are reset until `resume`."""
    proxy.cut(refuse=True)
    with pytest.raises(ConnectionError), connect(proxy) as connection:
        connection.sendall(b"a")
        if connection.recv(1) == b"":
            raise ConnectionError
    proxy.resume()
    with connect(proxy) as connection:
        connection.sendall(b"a")
        assert read(connection, 1) == b"a"
