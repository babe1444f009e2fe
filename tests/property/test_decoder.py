"""Any row of any columns: the kernel's COPY bytes, read by psycopg, are what the slow twin reads from the image."""

import datetime
import decimal
import json
import struct
from typing import Any

import numpy as np
import psycopg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.adapt import PyFormat

from replicator import decode
from replicator.events import Event
from replicator.position import GtidSet, MariaDbGtids
from replicator.typemap import BINARY, Column, Kind
from tests.binlog_writer import Binlog, pack_integer, write_image, write_rows
from tests.decoding import CHARSETS, FIRST_SEQ, Tables, load, make_stream, read_own, walk
from tests.naive_decoder import NOTHING, Reader, read_decimal, read_image, read_value

quick = settings(deadline=None)


# ---------------------------------------------------------------------------------------------------- values as they lie
def write_decimal(digits: str, scale: int, *, negative: bool) -> bytes:
    """DECIMAL digits as a row image holds them."""
    sizes = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    whole, fraction = digits[: len(digits) - scale], digits[len(digits) - scale :]
    odd = len(whole) % 9
    groups = [whole[:odd], *(whole[i : i + 9] for i in range(odd, len(whole), 9))]
    groups += [fraction[i : i + 9] for i in range(0, len(fraction), 9)]
    out = bytearray(b"".join(int(group or 0).to_bytes(sizes[len(group)], "big") for group in groups))
    if negative:
        out = bytearray(byte ^ 0xFF for byte in out)
    out[0] ^= 0x80
    return bytes(out)


