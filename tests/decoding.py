"""The stream without a server: bytes in, whole transactions out, for tests of the decoder."""

import dataclasses
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
from psycopg.pq import Format

from replicator import decode
from replicator.changes import Batch, ChangeBuffer
from replicator.charsets import Charsets
from replicator.errors import SourceUnavailable, TableProblem, UnrepresentableKey
from replicator.items import Choice, Idle, Statement
from replicator.packets import PacketBuffer
from replicator.plan import Plans
from replicator.position import GtidSet, MariaDbGtids, Position
from replicator.rare import RareEvents
from replicator.stream import Stream
from replicator.tablemap import TableMap
from replicator.typemap import Column
from replicator.values import finish_rows
from replicator.xa import Held
from warehouse.settings import ReplicatorSettings

LATIN1 = ["", *(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(1, 256))]
COLLATIONS = {8: "latin1", 28: "gbk", 45: "utf8mb4", 54: "utf16", 63: "binary"}
CHARSETS = Charsets(COLLATIONS, {"latin1": LATIN1})
FIRST_SEQ = 1000


class FedPackets(PacketBuffer):
    """A packet buffer that is given its bytes in pieces instead of a socket."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__(None, 1)
        self._pieces = deque(pieces)
        self._misses = 0

    def can_read(self, timeout_s: float) -> bool:
        """Whether there are pieces left."""
        return bool(self._pieces)

    def read(self, timeout_s: float, wanted: int) -> bool:
        """Take one piece; False once where there is none, then the connection counts as closed."""
        if not self._pieces:
            self._misses += 1
            if self._misses > 1:
                raise SourceUnavailable("there are no more bytes")
            return False
        piece = np.frombuffer(self._pieces.popleft(), np.uint8)
        self._make_room(max(wanted, self.end - self.at + len(piece)))
        self.data[self.end : self.end + len(piece)] = piece
        self.end += len(piece)
        return True


class Tables:
    """A chooser that wants the named tables, all columns known, with these key positions."""

    def __init__(self, keys: Mapping[str, tuple[int, ...]]) -> None:
        self.keys = keys
        self.names: list[str] = []
        self.maps: list[TableMap] = []
        self.rejected: list[tuple[int, TableProblem]] = []

    def choose(self, table_map: TableMap, at: Position) -> Choice | None:
        """Number the tables as they come."""
        self.maps.append(table_map)
        if table_map.table not in self.keys or table_map.columns is None:
            return None
        if table_map.table not in self.names:
            self.names.append(table_map.table)
        return Choice(self.names.index(table_map.table), self.keys[table_map.table])

    def reject(self, table: int, problem: TableProblem) -> None:
        """Remember why."""
        self.rejected.append((table, problem))

    def distrust(self, problem: TableProblem) -> None:
        """Remember that nothing can be relied on."""
        self.rejected.append((-1, problem))


@dataclasses.dataclass(frozen=True)
class Change:
    """One change with its bytes; fields hold None for NULL."""

    table: str
    op: int
    fields: tuple[bytes | None, ...]
    key: tuple[bytes | None, ...]
    old_key: tuple[bytes | None, ...]
    seq: int
    commit_us: int


@dataclasses.dataclass
class Walked:
    """What came out of a stream: changes, statements, positions after each batch, and the error at its end."""

    changes: list[Change] = dataclasses.field(default_factory=list)
    transactions: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    statements: list[str] = dataclasses.field(default_factory=list)
    position: Position | None = None
    batches: int = 0
    parts: int = 0


def make_stream(
    pieces: Iterable[bytes], tables: Tables, *, mariadb: bool = False, checksum: bool = True, gtids: bool = True,
    settings: ReplicatorSettings | None = None, prepared: dict[str, Held] | None = None,
) -> Stream:  # fmt: skip
    """A stream whose dump connection is these bytes."""
    stream = object.__new__(Stream)
    stream.settings, stream.chooser = settings or ReplicatorSettings(linger_ms=0), tables
    nothing = MariaDbGtids() if mariadb else GtidSet()
    stream.position = Position("binlog.000001", 4, nothing if gtids else None)
    stream.charsets, stream.plans, stream._mariadb = CHARSETS, Plans(CHARSETS), mariadb
    stream._files = [stream.position.file]
    stream._changes = ChangeBuffer(FIRST_SEQ)
    stream._state = stream._changes.state
    stream._state[decode.LOG_POS] = 4
    stream._state[decode.CHECKSUM] = checksum
    stream._state[decode.ENOUGH_ROWS] = stream.settings.batch_rows
    stream._state[decode.ENOUGH_BYTES] = stream.settings.batch_bytes
    stream._renewed_seq, stream._renewed = None, False
    RareEvents.__init__(stream, prepared or {})
    stream._packets = stream._socket_packets = FedPackets(pieces)
    return stream


def walk(stream: Stream, into: Walked | None = None) -> Walked:
    """Everything up to the first tick; errors pass through, and `into` keeps what came before."""
    walked = Walked() if into is None else into
    chooser: Any = stream.chooser
    for item in stream.items():
        walked.position = item.position
        if isinstance(item, Batch):
            walked.batches += 1
            walked.parts += not item.whole
            if item.whole:
                walked.transactions += [(int(tx["number"]), int(tx["commit_us"])) for tx in item.transactions]
            walked.changes += read_changes(item, chooser.names)
        elif isinstance(item, Statement):
            walked.statements.append(item.query.text)
        elif isinstance(item, Idle):
            break
    return walked


def _raise_unless_key(_: int, problem: TableProblem) -> None:
    """Rows that lack a key of Postgres' keep what the kernel wrote."""
    if not isinstance(problem, UnrepresentableKey):
        raise problem


