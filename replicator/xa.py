"""Prepared XA transactions: their events are held back, byte for byte, until the source decides about them.

When the source commits, the events are decoded as if they stood there; prepared.py keeps them over a restart.
Owns the layout of XA events. Decides nothing about rows. Pure, but for a temporary file where a transaction is large.

Sources: MySQL manual, "XA Transactions"; MySQL source, XA_prepare_event; MariaDB knowledge base, "Gtid_event".
"""

from __future__ import annotations

import re
import struct
import tempfile
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from replicator.errors import StreamBroken
from replicator.events import HEADER_BYTES
from replicator.payload import EventBuffer

IN_MEMORY_BYTES = 4 << 20
PART_BYTES = 4 << 20
# MariaDB's GTID event says by this flag that a prepared transaction follows.
PREPARED_FLAG = 0x40

_STATEMENT = re.compile(r"\s*XA\s+(\w+)\s+X'([0-9A-F]*)'\s*(?:,\s*X'([0-9A-F]*)'\s*(?:,\s*(\d+))?)?", re.IGNORECASE)


class Held:
    """The events of one transaction, on disk where they are many. Safe to read from another thread."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - lives as long as this
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self.size = 0

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        with self._lock:
            self._file.seek(self.size)
            self._file.write(data)
            self.size += len(data)

    def add_event(self, event: bytes) -> None:
        """Add an event that has no checksum (any more), whatever its header says of its length."""
        self.append(event[:9] + struct.pack("<I", len(event)) + event[13:HEADER_BYTES] + event[HEADER_BYTES:])

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from an offset on, at most so many."""
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    def parts(self) -> Iterator[bytes]:
        """All bytes, in parts."""
        for offset in range(0, self.size, PART_BYTES):
            yield self.read(offset, PART_BYTES)

    def open(self) -> EventBuffer:
        """The events, to be walked from the first."""
        return EventBuffer(_HeldReader(self), self.size)


class _HeldReader:
    """Reads held events from their beginning."""

    def __init__(self, held: Held) -> None:
        self._held, self._at = held, 0

    def readinto(self, target: memoryview, /) -> int:
        """Write the next bytes into target; how many."""
        data = self._held.read(self._at, len(target))
        target[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(frozen=True)
class XaChange:
    """A transaction was prepared (held), or the source decided about one (None)."""

    xid: str
    held: Held | None = None


def parse_statement(text: str) -> tuple[str, str]:
    """The verb and the xid of a logged XA statement: XA COMMIT X'6131',X'62',1.

    Raises:
        StreamBroken: it is not such a statement.
    """
    found = _STATEMENT.match(text)
    if found is None:
        raise StreamBroken(f"an XA statement cannot be read: {text[:60]!r}")
    verb, name, branch, number = found.groups()
    return verb.upper(), _print_xid(int(number or 1), bytes.fromhex(name), bytes.fromhex(branch or ""))


def parse_prepare(body: bytes) -> tuple[bool, str]:
    """Whether an XA_PREPARE event commits at once (ONE PHASE), and its xid.

    Layout: one phase 1, format 4, length of the name 4, of the branch 4, both.
    """
    if len(body) < 13:
        raise StreamBroken("an XA_PREPARE event is too short")
    one_phase, number, name_bytes, branch_bytes = struct.unpack_from("<BiII", body)
    name, rest = body[13 : 13 + name_bytes], body[13 + name_bytes :]
    if len(rest) < branch_bytes:
        raise StreamBroken("an XA_PREPARE event is shorter than its own lengths say")
    return bool(one_phase), _print_xid(number, name, rest[:branch_bytes])


def _print_xid(number: int, name: bytes, branch: bytes) -> str:
    return f"X'{name.hex()}',X'{branch.hex()}',{number}"
