"""Walks damaged streams for a while; run by test_fuzz.py in a process of its own, with bounds checks in the kernels.

Prints how many streams were walked and how many ended in an error; any other exception than a typed error ends it.
"""

import random
import struct
import sys
from collections.abc import Callable

import numpy as np

from replicator import decode
from replicator.events import Event
from replicator.plan import Plans
from replicator.typemap import BINARY, Column, Kind
from tests.binlog_writer import Binlog, Field, write_format_description, write_image, write_packets, write_rows, write_table_map
from tests.decoding import CHARSETS, Change, Tables, Walked, make_stream, walk
from warehouse.errors import TailraceError

FIELDS = (
    Field("id", 3),
    Field("name", 15, b"\x50\0", collation=45),
    Field("amount", 246, b"\x14\x05"),
    Field("at", 18, b"\x03"),
    Field("span", 19, b"\x06"),
    Field("day", 10),
    Field("note", 252, b"\2", collation=8),
    Field("wide", 15, b"\x50\0", collation=28),
    Field("color", 254, b"\xf7\x01", collation=45, labels=(b"red", "grün".encode())),
    Field("flags", 254, b"\xf8\x01", collation=45, labels=(b"a", b"b", b"c")),
    Field("bits", 16, b"\x03\x01"),
    Field("value", 5, b"\x08"),
)


def image(n: int) -> bytes:
    """A row of FIELDS."""
    text = f"näme {n}".encode()
    return write_image(
        [
            struct.pack("<i", n), bytes([len(text)]) + text, b"\x80\0\0\0\0\0\x01" + b"\x0c\x22\x11",
            (0x8000000000 + (((2024 * 13 + 2) << 5 | 29) << 17)).to_bytes(5, "big") + b"\x13\x88", b"\x80\x10\x83\0\0\x01",
            (2024 << 9 | 5 << 5 | 6).to_bytes(3, "little"), b"\4\0\xe9abc", b"\4\xc4\xe3\xba\xc3", b"\2", b"\5", b"\3\xff",
            None if n % 3 else struct.pack("<d", n / 7),
        ]
    )  # fmt: skip


def make_binlog(*, checksum: bool) -> Binlog:
    """A short stream with every kind of event that the kernel walks."""
    binlog = Binlog(checksum=checksum)
    binlog.add(Event.ROTATE, struct.pack("<Q", 4) + b"binlog.000002", pos=0, flags=0x20)
    binlog.add(Event.FORMAT_DESCRIPTION, write_format_description(checksum=checksum))
    table_map = (Event.TABLE_MAP, write_table_map(7, "d", "t", FIELDS, [0]))
    count = len(FIELDS)
    rows = write_rows(7, count, [image(1), image(2), image(3)])
    binlog.add_transaction(1, [table_map, (Event.WRITE_ROWS, rows)])
    update = write_rows(7, count, [image(2), image(4)], update=True, version=1)
    delete = write_rows(7, count, [image(1)])
    binlog.add_transaction(2, [table_map, (Event.UPDATE_ROWS_V1, update), (Event.DELETE_ROWS, delete)])
    return binlog


def damage(data: bytes, rng: random.Random, *, starts: list[int]) -> bytes:
    """Some bits, bytes or pieces of a stream changed; packet headers, too."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = (
            rng.randrange(len(changed)) if rng.random() < 0.7 else min(rng.choice(starts) + rng.randrange(60), len(changed) - 1)
        )
        how = rng.randrange(6)
        if how == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)])
        elif how == 2:
            del changed[at : at + rng.randrange(1, 9)]
        elif how == 3:
            changed[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 4:
            changed[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), struct.pack("<I", 1 << 31), rng.randbytes(4)])
        else:
            del changed[at:]
        if not changed:
            return b""
    return bytes(changed)


def without_numbers(changes: list[Change]) -> list[tuple[object, ...]]:
    """What must be right of each change."""
    return [(c.table, c.op, c.fields, c.key, c.old_key, c.seq) for c in changes]


def walk_damaged(data: bytes, *, checksum: bool) -> tuple[Walked, bool]:
    """What came out, and whether a typed error ended it."""
    walked = Walked()
    try:
        walk(make_stream([data[:400], data[400:]], Tables({"t": (0,)}), checksum=checksum), walked)
    except TailraceError:
        return walked, True
    except AssertionError:
        # the reading of tuples by the test itself: only a stream without checksums may yield nonsense
        assert not checksum
        return walked, False
    return walked, False


def fuzz_streams(rng: random.Random, rounds: int, *, checksum: bool) -> int:
    """Walk damaged streams; the number of errors. With checksums, what comes out is a beginning of what is right."""
    binlog = make_binlog(checksum=checksum)
    data = binlog.stream()
    starts = [sum(len(event) + 5 for event in binlog.events[:n]) for n in range(len(binlog.events))]
    right = without_numbers(walk_damaged(data, checksum=checksum)[0].changes)
    assert len(right) == 5
    errors = 0
    for _ in range(rounds):
        walked, failed = walk_damaged(damage(data, rng, starts=starts), checksum=checksum)
        errors += failed
        if checksum:
            found = without_numbers(walked.changes)
            assert found == right[: len(found)], "a damaged stream yielded other rows"
    return errors


def fuzz_results(rng: random.Random, rounds: int) -> None:
    """Random rows of a binary result set: any return code, never a byte beyond the arrays."""
    columns = (
        Column("a", Kind.LONG), Column("b", Kind.DECIMAL, precision=20, scale=5), Column("c", Kind.DATETIME, scale=3),
        Column("d", Kind.TIME, scale=6), Column("e", Kind.TEXT, charset="latin1", length_bytes=2),
        Column("f", Kind.BIT, width=11), Column("g", Kind.BYTES, charset=BINARY, length_bytes=1, width=9),
        Column("h", Kind.LONGLONG, unsigned=True),
    )  # fmt: skip
    plans = Plans(CHARSETS)
    number = plans.add(columns, (0,), wanted=True, table=0)
    for _ in range(rounds):
        rows = [b"\0" + rng.randbytes(2) + rng.randbytes(rng.randrange(80)) for _ in range(3)]
        data = np.frombuffer(b"".join(map(write_packets, rows)) + bytes(64), np.uint8)
        state = np.zeros(decode.STATE_CELLS, np.int64)
        decode.consume_result(
            data, len(data) - 64, state, number, plans.plans[number], plans.columns, plans.blob, plans.labels,
            np.empty(1 << 16, np.uint8), np.zeros(16, decode.CHANGE), np.zeros(128, np.uint8),
        )  # fmt: skip


def main(seed: int, rounds: int, check: Callable[[], None] | None = None) -> None:
    """Fuzz with checksums, without them, and result sets."""
    rng = random.Random(seed)
    if check is not None:
        check()
    found = fuzz_streams(rng, rounds, checksum=True), fuzz_streams(rng, rounds, checksum=False)
    fuzz_results(rng, rounds)
    print(f"{rounds} {found[0]} {found[1]}")


def check_bounds() -> None:
    """See that the kernels notice an access beyond an array."""
    try:
        decode.crc32(np.zeros(4, np.uint8), 0, 16)
    except IndexError:
        return
    raise SystemExit("the kernels run without bounds checks")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), check_bounds if "checked" in sys.argv else None)