def write_fraction(us: int, scale: int) -> bytes:
    """Microseconds cut to a scale, in 0 to 3 bytes."""
    size = (scale + 1) // 2
    us -= us % 10 ** (6 - scale)
    return (us // 100 ** (3 - size)).to_bytes(size, "big")


def write_time(us: int, scale: int) -> bytes:
    """A TIME in microseconds, of any sign."""
    size = (scale + 1) // 2
    total = abs(us) - abs(us) % 10 ** (6 - scale)
    seconds, rest = divmod(total, 1_000_000)
    clock = (seconds // 3600) << 12 | (seconds // 60 % 60) << 6 | seconds % 60
    number = clock << 8 * size | (rest // 100 ** (3 - size) if size else 0)
    return ((1 << 8 * (3 + size) - 1) + (-number if us < 0 else number)).to_bytes(3 + size, "big")


def write_text(value: bytes, prefix: int) -> bytes:
    """Text or bytes behind their length."""
    return len(value).to_bytes(prefix, "little") + value


@st.composite
def decimals(draw: st.DrawFn) -> tuple[Column, bytes]:
    """Any precision and scale, MariaDB's larger ones too."""
    precision = draw(st.integers(1, 65))
    scale = draw(st.integers(0, min(38, precision)))
    digits = draw(
        st.text("0123456789", min_size=precision, max_size=precision) | st.sampled_from(["0" * precision, "9" * precision])
    )
    negative = draw(st.booleans()) and bool(digits.strip("0"))
    return Column("c", Kind.DECIMAL, precision=precision, scale=scale), write_decimal(digits, scale, negative=negative)


@st.composite
def temporal(draw: st.DrawFn) -> tuple[Column, bytes]:
    """Times of every layout, those included that Postgres does not have."""
    kind = draw(st.sampled_from(
        [Kind.DATE, Kind.TIME, Kind.DATETIME, Kind.TIMESTAMP, Kind.OLD_TIME, Kind.OLD_DATETIME, Kind.OLD_TIMESTAMP, Kind.YEAR]
    ))  # fmt: skip
    scale = draw(st.integers(0, 6)) if kind in (Kind.TIME, Kind.DATETIME, Kind.TIMESTAMP) else 0
    us = draw(st.sampled_from([0, 1, 100_000, 999_999]) | st.integers(0, 999_999))
    year, month, day = draw(st.tuples(st.integers(0, 9999), st.integers(0, 12), st.integers(0, 31)))
    hour, minute, second = draw(st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59)))
    column = Column("c", kind, scale=scale)
    if kind is Kind.DATE:
        return column, (year << 9 | month << 5 | day).to_bytes(3, "little")
    if kind is Kind.YEAR:
        return column, bytes([draw(st.integers(0, 255))])
    if kind is Kind.TIME:
        limit = (838 * 3600 + 59 * 60 + 59) * 1_000_000
        return column, write_time(
            draw(st.integers(-limit, limit) | st.sampled_from([-1, -100_000, -limit, limit, -1_500_000])), scale
        )
    if kind is Kind.DATETIME:
        packed = ((year * 13 + month) << 5 | day) << 17 | hour << 12 | minute << 6 | second
        return column, (packed + 0x8000000000).to_bytes(5, "big") + write_fraction(us, scale)
    if kind is Kind.OLD_DATETIME:
        number = ((year * 100 + month) * 100 + day) * 1_000_000 + (hour * 100 + minute) * 100 + second
        return column, number.to_bytes(8, "little")
    if kind is Kind.OLD_TIME:
        number = draw(st.sampled_from([-1, 1])) * (draw(st.integers(0, 838)) * 10_000 + minute * 100 + second)
        return column, number.to_bytes(3, "little", signed=True)
    seconds = draw(st.sampled_from([0, 1, 2**31 - 1]) | st.integers(0, 2**32 - 1))
    if kind is Kind.OLD_TIMESTAMP:
        return column, seconds.to_bytes(4, "little")
    return column, seconds.to_bytes(4, "big") + write_fraction(us if seconds else 0, scale)


@st.composite
def numbers(draw: st.DrawFn) -> tuple[Column, bytes]:
    """Integers, floating point numbers and bits: any bytes are one."""
    kind, size = draw(st.sampled_from([(Kind.TINY, 1), (Kind.SHORT, 2), (Kind.INT24, 3), (Kind.LONG, 4), (Kind.LONGLONG, 8)]))
    edges = st.sampled_from([bytes(size), b"\xff" * size, b"\xff" * (size - 1) + b"\x7f", bytes(size - 1) + b"\x80"])
    return Column("c", kind, draw(st.booleans())), draw(edges | st.binary(min_size=size, max_size=size))


@st.composite
def others(draw: st.DrawFn) -> tuple[Column, bytes]:
    """Text, bytes, labels, bits and floating point numbers."""
    what = draw(st.sampled_from(["text", "bytes", "padded", "enum", "set", "bit", "float", "double"]))
    if what == "float":
        return Column("c", Kind.FLOAT), struct.pack("<f", draw(st.floats(width=32, allow_nan=False)))
    if what == "double":
        return Column("c", Kind.DOUBLE), struct.pack("<d", draw(st.floats(allow_nan=False)))
    if what == "bit":
        width = draw(st.integers(1, 64))
        size = (width + 7) // 8
        return Column("c", Kind.BIT, width=width, length_bytes=size), draw(st.integers(0, 2**width - 1)).to_bytes(size, "big")
    if what in ("enum", "set"):
        labels = tuple(draw(st.lists(st.text(max_size=5), min_size=1, max_size=64 if what == "set" else 300)))
        if what == "set":
            size = next(n for n in (1, 2, 3, 4, 8) if 8 * n >= len(labels))
            number = draw(st.integers(0, 2 ** len(labels) - 1) | st.integers(0, 2 ** (8 * size) - 1))
            return Column("c", Kind.SET, length_bytes=size, labels=labels), number.to_bytes(size, "little")
        size = 1 if len(labels) < 256 else 2
        number = draw(st.integers(0, len(labels)) | st.integers(0, 256**size - 1))
        return Column("c", Kind.ENUM, length_bytes=size, labels=labels), number.to_bytes(size, "little")
    prefix = draw(st.integers(1, 4))
    if what == "padded":
        width = draw(st.integers(0, 255))
        value = draw(st.binary(max_size=width)).rstrip(b"\0")
        return Column("c", Kind.BYTES, charset=BINARY, length_bytes=1, width=width), write_text(value, 1)
    if what == "bytes":
        return Column("c", Kind.BYTES, charset=BINARY, length_bytes=prefix), write_text(draw(st.binary(max_size=200)), prefix)
    charset = draw(st.sampled_from(["utf8mb4", "latin1", "utf16", "gbk"]))
    value = draw(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
    return Column("c", Kind.TEXT, charset=charset, length_bytes=prefix), write_text(value, prefix)


VALUES = st.one_of(decimals(), temporal(), numbers(), others())


def decode_rows(columns: tuple[Column, ...], key: tuple[int, ...], events: list[tuple[int, bytes]]) -> list[Any]:
    """The changes of rows events over table 5, walked by the kernel."""
    binlog = Binlog()
    binlog.add_transaction(1, events)
    tables = Tables({})
    tables.names.append("t")
    stream = make_stream([binlog.stream()], tables)
    number = stream.plans.add(columns, key, wanted=True, table=0)
    stream.plans.bind(5, number)
    return walk(stream).changes


@quick
@given(st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=12))
def test_rows_are_what_the_twin_reads(made: list[tuple[tuple[Column, bytes], bool]]) -> None:
    """Insert and the image after an update give the twin's values; what Postgres lacks is NULL and told in _raw, or U+FFFD."""
    columns = tuple(column for (column, _), _ in made)
    names = tuple(Column(**{**vars(column), "name": f"c{n}"}) for n, column in enumerate(columns))
    image = write_image([None if is_null else value for (_, value), is_null in made])
    expected = read_image(image, names, CHARSETS)
    key_column = Column("id", Kind.LONG)
    images = [write_image([b"\1\0\0\0", *(None if null else value for (_, value), null in made)])]
    rows = write_rows(5, len(columns) + 1, images)
    update = write_rows(5, len(columns) + 1, images * 2, update=True)
    changes = decode_rows((key_column, *names), (0,), [(Event.WRITE_ROWS, rows), (Event.UPDATE_ROWS, update)])
    assert [change.op for change in changes] == [decode.INSERT, decode.UPDATE]
    assert changes[0].key == changes[1].key == changes[1].old_key == (struct.pack("!i", 1),)
    for n, change in enumerate(changes):
        seq, _, raw = read_own(change)
        assert seq == FIRST_SEQ + 1 + n
        kept = json.loads(raw) if raw else {}
        for column, field, value in zip(names, change.fields[1:], expected, strict=False):
            found = load(field, column)
            if value is NOTHING:
                assert column.name in kept
                assert found is None or column.kind is Kind.TEXT
            else:
                assert column.name not in kept
                assert found == value or (found != found and value != value)
                if isinstance(value, decimal.Decimal):
                    assert found.as_tuple().exponent == value.as_tuple().exponent
                if isinstance(value, float):
                    assert struct.pack("d", found) == struct.pack("d", value)


@quick
@given(decimals())
@example((Column("c", Kind.DECIMAL, precision=65, scale=30), write_decimal("9" * 65, 30, negative=True)))
@example((Column("c", Kind.DECIMAL, precision=1, scale=1), write_decimal("5", 1, negative=True)))
def test_decimal_bytes_are_those_of_postgres(made: tuple[Column, bytes]) -> None:
    """Byte for byte what psycopg sends for the same number, which Postgres takes as it is."""
    column, value = made
    number = read_decimal(Reader(value), column.precision, column.scale)
    assert decode.decimal_bytes(column.precision, column.scale) == len(value)
    field = decode_rows((column,), (0,), [(Event.WRITE_ROWS, write_rows(5, 1, [write_image([value])]))])[0].fields[0]
    assert field is not None
    loader = psycopg.adapters.get_loader(psycopg.postgres.types["numeric"].oid, psycopg.pq.Format.BINARY)
    assert loader is not None
    found = loader(0).load(field)
    assert (found, found.as_tuple().exponent) == (number, -column.scale)
    dumper = psycopg.adapters.get_dumper(decimal.Decimal, PyFormat.BINARY)(decimal.Decimal)
    dumper = dumper.upgrade(number, PyFormat.BINARY) if hasattr(dumper, "upgrade") else dumper
    sent = bytes(dumper.dump(number) or b"")
    # digits of base 10,000 without zeros at either end, as Postgres keeps them; psycopg leaves some in
    digits = np.frombuffer(field, ">u2")[4:]
    assert not len(digits) or (digits[0] > 0 and digits[-1] > 0)
    assert struct.unpack_from("!hh", field, 4) == struct.unpack_from("!hh", sent, 4)


@quick
@given(st.integers(-(2**63), 2**64 - 1))
def test_whole_numbers_are_psycopgs(number: int) -> None:
    """BIGINT UNSIGNED as numeric, BIGINT as int8."""
    unsigned = number >= 0
    raw = number.to_bytes(8, "little", signed=not unsigned)
    column = Column("c", Kind.LONGLONG, unsigned)
    changes = decode_rows((column,), (0,), [(Event.WRITE_ROWS, write_rows(5, 1, [write_image([raw])]))])
    assert load(changes[0].fields[0], column) == number == read_value(Reader(raw), column, CHARSETS)


@quick
@given(st.datetimes(datetime.datetime(1, 1, 1)), st.integers(0, 6))
def test_instants_are_psycopgs_bytes(at: datetime.datetime, scale: int) -> None:
    """DATETIME byte for byte as psycopg sends it."""
    us = at.microsecond - at.microsecond % 10 ** (6 - scale)
    packed = ((at.year * 13 + at.month) << 5 | at.day) << 17 | at.hour << 12 | at.minute << 6 | at.second
    raw = (packed + 0x8000000000).to_bytes(5, "big") + write_fraction(us, scale)
    column = Column("c", Kind.DATETIME, scale=scale)
    changes = decode_rows((column,), (0,), [(Event.WRITE_ROWS, write_rows(5, 1, [write_image([raw])]))])
    dumper = psycopg.adapters.get_dumper(datetime.datetime, PyFormat.BINARY)(datetime.datetime)
    value = at.replace(microsecond=us)
    assert changes[0].fields[0] == bytes(dumper.upgrade(value, PyFormat.BINARY).dump(value) or b"")


@quick
@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
@example(b"\xed\xa0\x80")
@example(b"\xf4\x90\x80\x80")
@example(b"\xc0\x80")
@example("é" * 9 + "a")
def test_utf8_is_pythons(raw: bytes | str) -> None:
    """Valid exactly where Python's strict codec takes it and no NUL is in it, wherever it lies."""
    data = raw.encode() if isinstance(raw, str) else raw
    try:
        right = "\0" not in data.decode()
    except UnicodeDecodeError:
        right = False
    padded = np.frombuffer(b"\x80" + data + b"\x80" * 9, np.uint8)
    assert bool(decode._is_utf8(padded, 1, 1 + len(data))) is right


# ---------------------------------------------------------------------------------------------------- folding
class Row:
    """One change for the twin of fold: keys as numbers."""

    def __init__(self, op: int, old: int, new: int) -> None:
        self.op, self.old, self.new = op, old, new


def fold_naively(changes: list[Row]) -> dict[int, tuple[int, bool, int]]:
    """Key -> index of its last image or -1, whether it is new in this batch, and the number of its last removal."""
    found: dict[int, tuple[int, bool, int]] = {}
    for n, change in enumerate(changes):
        if change.op != decode.INSERT:
            _, fresh, _ = found.get(change.old, (0, False, 0))
            found[change.old] = (-1, fresh, n + 1)
        if change.op != decode.DELETE:
            _, fresh, gone = found.get(change.new, (0, True, 0))
            found[change.new] = (n, fresh, gone)
    return found


@quick
@given(st.lists(st.builds(Row, st.sampled_from([1, 2, 3]), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
def test_fold_is_the_obvious_one(made: list[Row]) -> None:
    """The last image of each key, and whether the key was there before."""
    keys = np.frombuffer(b"".join(struct.pack("!iq", 8, n) for n in range(6)), np.uint8)
    changes = np.zeros(len(made), decode.CHANGE)
    for n, row in enumerate(made):
        changes[n]["op"], changes[n]["seq"], changes[n]["commit_us"] = row.op, n + 1, n
        changes[n]["old_key"], changes[n]["key"] = 12 * row.old, 12 * row.new
        changes[n]["old_key_bytes"] = changes[n]["key_bytes"] = 12
    entries = np.zeros(2 * len(made), decode.ENTRY)
    buckets = np.full(1 << (4 * len(made) - 1).bit_length(), -1, np.int64)
    count = decode.fold(np.arange(len(made)), changes, keys, entries, buckets)
    found = {int(e["key"]) // 12: (int(e["last"]), bool(e["fresh"]), int(e["seq"])) for e in entries[:count]}
    assert found == fold_naively(made)
    assert count == len(found)


# ---------------------------------------------------------------------------------------------------- GTID sets
RUNS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 30), st.integers(0, 6)), max_size=12)


def as_pairs(runs: list[tuple[str, int, int]]) -> set[tuple[str, int]]:
    """Runs as a set of single transactions."""
    return {(origin, first + n) for origin, first, more in runs for n in range(more + 1)}


def as_gtids(runs: list[tuple[str, int, int]]) -> GtidSet:
    """Runs as a GTID set."""
    return GtidSet().add((f"00000000-0000-0000-0000-00000000000{origin}", first, first + more) for origin, first, more in runs)


@quick
@given(RUNS, RUNS)
def test_gtid_sets_are_sets(first: list[tuple[str, int, int]], second: list[tuple[str, int, int]]) -> None:
    """Adding and covering agree with plain sets, and equal sets have one text."""
    a, b = as_gtids(first), as_gtids(second)
    assert a.covers(b) == (as_pairs(first) >= as_pairs(second))
    assert as_gtids(first + second) == as_gtids(second + first)
    assert GtidSet.parse(f"{a},{b}") == as_gtids(first + second)
    assert (str(a) == str(b)) == (as_pairs(first) == as_pairs(second))


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 50)), max_size=10))
def test_mariadb_states_keep_the_last(made: list[tuple[int, int, int]]) -> None:
    """For each domain what came last."""
    state = MariaDbGtids().add((f"{domain}-{server}", number, number) for domain, server, number in made)
    last = {domain: f"{domain}-{server}-{number}" for domain, server, number in made}
    assert str(state) == ",".join(last[domain] for domain in sorted(last))
    assert MariaDbGtids.parse(str(state)) == state


@quick
@given(st.integers(0, 2**64 - 1))
def test_packed_integers(number: int) -> None:
    """The writer's length-encoded integers are read back by the kernel."""
    data = np.frombuffer(pack_integer(number) + bytes(9), np.uint8)
    value, at = decode._packed_integer(data, 0)
    assert int(np.uint64(np.int64(value))) == number
    assert at == len(pack_integer(number))
