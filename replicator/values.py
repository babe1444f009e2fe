r"""Values that the kernels leave to Python: those that Postgres cannot hold, and character sets of several bytes.

What Postgres cannot hold is kept in its raw form in `_raw`, an object of column -> text: dates as MySQL prints them, other
bytes in hexadecimal after \x. Pure.
"""

from __future__ import annotations

import json
import struct

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.charsets import Charsets
from replicator.errors import UnrepresentableKey
from replicator.plan import Plans
from replicator.typemap import Column, Kind

NUL_SIGN = "␀"
_JSONB_VERSION = b"\x01"
_NULL = struct.pack("!i", -1)


def rebuild_tuple(plans: Plans, number: int, image: NDArray[np.uint8], seq: int, commit_us: int, *, is_result: bool) -> bytes:
    """Build the COPY tuple of a row that the kernel could not finish.

    Args:
        plans, number: the row's plan.
        image: (n,) uint8, the raw row image, or a binary result row.
        seq, commit_us: for _seq and _committed_at; commit_us below 0 is NULL.
        is_result: what image is.

    Raises:
        UnrepresentableKey: the value left over is part of the key.
    """
    plan = plans.plans[number]
    columns = plans.sources[number]
    places = np.zeros((len(columns), 2), np.int64)
    decode.split_image(image, plan, plans.columns, is_result, places)
    scratch = np.zeros(4 * len(image) + int(plan["fixed_out"]), np.uint8)
    digits = np.zeros(128, np.uint8)
    fields = [struct.pack("!h", len(columns) + 3)]
    raw: dict[str, str] = {}
    for i, column in enumerate(columns):
        at, size = int(places[i, 0]), int(places[i, 1])
        if size < 0:
            fields.append(_NULL)
            continue
        record = int(plan["first"]) + i
        end, left = decode.put_value(
            plans.columns, record, image, at, size, is_result, scratch, plans.blob, plans.labels, digits
        )
        if not left:
            fields.append(scratch[:end].tobytes())
            continue
        text, kept = mend(column, image[at : at + size].tobytes(), plans.charsets, is_result=is_result)
        if kept is not None:
            if plans.columns[record]["is_key"]:
                raise UnrepresentableKey(f"key column {column.name} holds a value that Postgres cannot: {kept}")
            raw[column.name] = kept
        fields.append(_NULL if text is None else _field(text.encode()))
    fields.append(_field(struct.pack("!q", seq)))
    stamp = struct.pack("!q", commit_us - decode.POSTGRES_EPOCH_S * 1_000_000)
    fields.append(_NULL if commit_us < 0 else _field(stamp))
    fields.append(_field(_JSONB_VERSION + json.dumps(raw, ensure_ascii=False).encode()) if raw else _NULL)
    return b"".join(fields)


def mend(column: Column, value: bytes, charsets: Charsets, *, is_result: bool) -> tuple[str | None, str | None]:
    """What goes into the mirror for a value that the kernel left, and its raw form where that is not the same.

    Raises:
        UnsupportedColumn: the column's character set is not known.
    """
    if column.kind is Kind.TEXT:
        text, exact = charsets.decode(value, column.charset)
        if exact and "\0" not in text:
            return text, None
        return text.replace("\0", NUL_SIGN), "\\x" + value.hex()
    if column.kind in (Kind.ENUM, Kind.SET):
        return None, str(int.from_bytes(value, "little"))
    return None, (_date_of_result if is_result else _date_of_image)(column, value)


def _field(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def _date_of_image(column: Column, value: bytes) -> str:
    """A date of a row image that Postgres does not have, as MySQL prints it."""
    kind = column.kind
    if kind is Kind.DATE:
        packed = int.from_bytes(value, "little")
        return _print_date(packed >> 9, packed >> 5 & 15, packed & 31)
    if kind is Kind.DATETIME:
        packed = int.from_bytes(value[:5], "big") - 0x8000000000
        months, day = packed >> 22, packed >> 17 & 31
        us = int.from_bytes(value[5:], "big") * 100 ** (3 - len(value[5:]))
        clock = (packed >> 12 & 31, packed >> 6 & 63, packed & 63)
        return _print_date(months // 13, months % 13, day) + _print_clock(*clock, us, column.scale)
    if kind is Kind.OLD_DATETIME:
        packed = int.from_bytes(value, "little")
        date, clock_digits = divmod(packed, 1_000_000)
        clock = (clock_digits // 10000, clock_digits // 100 % 100, clock_digits % 100)
        return _print_date(date // 10000, date // 100 % 100, date % 100) + _print_clock(*clock, 0, 0)
    return _print_date(0, 0, 0) + _print_clock(0, 0, 0, 0, column.scale)


def _date_of_result(column: Column, value: bytes) -> str:
    """A date of a binary result row that Postgres does not have, as MySQL prints it."""
    year, month, day, hour, minute, second, us = struct.unpack("<HBBBBBI", value.ljust(11, b"\0"))
    text = _print_date(year, month, day)
    return text if column.kind is Kind.DATE else text + _print_clock(hour, minute, second, us, column.scale)


def _print_date(year: int, month: int, day: int) -> str:
    return f"{year:04}-{month:02}-{day:02}"


def _print_clock(hour: int, minute: int, second: int, us: int, scale: int) -> str:
    fraction = f".{us:06}"[: scale + 1] if scale else ""
    return f" {hour:02}:{minute:02}:{second:02}{fraction}"
