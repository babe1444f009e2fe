r"""Values that the kernels leave to Python: JSON, compressed columns, some character sets, and what Postgres cannot hold.

A row pays only for these: its other fields are taken as the kernel wrote them. What Postgres cannot hold is kept in its raw
form in `_raw`, an object of column -> text: dates as MySQL prints them, JSON too, other bytes in hexadecimal after \x. Pure.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.charsets import Charsets
from replicator.errors import MalformedValue, TableProblem, UnrepresentableKey
from replicator.json_binary import print_json
from replicator.plan import Plans
from replicator.typemap import Column, Kind

NUL_SIGN = "␀"
_JSONB_VERSION = b"\x01"
_NULL = struct.pack("!i", -1)
# Rows whose values are looked for at once.
_CHUNK_ROWS = 1024
# A backslash that is not itself escaped, and the escape for NUL behind it.
_NUL_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
# MariaDB source, field.cc, Field_longstr::compress(): bit 7 zlib, bit 3 without zlib's own header, bits 0 to 2 the bytes of the
# length, which follow, the highest first. A value that did not shrink has 0 here and follows as it is.
_ZLIB, _BARE_DEFLATE, _LENGTH_BITS = 0x80, 0x08, 0x07


def finish_rows(
    plans: Plans,
    changes: NDArray[np.void],
    out: NDArray[np.uint8],
    *,
    is_result: bool,
    reject: Callable[[int, TableProblem], None],
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Fill in the values that the kernel left.

    Args:
        changes: (n,) decode.CHANGE, modified in place: their images point into the array that is returned.
        out: (m,) uint8, the tuples and the raw images of the rows that are not finished.
        is_result: the raw images are binary result rows.
        reject: called with the index of a change and the reason why its row cannot be written. The change is left as it was.

    Returns:
        The bytes that the changes point into now, and (n,) bool: which rows have a _raw.
    """
    raw: NDArray[np.bool_] = np.zeros(len(changes), np.bool_)
    hard = np.nonzero(changes["hard_bytes"])[0]
    if not len(hard):
        return out, raw
    # deletions have no image, and whatever offset
    written = changes[changes["image_bytes"] > 0]
    used = int((written["image"] + written["image_bytes"]).max(initial=0))
    view = out.data
    pieces: list[bytes | memoryview] = []
    at = used
    for i in hard[changes["hard_bytes"][hard] < 0].tolist():
        reject(i, UnrepresentableKey("a key holds a value that Postgres cannot hold"))
    hard = hard[changes["hard_bytes"][hard] > 0]
    for first in range(0, len(hard), _CHUNK_ROWS):
        for i, lefts in _find_left(plans, hard[first : first + _CHUNK_ROWS], changes, out, is_result=is_result).items():
            try:
                columns = plans.sources[int(changes["plan"][i])]
                built, has_raw = _splice(columns, plans.charsets, view, changes[i], lefts, is_result=is_result)
            except TableProblem as problem:
                reject(i, problem)
                continue
            raw[i] = has_raw
            size = sum(map(len, built))
            changes["image"][i], changes["image_bytes"][i] = at, size
            pieces += built
            at += size
    return np.concatenate([out[:used], np.frombuffer(b"".join(pieces), np.uint8)]), raw


_Left = tuple[int, int, int, int, int]


def _find_left(
    plans: Plans, rows: NDArray[np.int64], changes: NDArray[np.void], out: NDArray[np.uint8], *, is_result: bool
) -> dict[int, list[_Left]]:
    """For each of these changes the values that the kernel left, as decode.LEFT has them."""
    most = int(plans.plans["columns"][changes["plan"][rows]].sum())
    left: NDArray[np.void] = np.zeros(most, decode.LEFT)
    count = decode.find_left(rows, changes, out, plans.plans, plans.columns, is_result, left)
    found: dict[int, list[_Left]] = {int(i): [] for i in rows}
    for entry in left[:count].tolist():
        found[entry[0]].append(entry)
    return found


