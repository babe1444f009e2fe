"""A slow, obvious twin of the row decoder: Python values from a row image, one value after another."""

import datetime
import decimal
import struct
from collections.abc import Sequence
from typing import Any

from replicator.charsets import Charsets
from replicator.typemap import Column, Kind

# What stands for a value that Postgres does not have.
NOTHING = object()
_INTEGER_BYTES = {Kind.TINY: 1, Kind.SHORT: 2, Kind.INT24: 3, Kind.LONG: 4, Kind.LONGLONG: 8}


class Reader:
    """Takes bytes off the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        """The next bytes."""
        assert len(self.data) >= size
        taken, self.data = self.data[:size], self.data[size:]
        return taken


def read_image(image: bytes, columns: Sequence[Column], charsets: Charsets) -> list[Any]:
    """The values of one row image; NOTHING where Postgres has no such value."""
    reader = Reader(image)
    nulls = reader.take((len(columns) + 7) // 8)
    values = [None if nulls[i // 8] >> i % 8 & 1 else read_value(reader, column, charsets) for i, column in enumerate(columns)]
    assert not reader.data
    return values


def read_value(reader: Reader, column: Column, charsets: Charsets) -> Any:
    """One value, its length prefix included."""
    kind = column.kind
    if kind in _INTEGER_BYTES:
        return int.from_bytes(reader.take(_INTEGER_BYTES[kind]), "little", signed=not column.unsigned)
    if kind is Kind.FLOAT:
        return struct.unpack("<f", reader.take(4))[0]
    if kind is Kind.DOUBLE:
        return struct.unpack("<d", reader.take(8))[0]
    if kind is Kind.DECIMAL:
        return read_decimal(reader, column.precision, column.scale)
    if kind is Kind.YEAR:
        year = reader.take(1)[0]
        return 1900 + year if year else 0
    if kind is Kind.DATE:
        packed = int.from_bytes(reader.take(3), "little")
        return make_date(packed // 512, packed // 32 % 16, packed % 32)
    if kind is Kind.DATETIME:
        packed = int.from_bytes(reader.take(5), "big") - 0x8000000000
        us = read_fraction(reader, column.scale)
        days, clock = divmod(packed, 1 << 17)
        date = make_date(days // 32 // 13, days // 32 % 13, days % 32)
        if date is NOTHING:
            return NOTHING
        return datetime.datetime.combine(date, datetime.time(clock >> 12, clock >> 6 & 63, clock & 63, us))
    if kind is Kind.TIMESTAMP:
        seconds, us = int.from_bytes(reader.take(4), "big"), read_fraction(reader, column.scale)
        if seconds == us == 0:
            return NOTHING
        return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds, microseconds=us)
    if kind is Kind.TIME:
        return read_time(reader, column.scale)
    if kind is Kind.OLD_TIME:
        number = int.from_bytes(reader.take(3), "little", signed=True)
        size = abs(number)
        span = datetime.timedelta(hours=size // 10000, minutes=size // 100 % 100, seconds=size % 100)
        return -span if number < 0 else span
    if kind is Kind.OLD_DATETIME:
        digits = f"{int.from_bytes(reader.take(8), 'little'):014}"
        date = make_date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
        if date is NOTHING:
            return NOTHING
        return datetime.datetime.combine(date, datetime.time(int(digits[8:10]), int(digits[10:12]), int(digits[12:])))
    if kind is Kind.OLD_TIMESTAMP:
        seconds = int.from_bytes(reader.take(4), "little")
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC) if seconds else NOTHING
    if kind is Kind.TEXT:
        text, exact = charsets.decode(reader.take(int.from_bytes(reader.take(column.length_bytes), "little")), column.charset)
        return text if exact and "\0" not in text else NOTHING
    if kind is Kind.BYTES:
        return reader.take(int.from_bytes(reader.take(column.length_bytes), "little")).ljust(column.width, b"\0")
    if kind is Kind.ENUM:
        number = int.from_bytes(reader.take(column.length_bytes), "little")
        return NOTHING if number > len(column.labels) else column.labels[number - 1] if number else ""
    if kind is Kind.SET:
        bits = int.from_bytes(reader.take(column.length_bytes), "little")
        if bits >> len(column.labels):
            return NOTHING
        text = ""
        for n, label in enumerate(column.labels):
            if bits >> n & 1:
                # as both servers print it: no comma behind a label that is empty and first
                text += ("," if text else "") + label
        return text
    assert kind is Kind.BIT
    return f"{int.from_bytes(reader.take((column.width + 7) // 8), 'big'):0{column.width}b}"


def read_fraction(reader: Reader, scale: int) -> int:
    """Microseconds from 0 to 3 bytes."""
    size = (scale + 1) // 2
    return int.from_bytes(reader.take(size), "big") * 100 ** (3 - size)


def read_time(reader: Reader, scale: int) -> datetime.timedelta:
    """A TIME: sign, 10 bits hours, 6 minutes, 6 seconds, fraction; negative ones are complements of the whole."""
    size = (scale + 1) // 2
    number = int.from_bytes(reader.take(3 + size), "big") - (1 << 8 * (3 + size) - 1)
    negative, number = number < 0, abs(number)
    clock, fraction = divmod(number, 1 << 8 * size)
    us = fraction * 100 ** (3 - size) if size else 0
    span = datetime.timedelta(hours=clock >> 12, minutes=clock >> 6 & 63, seconds=clock & 63, microseconds=us)
    return -span if negative else span


def read_decimal(reader: Reader, precision: int, scale: int) -> decimal.Decimal:
    """Groups of nine digits in four bytes, short groups at both ends in fewer; the first bit is the sign, turned."""
    sizes = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    whole = precision - scale
    groups = [whole % 9, *[9] * (whole // 9), *[9] * (scale // 9), scale % 9]
    raw = bytearray(reader.take(sum(sizes[group] for group in groups)))
    positive = raw[0] & 0x80
    raw[0] ^= 0x80
    rest = Reader(bytes(raw) if positive else bytes(byte ^ 0xFF for byte in raw))
    digits = "".join(str(int.from_bytes(rest.take(sizes[n]), "big")).zfill(n) for n in groups if n)
    return decimal.Decimal((0 if positive else 1, tuple(map(int, digits)), -scale))


def make_date(year: int, month: int, day: int) -> Any:
    """A date, or NOTHING."""
    try:
        return datetime.date(year, month, day)
    except ValueError:
        return NOTHING
