"""MySQL's binary JSON as it lies in a row image, turned into the text that the server prints for it.

Pure: bytes in, bytes out. Knows nothing of Postgres; values.py decides what becomes of the text.

Source: MySQL source documentation, json_binary.h (the format) and Json_wrapper::to_string (the text).
"""

from __future__ import annotations

import base64
import re
import struct
from decimal import Decimal

from replicator.errors import MalformedValue

# JSON_DOCUMENT_MAX_DEPTH; the server takes no document that is deeper.
DEEPEST = 100

_SMALL_OBJECT, _LARGE_OBJECT, _SMALL_ARRAY, _LARGE_ARRAY, _LITERAL = range(5)
_DOUBLE, _STRING, _OPAQUE = 11, 12, 15
_LITERALS = {0: b"null", 1: b"true", 2: b"false"}
_INTEGERS = {
    5: struct.Struct("<h"),
    6: struct.Struct("<H"),
    7: struct.Struct("<i"),
    8: struct.Struct("<I"),
    9: struct.Struct("<q"),
    10: struct.Struct("<Q"),
}
# The heads of containers, their key entries and their value entries, in both widths.
_HEADS = (struct.Struct("<HH"), struct.Struct("<II"))
_KEYS = (struct.Struct("<HH"), struct.Struct("<IH"))
_ENTRIES = (struct.Struct("<BH"), struct.Struct("<BI"))
# What lies in a value entry itself instead of behind an offset.
_INLINED = (frozenset({_LITERAL, 5, 6}), frozenset({_LITERAL, 5, 6, 7, 8}))

# Type numbers of opaque values: MySQL source, field_types.h.
_DECIMAL, _TIMESTAMP, _DATE, _TIME, _DATETIME = 246, 7, 10, 11, 12
_DIGIT_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
# my_gcvt() leaves the form without an exponent where the decimal point is further away than this.
_FURTHEST_POINT = 15

_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
_ESCAPES = {bytes([byte]): b"\\u%04x" % byte for byte in range(0x20)} | {
    b'"': b'\\"',
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\f": b"\\f",
    b"\n": b"\\n",
    b"\r": b"\\r",
    b"\t": b"\\t",
}


def print_json(document: bytes) -> bytes:
    """The text of a JSON document, UTF-8, as MySQL prints it.

    Args:
        document: the value of a JSON column in a row image, its length prefix left out. An empty one, which the server
            stores where a column that allows no NULL got none, is printed as null.

    Raises:
        MalformedValue: the bytes are not what the format says, or nested too deeply.
    """
    if not document:
        return b"null"
    out: list[bytes] = []
    try:
        _Printer(document, out).put(document[0], 1, len(document), 0)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError) as error:
        raise MalformedValue(f"a JSON value is not as its format says: {error}") from None
    return b"".join(out)