def left_of_result(plans: Plans, changes: NDArray[np.void], out: NDArray[np.uint8], i: int) -> Iterator[tuple[str, str]]:
    """The columns of a result row that Postgres cannot hold, each with its raw form.

    Args:
        changes, out: as decode.consume_result left them. i: index of the row.
    """
    columns = plans.sources[int(changes["plan"][i])]
    for _, index, at, size, _ in _find_left(plans, np.array([i]), changes, out, is_result=True)[i]:
        kept = mend(columns[index], out[at : at + size].tobytes(), plans.charsets, is_result=True)[1]
        if kept is not None:
            yield columns[index].name, kept


def _splice(
    columns: tuple[Column, ...], charsets: Charsets, out: memoryview, change: np.void, lefts: list[_Left], *, is_result: bool
) -> tuple[list[bytes | memoryview], bool]:
    """The tuple of a change in pieces, the values that the kernel left filled in, and whether it has a _raw."""
    done, end = int(change["image"]), int(change["image"]) + int(change["image_bytes"])
    pieces: list[bytes | memoryview] = []
    raw: dict[str, str] = {}
    for _, index, at, size, field in lefts:
        column = columns[index]
        value, kept = mend(column, bytes(out[at : at + size]), charsets, is_result=is_result)
        pieces += [out[done:field], _NULL if value is None else _field(value)]
        done = field + len(_NULL)
        if kept is not None:
            raw[column.name] = kept
    if not raw:
        return [*pieces, out[done:end]], False
    # _raw is the last field, and the kernel wrote NULL
    text = json.dumps(raw, ensure_ascii=False).encode()
    return [*pieces, out[done : end - len(_NULL)], _field(_JSONB_VERSION + text)], True


def mend(column: Column, value: bytes, charsets: Charsets, *, is_result: bool) -> tuple[bytes | None, str | None]:
    """What goes into the mirror for a value that the kernel left, as the type's receive function takes it (None: NULL), and
    the value's raw form where that is not the same.

    Raises:
        UnsupportedColumn: the column's character set is not known.
        MalformedValue: the value is not as its format says.
    """
    kind = column.kind
    if kind is Kind.JSON:
        return _mend_json(value if is_result else print_json(value))
    if column.compressed:
        value = _unpack(value)
    if kind is Kind.BYTES:
        return value, None
    if kind is Kind.TEXT:
        text, exact = charsets.decode(value, column.charset)
        if exact and "\0" not in text:
            return text.encode(), None
        return text.replace("\0", NUL_SIGN).encode(), "\\x" + value.hex()
    if kind in (Kind.ENUM, Kind.SET):
        return None, str(int.from_bytes(value, "little"))
    if kind in _DATES:
        return None, (_date_of_result if is_result else _date_of_image)(column, value)
    return None, "\\x" + value.hex()


_DATES = frozenset({Kind.DATE, Kind.DATETIME, Kind.TIMESTAMP, Kind.OLD_DATETIME, Kind.OLD_TIMESTAMP})


def _mend_json(text: bytes) -> tuple[bytes, str | None]:
    """A JSON text as jsonb takes it; NUL is the only character that jsonb does not."""
    try:
        kept = text.decode()
    except UnicodeDecodeError:
        return _JSONB_VERSION + text.decode("utf-8", "replace").encode(), "\\x" + text.hex()
    if b"\\u0000" not in text:
        return _JSONB_VERSION + text, None
    shown = _NUL_ESCAPE.sub(lambda match: match[1] + NUL_SIGN.encode(), text)
    return _JSONB_VERSION + shown, kept if shown != text else None


def _unpack(value: bytes) -> bytes:
    """A value of a COMPRESSED column as it was before."""
    if not value:
        return value
    head = value[0]
    if head == 0:
        return value[1:]
    size_bytes = head & _LENGTH_BITS
    size = int.from_bytes(value[1 : 1 + size_bytes], "big")
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS if head & _BARE_DEFLATE else zlib.MAX_WBITS)
    try:
        if not head & _ZLIB:
            raise zlib.error(f"method {head:#04x} is not known")
        text = unpacker.decompress(value[1 + size_bytes :], size + 1)
    except zlib.error as error:
        raise MalformedValue(f"a compressed value cannot be unpacked: {error}") from None
    if len(text) != size:
        raise MalformedValue(f"a compressed value has not the {size} bytes that it says")
    return text


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