def read_changes(batch: Batch, names: Sequence[str]) -> list[Change]:
    """The changes of a batch, hard rows finished as the applier does it."""

    def reject(index: int, problem: TableProblem) -> None:
        raise problem

    changes = batch.changes.copy()
    out, has_raw = finish_rows(batch.plans, changes, batch.out, is_result=False, reject=reject)
    found = []
    for n, change in enumerate(changes):
        image = read_tuple(_cut(out, change["image"], change["image_bytes"])) if change["image_bytes"] else ()
        assert not image or (image[-1] is not None) == has_raw[n]
        found.append(
            Change(
                names[batch.plans.tables[int(change["plan"])]],
                int(change["op"]),
                image,
                read_fields(_cut(batch.keys, change["key"], change["key_bytes"])),
                read_fields(_cut(batch.keys, change["old_key"], change["old_key_bytes"])),
                int(change["seq"]),
                int(change["commit_us"]),
            )
        )
    return found


def _cut(data: Any, at: int, size: int) -> bytes:
    return bytes(data[at : at + size].tobytes()) if size else b""


def read_tuple(data: bytes) -> tuple[bytes | None, ...]:
    """The fields of one COPY BINARY tuple, which must end where its last field ends."""
    (count,) = struct.unpack_from("!h", data)
    fields = read_fields(data[2:])
    assert len(fields) == count
    return fields


def read_fields(data: bytes) -> tuple[bytes | None, ...]:
    """Length-prefixed fields; -1 is NULL."""
    fields: list[bytes | None] = []
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("!i", data, at)
        at += 4
        assert size >= -1
        fields.append(None if size < 0 else data[at : at + size])
        at += max(size, 0)
    assert at == len(data)
    return tuple(fields)


def load(field: bytes | None, column: Column) -> Any:
    """A COPY BINARY field as the Python value that psycopg reads from it."""
    if field is None:
        return None
    name = str(column.mirror_type).partition("(")[0]
    if name == "bit":
        (bits,) = struct.unpack_from("!i", field)
        assert len(field) == 4 + (bits + 7) // 8
        number = int.from_bytes(field[4:], "big")
        padding = 8 * (len(field) - 4) - bits
        assert number & ((1 << padding) - 1) == 0
        return f"{number >> padding:0{bits}b}"
    oid = psycopg.postgres.types[{"timestamptz": "timestamptz", "timestamp": "timestamp"}.get(name, name)].oid
    loader = psycopg.adapters.get_loader(oid, Format.BINARY)
    assert loader is not None
    return loader(oid).load(field)


def read_own(change: Change) -> tuple[int, int | None, str | None]:
    """_seq, _committed_at (microseconds since 1970) and _raw (JSON text) of an image."""
    seq, stamp, raw = change.fields[-3:]
    assert seq is not None
    commit_us = None if stamp is None else struct.unpack("!q", stamp)[0] + 946_684_800_000_000
    return struct.unpack("!q", seq)[0], commit_us, None if raw is None else raw[1:].decode()