class _Printer:
    """Walks one document.

    Attributes:
        left: bytes of the document that may still be visited. Every byte belongs to one value, so a document that runs out
            of them names some of its bytes twice; without this bound a small one could print without end.
    """

    def __init__(self, data: bytes, out: list[bytes]) -> None:
        self.data, self.out = data, out
        self.left = len(data)

    def put(self, kind: int, at: int, end: int, depth: int) -> None:
        """Print the value at `at`, which ends before `end`."""
        out = self.out
        if kind == _STRING:
            out.append(_quote(self._take(at, end)))
        elif kind in _INTEGERS:
            out.append(b"%d" % _INTEGERS[kind].unpack_from(self.data, at)[0])
        elif kind == _LITERAL:
            out.append(_LITERALS[self.data[at]])
        elif kind == _DOUBLE:
            out.append(_print_double(struct.unpack_from("<d", self.data, at)[0]))
        elif kind <= _LARGE_ARRAY:
            self._put_container(kind, at, end, depth + 1)
        elif kind == _OPAQUE:
            out.append(_print_opaque(self.data[at], self._take(at + 1, end)))
        else:
            raise ValueError(f"type {kind} is not known")

    def _take(self, at: int, end: int) -> bytes:
        """Bytes behind their length: seven bits a byte, the lowest first, the eighth says that more follow."""
        size = shift = 0
        while True:
            byte = self.data[at]
            at += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 28:
                raise ValueError("a length has more than five bytes")
        if at + size > end:
            raise ValueError("a value reaches beyond its container")
        self._spend(size)
        return self.data[at : at + size]

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError("parts of it overlap")

    def _put_container(self, kind: int, start: int, end: int, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        data, out = self.data, self.out
        large = kind in (_LARGE_OBJECT, _LARGE_ARRAY)
        is_object = kind <= _LARGE_OBJECT
        count, size = _HEADS[large].unpack_from(data, start)
        entry, key = _ENTRIES[large], _KEYS[large]
        inlined = _INLINED[large]
        at = keys = start + _HEADS[large].size
        if is_object:
            at += count * key.size
        if start + size > end or at + count * entry.size > start + size:
            raise ValueError("a container is larger than what holds it")
        self._spend(_HEADS[large].size + count * (entry.size + (key.size if is_object else 0)))
        end = start + size
        out.append(b"{" if is_object else b"[")
        for n in range(count):
            if n:
                out.append(b", ")
            if is_object:
                key_at, key_bytes = key.unpack_from(data, keys + n * key.size)
                if start + key_at + key_bytes > end:
                    raise ValueError("a key reaches beyond its object")
                self._spend(key_bytes)
                out.append(_quote(data[start + key_at : start + key_at + key_bytes]) + b": ")
            value_kind, offset = entry.unpack_from(data, at)
            if value_kind in inlined:
                self.put(value_kind, at + 1, end, depth)
            elif offset >= size:
                raise ValueError("a value begins beyond its container")
            else:
                self.put(value_kind, start + offset, end, depth)
            at += entry.size
        out.append(b"}" if is_object else b"]")


def _quote(text: bytes) -> bytes:
    return b'"' + _ESCAPED.sub(lambda match: _ESCAPES[match[0]], text) + b'"'


def _print_double(value: float) -> bytes:
    """The shortest digits that mean this number, in the form that my_gcvt() chooses, with a point where it looks whole."""
    text = repr(value)
    if "e" not in text and (-1e15 < value < 1e15 or not value.is_integer()):
        return text.encode()
    parts = Decimal(text).normalize().as_tuple()
    digits = "".join(map(str, parts.digits))
    sign = "-" if parts.sign else ""
    # The number is 0.digits times ten to the power of point.
    point = len(digits) + int(parts.exponent)
    if -_FURTHEST_POINT < point <= _FURTHEST_POINT:
        return f"{sign}0.{'0' * -point}{digits}".encode()
    return f"{sign}{digits[0]}{'.' if len(digits) > 1 else ''}{digits[1:]}e{point - 1}".encode()


def _print_opaque(kind: int, value: bytes) -> bytes:
    """A value of an SQL type: decimals and times by their own form, all others as base64 behind the type's number."""
    if kind == _DECIMAL:
        return _print_decimal(value)
    if kind in (_DATE, _DATETIME, _TIMESTAMP, _TIME):
        return b'"' + _print_time(kind, struct.unpack("<q", value)[0]).encode() + b'"'
    encoded = base64.b64encode(value)
    # The server breaks long base64 into lines.
    lines = [encoded[at : at + 76] for at in range(0, len(encoded), 76)]
    return _quote(b"base64:type%d:" % kind + b"\n".join(lines))


def _print_decimal(value: bytes) -> bytes:
    """Precision, scale, then the binary DECIMAL: nine digits in four bytes, the first bit is the sign, turned."""
    precision, scale = value[0], value[1]
    whole = precision - scale
    groups = [whole % 9, *[9] * (whole // 9), *[9] * (scale // 9), scale % 9]
    if whole < 0 or len(value) != 2 + sum(_DIGIT_BYTES[n] for n in groups) or len(value) == 2:
        raise ValueError("a decimal has the wrong length")
    raw = bytearray(value[2:])
    negative = not raw[0] & 0x80
    raw[0] ^= 0x80
    if negative:
        raw = bytearray(byte ^ 0xFF for byte in raw)
    digits, at = "", 0
    for n in groups:
        digits += str(int.from_bytes(raw[at : at + _DIGIT_BYTES[n]], "big")).zfill(n) if n else ""
        at += _DIGIT_BYTES[n]
    text = (digits[:whole].lstrip("0") or "0") + ("." + digits[whole:] if scale else "")
    return (b"-" if negative else b"") + text.encode()


def _print_time(kind: int, packed: int) -> str:
    """A packed date or time: year * 13 + month, 5 bits day, 5 (10 in a TIME) hour, 6 minute, 6 second, 24 microseconds."""
    sign, packed = ("-" if packed < 0 else ""), abs(packed)
    us, clock = packed & 0xFFFFFF, packed >> 24
    if kind == _TIME:
        return f"{sign}{clock >> 12 & 0x3FF:02}:{clock >> 6 & 63:02}:{clock & 63:02}.{us:06}"
    days = clock >> 17
    date = f"{(days >> 5) // 13:04}-{(days >> 5) % 13:02}-{days & 31:02}"
    return date if kind == _DATE else f"{date} {clock >> 12 & 31:02}:{clock >> 6 & 63:02}:{clock & 63:02}.{us:06}"
