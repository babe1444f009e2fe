"""The decoder: walks packets and events, and turns row images into COPY BINARY tuples. All numba code of the replicator.

numba's cache does not notice changes in other files, so every kernel and every dtype stands here. Kernels take arrays,
write into preallocated ones, never raise, and say by a return code why they stopped.
Pure: no database, no logging.

Sources: MySQL internals, "Binlog Event", "Rows_event", "Date and Time Data Type Representation", decimal.c (binary
DECIMAL); PostgreSQL manual, "COPY", binary format, and the receive functions of its types (numeric.c, timestamp.c).
"""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

# ---------------------------------------------------------------------------------------------------- dtypes
# A column of a plan. fixed: bytes in a row image where fixed, 0 where a length prefix of `prefix` bytes stands before
# the value. text: 0 UTF-8 passes as it is, 1 by a table of 256 entries, 2 never in the kernel, 3 by that and one of 65,536
# entries for two bytes, 4 and 5 UTF-16 with the high byte first and last, 6 UTF-32. table: where the column's labels or its
# character table begin. integer: bytes of the mirror's type where that is smallint, integer or bigint and the value any number;
# 0 elsewhere. doubles: how many columns from this one on are DOUBLE and no part of the key, at most DOUBLES.
COLUMN = np.dtype(
    [
        ("kind", np.uint8),
        ("unsigned", np.uint8),
        ("prefix", np.uint8),
        ("is_key", np.uint8),
        ("text", np.uint8),
        ("integer", np.uint8),
        ("doubles", np.uint8),
        ("fixed", np.int32),
        ("width", np.int32),
        ("precision", np.int32),
        ("scale", np.int32),
        ("table", np.int32),
        ("labels", np.int32),
    ],
    align=True,
)
# So many bits of NULLs are in eight bytes, wherever they begin.
DOUBLES = 56
# A decoder plan, one per version of a table map. fixed_out: the most bytes that a row's tuple takes beside four times
# the bytes of its image. map_at, map_bytes: the table map's body after its id, in `blob`.
PLAN = np.dtype(
    [
        ("wanted", np.uint8),
        ("first", np.int32),
        ("columns", np.int32),
        ("keys", np.int32),
        ("fixed_out", np.int32),
        ("map_at", np.int64),
        ("map_bytes", np.int64),
    ],
    align=True,
)
# A change of one row. image: its COPY tuple in `out` (op insert and update); key: the key fields of that tuple in
# `keys`; old_key: the key fields before the change (update and delete). hard_at: in `out`, the raw row image of a change
# that holds a value which the kernel leaves to Python; 0 bytes otherwise, and so many below 0 where that value is part of a
# key. rows_flags: of its rows event, and whether the key before it holds such a value: then an update is an INSERT here.
# In a table without a key an update is two changes, a deletion and an insertion, and deletions have images too.
CHANGE = np.dtype(
    [
        ("plan", np.int32),
        ("op", np.int32),
        ("image", np.int64),
        ("key", np.int64),
        ("old_key", np.int64),
        ("hard_at", np.int64),
        ("seq", np.int64),
        ("commit_us", np.int64),
        ("image_bytes", np.int32),
        ("key_bytes", np.int32),
        ("old_key_bytes", np.int32),
        ("hard_bytes", np.int32),
        ("rows_flags", np.int32),
    ],
    align=True,
)
# A whole transaction. commit_us: microseconds since 1970. number: of the GTID, 0 without. changes_end: index of its last
# change, plus one; out_end and keys_end: how much of `out` and `keys` is used then. end_pos: offset of its end in the file
# with the index `file`.
TRANSACTION = np.dtype(
    [
        ("origin", np.uint8, (16,)),
        ("number", np.int64),
        ("domain", np.int64),
        ("server", np.int64),
        ("commit_us", np.int64),
        ("end_pos", np.int64),
        ("file", np.int64),
        ("changes_end", np.int64),
        ("out_end", np.int64),
        ("keys_end", np.int64),
    ],
    align=True,
)
# A value that the kernels left to Python. change: index of the change; column: index in its plan; at, value_bytes: the value,
# in `out`; field: its NULL in the tuple, in `out`.
LEFT = np.dtype([(name, np.int64) for name in ("change", "column", "at", "value_bytes", "field")], align=True)
# From a table id to a plan: direct-mapped by the id's low bits.
SLOT = np.dtype([("table_id", np.int64), ("plan", np.int64)], align=True)
SLOTS = 1024

INSERT, UPDATE, DELETE = 1, 2, 3
HARD_OLD_KEY = 1 << 16
# A flag of rows events: the session had foreign_key_checks = 0, so nothing cascaded.
NO_FOREIGN_KEY_CHECKS = 2

# Why consume() returned.
NEED_DATA, EVENT, FULL, SPLIT, SERVER_ERROR, SERVER_EOF = 0, 1, 2, 3, 4, 5
BAD_CHECKSUM, MALFORMED, PARTIAL_IMAGE, UNKNOWN_TABLE = 10, 11, 12, 13

# Cells of the state vector, int64.
AT, CHANGES, TRANSACTIONS, OUT, KEYS, IN_TRANSACTION, SEQ, LOG_POS, CHECKSUM, FILE = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
EVENT_AT, EVENT_BYTES, EVENT_TYPE, EVENT_TIME, WANTED_BYTES, PLAN_AT_FAULT, PENDING, JOINED = 10, 11, 12, 13, 14, 15, 16, 17
# BARE: events follow each other without packets and checksums. HOLD: every event is for Python. COMMITS: commits so far.
BARE, HOLD, COMMITS = 18, 19, 20
# flags of the rows event at hand; where the last row of a result that was taken begins
ROWS_FLAGS, ROW_AT = 21, 22
# So many changes, or bytes of their tuples, make a batch: consume returns FULL behind the transaction that reaches this.
ENOUGH_ROWS, ENOUGH_BYTES = 23, 24
STATE_CELLS = 26

POSTGRES_EPOCH_S = 946_684_800
POSTGRES_EPOCH_DAYS = 10_957
# Of the codes of gb18030 with four bytes the first so many are of the basic plane; from here on are those of the others.
GB18030_BASIC, GB18030_BEYOND = 39_420, 189_000
# pg_type.oid of real
FLOAT4_OID = 700

_CRC = np.zeros((8, 256), dtype=np.uint32)
for _i in range(256):
    _c = _i
    for _ in range(8):
        _c = (_c >> 1) ^ (0xEDB88320 if _c & 1 else 0)
    _CRC[0, _i] = _c
for _i in range(256):
    for _k in range(1, 8):
        _CRC[_k, _i] = (_CRC[_k - 1, _i] >> np.uint32(8)) ^ _CRC[0, _CRC[_k - 1, _i] & np.uint32(0xFF)]

# Powers of x modulo the CRC's polynomial, bits reversed: by these a remainder of 128 bits moves 512 or 128 bits on.
_FAR, _FAR_HIGH = 0x154442BD4, 0x1C6E41596
_NEAR, _NEAR_HIGH = 0x1751997D0, 0x0CCAA009E
# Compiled code is kept per processor, so what this one can do may be a constant there.
_FOLDS = not config.DISABLE_JIT and "+pclmul" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")

_POW10 = np.array([10**i for i in range(10)], dtype=np.int64)
_DECIMAL_BYTES = np.array([0, 1, 1, 2, 2, 3, 3, 4, 4, 4], dtype=np.int64)


# ---------------------------------------------------------------------------------------------------- bytes
# One instruction for what is a loop over bytes otherwise, without the tests for negative indexes that numba adds. The
# pure functions say what each does; they also stand in where compilation is switched off.
def _load_pure(data, at, size):
    return np.int64(np.uint64(int.from_bytes(data[at : at + size].tobytes(), "little")).astype(np.int64))


def _store_pure(out, o, value, size):
    out[o : o + size] = np.frombuffer((int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "big"), np.uint8)


def _copy_pure(out, o, data, at, size):
    out[o : o + size] = data[at : at + size]


def _pointer(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _loader(size):
    """An intrinsic that reads `size` bytes, the lowest first, as int64."""

    @intrinsic
    def load(typing_context, data, at):
        def generate(context, builder, signature, arguments):
            pointer = _pointer(context, builder, signature.args[0], *arguments)
            value = builder.load(builder.bitcast(pointer, ir.IntType(8 * size).as_pointer()), align=1)
            return value if size == 8 else builder.zext(value, ir.IntType(64))

        return types.int64(data, types.int64), generate

    return load


def _storer(size):
    """An intrinsic that writes the low `size` bytes of an int64, the highest first."""

    @intrinsic
    def store(typing_context, out, o, value):
        def generate(context, builder, signature, arguments):
            pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
            kind = ir.IntType(8 * size)
            value = arguments[2] if size == 8 else builder.trunc(arguments[2], kind)
            if size > 1:
                value = builder.bswap(value)
            builder.store(value, builder.bitcast(pointer, kind.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(out, types.int64, types.int64), generate

    return store


@intrinsic
def _copy_compiled(typing_context, out, o, data, at, size):
    def generate(context, builder, signature, arguments):
        target = _pointer(context, builder, signature.args[0], *arguments[:2])
        source = _pointer(context, builder, signature.args[2], *arguments[2:4])
        cgutils.raw_memcpy(builder, target, source, arguments[4], 1)
        return context.get_dummy_value()

    return types.void(out, types.int64, data, types.int64, types.int64), generate


_PAIR = types.UniTuple(types.int64, 2)
_VECTOR = ir.VectorType(ir.IntType(64), 2)


@intrinsic
def _fold_compiled(typing_context, low, high, next_low, next_high, factor, factor_high):
    """Carry-less products of low with factor and of high with factor_high, and what comes next, added (exclusive or)."""

    def generate(context, builder, signature, arguments):
        def vector(low, high):
            half = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), low, ir.IntType(32)(0))
            return builder.insert_element(half, high, ir.IntType(32)(1))

        low, high, next_low, next_high, factor, factor_high = arguments
        kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, ir.IntType(8)])
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.pclmulqdq")
        value, factors = vector(low, high), vector(factor, factor_high)
        lows = builder.call(multiply, [value, factors, ir.IntType(8)(0x00)])
        highs = builder.call(multiply, [value, factors, ir.IntType(8)(0x11)])
        total = builder.xor(builder.xor(lows, highs), vector(next_low, next_high))
        halves = [builder.extract_element(total, ir.IntType(32)(n)) for n in range(2)]
        return context.make_tuple(builder, _PAIR, halves)

    return _PAIR(*[types.int64] * 6), generate


def _fold_never(low, high, next_low, next_high, factor, factor_high):
    return low, high


_fold = _fold_compiled if _FOLDS else njit(_fold_never)


def _bare_pure(array):
    # numpy gives a record's fields as attributes only where the array was asked to
    return array if array.dtype.names is None else array.view(np.recarray)


@intrinsic
def _bare_compiled(typing_context, array):
    """The same array without an owner: passing it on then costs no reference counts, which are atomic operations."""

    def generate(context, builder, signature, arguments):
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        struct.meminfo = ir.Constant(struct.meminfo.type, None)
        struct.parent = ir.Constant(struct.parent.type, None)
        return struct._getvalue()

    return array(array), generate


def _load_checked(data, at, size):
    value = np.int64(0)
    for k in range(size):
        value |= np.int64(data[at + k]) << (8 * k)
    return value


def _store_checked(out, o, value, size):
    for k in range(size):
        out[o + k] = np.uint8((value >> (8 * (size - 1 - k))) & 0xFF)


def _copy_checked(out, o, data, at, size):
    for k in range(size):
        out[o + k] = data[at + k]


def _sized(function, size):
    """The compiled function for one size; the other argument order is that of the intrinsics."""
    compiled = njit(function)
    if function is _load_checked:
        return njit(lambda data, at: compiled(data, at, size))
    return njit(lambda out, o, value: compiled(out, o, value, size))


if config.DISABLE_JIT:
    _bare = _bare_pure
    _load1, _load2, _load4, _load8 = (partial(_load_pure, size=n) for n in (1, 2, 4, 8))
    _store1, _store2, _store4, _store8 = (partial(_store_pure, size=n) for n in (1, 2, 4, 8))
    _copy = _copy_pure
elif config.BOUNDSCHECK:
    # intrinsics know no bounds, so a run that looks for accesses beyond them goes without
    _bare = njit(lambda array: array)
    _load1, _load2, _load4, _load8 = (_sized(_load_checked, n) for n in (1, 2, 4, 8))
    _store1, _store2, _store4, _store8 = (_sized(_store_checked, n) for n in (1, 2, 4, 8))
    _copy = njit(_copy_checked)
else:
    _bare = _bare_compiled
    _load1, _load2, _load4, _load8 = (_loader(n) for n in (1, 2, 4, 8))
    _store1, _store2, _store4, _store8 = (_storer(n) for n in (1, 2, 4, 8))
    _copy = _copy_compiled


@njit(cache=True, inline="always", nogil=True)
def _little(data, at, size):
    """The integer of `size` bytes (1 to 8), the lowest first."""
    if size == 8:
        return _load8(data, at)
    if size == 4:
        return _load4(data, at)
    if size == 2:
        return _load2(data, at)
    if size == 1:
        return _load1(data, at)
    value = np.int64(0)
    for k in range(size):
        value |= _load1(data, at + k) << (8 * k)
    return value


@njit(cache=True, inline="always", nogil=True)
def _big(data, at, size):
    """The integer of `size` bytes (0 to 8), the highest first."""
    value = np.int64(0)
    for k in range(size):
        value = (value << 8) | _load1(data, at + k)
    return value


@njit(cache=True, inline="always", nogil=True)
def _put(out, o, value, size):
    """Write the low `size` bytes (1, 2, 4 or 8) of value, the highest first; the offset after them."""
    if size == 8:
        _store8(out, o, value)
    elif size == 4:
        _store4(out, o, value)
    elif size == 2:
        _store2(out, o, value)
    else:
        _store1(out, o, value)
    return o + size


@njit(cache=True, inline="always", nogil=True)
def _crc_word(c, word):
    """The CRC register after eight bytes, given as int64, the lowest first."""
    low = c ^ np.uint32(word & 0xFFFFFFFF)
    high = np.uint32((word >> 32) & 0xFFFFFFFF)
    return (
        _CRC[7, low & 0xFF]
        ^ _CRC[6, (low >> 8) & 0xFF]
        ^ _CRC[5, (low >> 16) & 0xFF]
        ^ _CRC[4, (low >> 24) & 0xFF]
        ^ _CRC[3, high & 0xFF]
        ^ _CRC[2, (high >> 8) & 0xFF]
        ^ _CRC[1, (high >> 16) & 0xFF]
        ^ _CRC[0, (high >> 24) & 0xFF]
    )


@njit(cache=True, nogil=True)
def crc32(data, start, end):
    """The CRC32 (IEEE) of data[start:end]: 64 bytes a step where the processor multiplies polynomials, else eight.

    Args:
        data: (n,) uint8.

    Source: Kounavis and Berry 2005, "A Systematic Approach to Building High Performance Software-based CRC Generators";
        Gopal et al. 2009, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction".
    """
    data = _bare(data)
    c = np.uint32(0xFFFFFFFF)
    at = start
    if _FOLDS and end - at >= 64:
        # four remainders of 128 bits, each of every fourth block of 16 bytes
        a, b = _load8(data, at) ^ 0xFFFFFFFF, _load8(data, at + 8)
        a1, b1 = _load8(data, at + 16), _load8(data, at + 24)
        a2, b2 = _load8(data, at + 32), _load8(data, at + 40)
        a3, b3 = _load8(data, at + 48), _load8(data, at + 56)
        at += 64
        while end - at >= 64:
            a, b = _fold(a, b, _load8(data, at), _load8(data, at + 8), _FAR, _FAR_HIGH)
            a1, b1 = _fold(a1, b1, _load8(data, at + 16), _load8(data, at + 24), _FAR, _FAR_HIGH)
            a2, b2 = _fold(a2, b2, _load8(data, at + 32), _load8(data, at + 40), _FAR, _FAR_HIGH)
            a3, b3 = _fold(a3, b3, _load8(data, at + 48), _load8(data, at + 56), _FAR, _FAR_HIGH)
            at += 64
        a, b = _fold(a, b, a1, b1, _NEAR, _NEAR_HIGH)
        a, b = _fold(a, b, a2, b2, _NEAR, _NEAR_HIGH)
        a, b = _fold(a, b, a3, b3, _NEAR, _NEAR_HIGH)
        while end - at >= 16:
            a, b = _fold(a, b, _load8(data, at), _load8(data, at + 8), _NEAR, _NEAR_HIGH)
            at += 16
        # a remainder has the CRC of all that it stands for
        c = _crc_word(_crc_word(np.uint32(0), a), b)
    while at + 8 <= end:
        c = _crc_word(c, _load8(data, at))
        at += 8
    while at < end:
        c = (c >> np.uint32(8)) ^ _CRC[0, (c ^ np.uint32(data[at])) & np.uint32(0xFF)]
        at += 1
    return c ^ np.uint32(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def days_from_civil(year, month, day):
    """Days from 1970-01-01 to a date of the proleptic Gregorian calendar.

    Source: Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    """
    y = year - (1 if month <= 2 else 0)
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


@njit(cache=True, inline="always", nogil=True)
def _is_date(year, month, day):
    """True for dates that Postgres holds under the same name; its calendar has no year 0."""
    if year < 1 or month < 1 or month > 12 or day < 1 or day > 31:
        return False
    if day <= 28:
        return True
    if month == 2:
        return day == 29 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return day <= 30 or month not in (4, 6, 9, 11)


@njit(cache=True, nogil=True)
def _is_utf8(data, at, end):
    """True where data[at:end] is UTF-8 without NUL, which is what a Postgres text holds."""
    while at < end:
        # eight bytes of ASCII at once: no high bit, and no byte that borrows when 1 is taken from it
        if at + 8 <= end:
            word = np.uint64(_load8(data, at))
            zeros = (word - np.uint64(0x0101010101010101)) & ~word
            if (word | zeros) & np.uint64(0x8080808080808080) == 0:
                at += 8
                continue
        b = data[at]
        if b < 0x80:
            if b == 0:
                return False
            at += 1
            continue
        if b < 0xC2 or b > 0xF4:
            return False
        more = 1 if b < 0xE0 else (2 if b < 0xF0 else 3)
        if at + more >= end:
            return False
        second = data[at + 1]
        if (b == 0xE0 and second < 0xA0) or (b == 0xED and second > 0x9F):
            return False
        if (b == 0xF0 and second < 0x90) or (b == 0xF4 and second > 0x8F):
            return False
        for k in range(1, more + 1):
            if data[at + k] & 0xC0 != 0x80:
                return False
        at += more + 1
    return True


# ---------------------------------------------------------------------------------------------------- numeric
@njit(cache=True, nogil=True)
def _put_numeric(out, o, digits, whole, fraction, negative):
    """Write a Postgres numeric: length, then ndigits, weight, sign, dscale (16 bits each) and digits of base 10,000.

    Args:
        digits: (whole + fraction,) uint8, decimal digits, the highest first; no leading point.
        whole, fraction: digits before and after the point.
        negative: the sign; ignored for zero.

    Returns:
        The offset after the value.
    """
    groups_whole = (whole + 3) // 4
    groups = groups_whole + (fraction + 3) // 4
    at = o + 12
    first = -1
    last = -1
    for g in range(groups):
        value = 0
        start = whole - 4 * (groups_whole - g)
        for k in range(4):
            i = start + k
            value = value * 10 + (np.int64(digits[i]) if 0 <= i < whole + fraction else 0)
        if value != 0:
            if first < 0:
                first = g
            last = g
        if first >= 0:
            _put(out, at + 2 * (g - first), value, 2)
    count = 0 if first < 0 else last - first + 1
    _put(out, o, 8 + 2 * count, 4)
    _put(out, o + 4, count, 2)
    _put(out, o + 6, 0 if count == 0 else groups_whole - 1 - first, 2)
    _put(out, o + 8, 0x4000 if negative and count > 0 else 0, 2)
    _put(out, o + 10, fraction, 2)
    return at + 2 * count


@njit(cache=True, nogil=True)
def _put_decimal(data, at, precision, scale, out, o, digits):
    """Write a binary DECIMAL as numeric: groups of nine digits in four bytes, high first, sign in the first bit."""
    whole = precision - scale
    negative = data[at] & 0x80 == 0
    flip = np.uint8(0xFF) if negative else np.uint8(0)
    n = 0
    first = True
    for part in range(2):
        count = whole if part == 0 else scale
        odd = count % 9
        for g in range(count // 9 + 1):
            # the short group stands first before the point and last after it
            size = odd if g == (0 if part == 0 else count // 9) else 9
            if size == 0:
                continue
            value = np.int64(0)
            for _ in range(_DECIMAL_BYTES[size]):
                byte = data[at] ^ flip
                if first:
                    byte ^= np.uint8(0x80)
                    first = False
                value = (value << 8) | np.int64(byte)
                at += 1
            for k in range(size):
                digits[n + k] = np.uint8((value // _POW10[size - 1 - k]) % 10)
            n += size
    return _put_numeric(out, o, digits, whole, scale, negative)


@njit(cache=True, nogil=True)
def _put_unsigned(out, o, value, digits):
    """Write a 64-bit unsigned integer, given as int64 bits, as numeric."""
    v = np.uint64(value)
    for k in range(20):
        digits[19 - k] = np.uint8(v % np.uint64(10))
        v = v // np.uint64(10)
    return _put_numeric(out, o, digits, 20, 0, False)


@njit(cache=True, nogil=True)
def decimal_bytes(precision, scale):
    """Bytes of a binary DECIMAL(precision, scale)."""
    whole = precision - scale
    return (whole // 9) * 4 + _DECIMAL_BYTES[whole % 9] + (scale // 9) * 4 + _DECIMAL_BYTES[scale % 9]


# ---------------------------------------------------------------------------------------------------- times
@njit(cache=True, inline="always", nogil=True)
def _fraction_us(data, at, scale):
    """The fractional seconds after a time value, microseconds."""
    size = (scale + 1) // 2
    value = _big(data, at, size)
    for _ in range(3 - size):
        value *= 100
    return value


@njit(cache=True, nogil=True)
def _put_datetime(out, o, year, month, day, hour, minute, second, us):
    """Write a Postgres timestamp: 8, then microseconds since 2000-01-01."""
    days = days_from_civil(year, month, day) - POSTGRES_EPOCH_DAYS
    o = _put(out, o, 8, 4)
    return _put(out, o, ((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + us, 8)


@njit(cache=True, nogil=True)
def _put_interval(out, o, us):
    """Write a Postgres interval of microseconds: 16, then microseconds, days, months."""
    o = _put(out, o, 16, 4)
    o = _put(out, o, us, 8)
    return _put(out, o, 0, 8)


@njit(cache=True, inline="always", nogil=True)
def _time_us(data, at, scale):
    """A TIME value of a row image, microseconds; negative ones are stored as a complement, fraction included."""
    size = (scale + 1) // 2
    packed = _big(data, at, 3 + size) - (np.int64(0x800000) << (8 * size))
    negative = packed < 0
    if negative:
        packed = -packed
    seconds = packed >> (8 * size)
    us = packed & ((np.int64(1) << (8 * size)) - 1)
    for _ in range(3 - size):
        us *= 100
    total = (((seconds >> 12) & 0x3FF) * 3600 + ((seconds >> 6) & 0x3F) * 60 + (seconds & 0x3F)) * 1_000_000 + us
    return -total if negative else total


# ---------------------------------------------------------------------------------------------------- values
@njit(cache=True, inline="always", nogil=True)
def _put_null(out, o):
    return _put(out, o, np.int64(0xFFFFFFFF), 4)


@njit(cache=True, inline="always", nogil=True)
def _put_utf8(out, o, code):
    """Write a character of more than seven bits, or fewer, as UTF-8; the offset after it."""
    if code < 0x80:
        out[o] = code
        return o + 1
    if code < 0x800:
        out[o] = 0xC0 | code >> 6
        out[o + 1] = 0x80 | code & 0x3F
        return o + 2
    if code < 0x10000:
        out[o] = 0xE0 | code >> 12
        out[o + 1] = 0x80 | (code >> 6) & 0x3F
        out[o + 2] = 0x80 | code & 0x3F
        return o + 3
    out[o] = 0xF0 | code >> 18
    out[o + 1] = 0x80 | (code >> 12) & 0x3F
    out[o + 2] = 0x80 | (code >> 6) & 0x3F
    out[o + 3] = 0x80 | code & 0x3F
    return o + 4


@njit(cache=True, nogil=True)
def _put_wide(data, at, size, text, out, o):
    """Write UTF-16 (text 4: the high byte first, 5: last) or UTF-32 (6) as UTF-8; see _put_text."""
    start = o
    o += 4
    end = at + size
    unit = 4 if text == 6 else 2
    if size % unit:
        return _put_null(out, start), 1
    while at < end:
        code = _load2(data, at) if text == 5 else _big(data, at, unit)
        at += unit
        if text != 6 and 0xD800 <= code < 0xDC00 and at < end:
            low = _load2(data, at) if text == 5 else _big(data, at, 2)
            if 0xDC00 <= low < 0xE000:
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                at += 2
        if code == 0 or 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            return _put_null(out, start), 1
        o = _put_utf8(out, o, code)
    _put(out, start, o - start - 4, 4)
    return o, 0


@njit(cache=True, inline="always", nogil=True)
def _gb18030_place(data, at):
    """Where a code of four bytes stands in the order of all such codes; -1 where it is none, or beyond Unicode's end."""
    first, second = np.int64(data[at]) - 0x81, np.int64(data[at + 1]) - 0x30
    third, fourth = np.int64(data[at + 2]) - 0x81, np.int64(data[at + 3]) - 0x30
    if first < 0 or first > 125 or second < 0 or second > 9 or third < 0 or third > 125 or fourth < 0 or fourth > 9:
        return np.int64(-1)
    place = ((first * 10 + second) * 126 + third) * 10 + fourth
    return place if place < GB18030_BEYOND + 0x100000 else np.int64(-1)


@njit(cache=True, nogil=True)
def _put_pairs(column, data, at, size, out, o, blob):
    """Write text of one and two bytes a character, by a table of 256 entries and one of 65,536; see _put_text.

    Behind them stand those of three bytes, 0x8F first (text 7: the EUC sets), by their last two, or those of four bytes
    (text 8: gb18030) of the basic plane, by their place in its order.
    """
    start = o
    o += 4
    end = at + size
    while at < end:
        entry = column.table + 4 * np.int64(data[at])
        count = blob[entry]
        if count == 0 and at + 1 < end:
            entry = column.table + 4 * (256 + _big(data, at, 2))
            count = blob[entry]
            if count == 0 and column.text == 7 and data[at] == 0x8F and at + 2 < end:
                at += 1
                entry = column.table + 4 * (256 + 65536 + _big(data, at, 2))
                count = blob[entry]
            elif count == 0 and column.text == 8 and at + 3 < end:
                place = _gb18030_place(data, at)
                if place >= GB18030_BEYOND:
                    o = _put_utf8(out, o, 0x10000 + place - GB18030_BEYOND)
                    at += 4
                    continue
                if 0 <= place < GB18030_BASIC:
                    at += 2
                    entry = column.table + 4 * (256 + 65536 + place)
                    count = blob[entry]
            at += 1
        at += 1
        if count == 0:
            return _put_null(out, start), 1
        for n in range(count):
            out[o] = blob[entry + 1 + n]
            o += 1
    _put(out, start, o - start - 4, 4)
    return o, 0


@njit(cache=True, nogil=True)
def _put_text(column, data, at, size, out, o, blob):
    """Write text or bytes of `size` bytes; a text that the kernel leaves to Python is written as NULL.

    Returns:
        The offset after the value, and 1 where it is left to Python.
    """
    if column.kind == 15:
        if column.text == 2:
            return _put_null(out, o), 1
        total = max(size, np.int64(column.width))
        o = _put(out, o, total, 4)
        _copy(out, o, data, at, size)
        for k in range(size, total):
            out[o + k] = 0
        return o + total, 0
    if column.text == 0:
        if not _is_utf8(data, at, at + size):
            return _put_null(out, o), 1
        o = _put(out, o, size, 4)
        _copy(out, o, data, at, size)
        return o + size, 0
    if column.text == 1:
        start = o
        o += 4
        for k in range(size):
            # four bytes an entry: how many bytes of UTF-8 (0: no such character), and these
            entry = column.table + 4 * np.int64(data[at + k])
            count = blob[entry]
            if count == 0:
                return _put_null(out, start), 1
            for n in range(count):
                out[o] = blob[entry + 1 + n]
                o += 1
        _put(out, start, o - start - 4, 4)
        return o, 0
    if column.text == 3 or column.text >= 7:
        return _put_pairs(column, data, at, size, out, o, blob)
    if column.text >= 4:
        return _put_wide(data, at, size, column.text, out, o)
    return _put_null(out, o), 1


@njit(cache=True, inline="always", nogil=True)
def _put_label(labels, entry, blob, out, o):
    at = labels[2 * entry]
    size = labels[2 * entry + 1]
    _copy(out, o, blob, at, size)
    return o + size


@njit(cache=True, nogil=True)
def _put_choice(column, value, out, o, blob, labels):
    """Write an ENUM's index (0: the empty string of a rejected value) or a SET's bits as text."""
    start = o
    o += 4
    if column.kind == 16:
        if value < 0 or value > column.labels:
            return _put_null(out, start), 1
        if value > 0:
            o = _put_label(labels, column.table + value - 1, blob, out, o)
    else:
        if column.labels < 64 and value >> column.labels != 0:
            return _put_null(out, start), 1
        for n in range(column.labels):
            if (value >> n) & 1:
                if o > start + 4:
                    out[o] = 44
                    o += 1
                o = _put_label(labels, column.table + n, blob, out, o)
    _put(out, start, o - start - 4, 4)
    return o, 0


@njit(cache=True, nogil=True)
def _put_bits(data, at, size, bits, out, o):
    """Write a BIT: number of bits, then the bits from the left; MySQL stores them at the right."""
    o = _put(out, o, 4 + size, 4)
    o = _put(out, o, bits, 4)
    shift = 8 * size - bits
    for k in range(size):
        value = np.int64(data[at + k]) << shift
        if k + 1 < size:
            value |= np.int64(data[at + k + 1]) >> (8 - shift)
        out[o + k] = np.uint8(value & 0xFF)
    return o + size


@njit(cache=True, nogil=True)
def _put_integer(column, value, out, o, digits):
    """Write an integer in the width of its mirror type; value holds the sign, or the bits of an unsigned one."""
    kind = column.kind
    if kind == 1 or (kind == 2 and column.unsigned == 0) or kind == 9:
        o = _put(out, o, 2, 4)
        return _put(out, o, value, 2)
    if kind == 2 or kind == 3 or (kind == 4 and column.unsigned == 0):
        o = _put(out, o, 4, 4)
        return _put(out, o, value, 4)
    if kind == 4 or column.unsigned == 0:
        o = _put(out, o, 8, 4)
        return _put(out, o, value, 8)
    return _put_unsigned(out, o, value, digits)


@njit(cache=True, inline="always", nogil=True)
def _integer(column, data, at, size):
    value = _little(data, at, size)
    if column.unsigned == 0 and size < 8 and (value >> (8 * size - 1)) & 1:
        value -= np.int64(1) << (8 * size)
    return value


@njit(cache=True, nogil=True)
def _put_geometry(data, at, size, out, o):
    """Write a geometry (4 bytes SRID, then WKB, the lowest byte first) as EWKB, which names the SRID where it is not 0."""
    if size < 9 or data[at + 4] != 1:
        return _put_null(out, o), 1
    srid = _load4(data, at)
    if srid == 0:
        o = _put(out, o, size - 4, 4)
        _copy(out, o, data, at + 4, size - 4)
        return o + size - 4, 0
    o = _put(out, o, size, 4)
    _copy(out, o, data, at + 4, 5)
    # the highest bit but two of the type says that a SRID follows
    out[o + 4] |= np.uint8(0x20)
    _copy(out, o + 5, data, at, 4)
    _copy(out, o + 9, data, at + 9, size - 9)
    return o + size, 0


@njit(cache=True, nogil=True)
def _put_vector(data, at, size, out, o):
    """Write a VECTOR (floats of 4 bytes) as real[]: dimensions, no NULLs, element type, length, lower bound, elements."""
    if size == 0 or size % 4:
        return _put_null(out, o), 1
    o = _put(out, o, 20 + 2 * size, 4)
    o = _put(out, o, 1, 4)
    o = _put(out, o, 0, 4)
    o = _put(out, o, FLOAT4_OID, 4)
    o = _put(out, o, size // 4, 4)
    o = _put(out, o, 1, 4)
    for k in range(at, at + size, 4):
        o = _put(out, o, 4, 4)
        o = _put(out, o, _load4(data, k), 4)
    return o, 0


@njit(cache=True, nogil=True)
def _put_fixed(column, data, at, size, out, o):
    """Write a UUID or an address of `width` bytes, whose zero bytes at the end may be missing."""
    width = np.int64(column.width)
    if size > width:
        return _put_null(out, o), 1
    if column.kind == 26:
        # inet: family (2: IPv4, 3: IPv6), bits of the mask, not a network, length
        o = _put(out, o, 4 + width, 4)
        o = _put(out, o, 2 if width == 4 else 3, 1)
        o = _put(out, o, 8 * width, 1)
        o = _put(out, o, 0, 1)
        o = _put(out, o, width, 1)
    else:
        o = _put(out, o, width, 4)
    _copy(out, o, data, at, size)
    for k in range(size, width):
        out[o + k] = 0
    return o + width, 0


@njit(cache=True, nogil=True)
def _put_json_text(data, at, size, out, o):
    """Write a JSON text as jsonb: its version 1, then the text. One with a NUL is left to Python."""
    if not _is_utf8(data, at, at + size):
        return _put_null(out, o), 1
    zeros = 0
    for k in range(at, at + size):
        # an escaped NUL is \u0000; whether the backslash itself is escaped is for Python to say
        zeros = zeros + 1 if data[k] == 48 else 0
        if zeros == 4 and k >= at + 5 and data[k - 4] == 117 and data[k - 5] == 92:
            return _put_null(out, o), 1
    o = _put(out, o, 1 + size, 4)
    o = _put(out, o, 1, 1)
    _copy(out, o, data, at, size)
    return o + size, 0


@njit(cache=True, nogil=True)
def _put_value(column, data, at, size, out, o, blob, labels, digits):
    """Write one value of a row image as a COPY field: length, then the bytes of the mirror type's receive function.

    Args:
        column: a record of COLUMN.
        at, size: the value in data, its length prefix left out.

    Returns:
        The offset after the field, and 1 where the value is left to Python (the field is then NULL).
    """
    kind = column.kind
    if kind == 7:
        o = _put(out, o, 8, 4)
        return _put(out, o, _little(data, at, 8), 8), 0
    if kind <= 5:
        return _put_integer(column, _integer(column, data, at, size), out, o, digits), 0
    if kind == 6:
        o = _put(out, o, 4, 4)
        return _put(out, o, _little(data, at, 4), 4), 0
    if kind == 8:
        return _put_decimal(data, at, column.precision, column.scale, out, o, digits), 0
    if kind == 14 or kind == 15:
        return _put_text(column, data, at, size, out, o, blob)
    if kind == 12:
        packed = _big(data, at, 5) - np.int64(0x8000000000)
        months = packed >> 22
        year, month, day = months // 13, months % 13, (packed >> 17) & 31
        if packed < 0 or not _is_date(year, month, day):
            return _put_null(out, o), 1
        us = _fraction_us(data, at + 5, column.scale)
        return _put_datetime(out, o, year, month, day, (packed >> 12) & 31, (packed >> 6) & 63, packed & 63, us), 0
    if kind == 13 or kind == 21:
        seconds = _big(data, at, 4) if kind == 13 else _little(data, at, 4)
        us = _fraction_us(data, at + 4, column.scale) if kind == 13 else np.int64(0)
        if seconds == 0 and us == 0:
            return _put_null(out, o), 1
        o = _put(out, o, 8, 4)
        return _put(out, o, (seconds - POSTGRES_EPOCH_S) * 1_000_000 + us, 8), 0
    if kind == 10:
        packed = _little(data, at, 3)
        if not _is_date(packed >> 9, (packed >> 5) & 15, packed & 31):
            return _put_null(out, o), 1
        o = _put(out, o, 4, 4)
        return _put(out, o, days_from_civil(packed >> 9, (packed >> 5) & 15, packed & 31) - POSTGRES_EPOCH_DAYS, 4), 0
    if kind == 11:
        return _put_interval(out, o, _time_us(data, at, column.scale)), 0
    if kind == 9:
        year = np.int64(data[at])
        return _put_integer(column, year + 1900 if year else year, out, o, digits), 0
    if kind == 16 or kind == 17:
        return _put_choice(column, _little(data, at, size), out, o, blob, labels)
    if kind == 18:
        return _put_bits(data, at, size, column.width, out, o), 0
    if kind == 19:
        value = _little(data, at, 3)
        if value & 0x800000:
            value -= 0x1000000
        size = abs(value)
        us = (size // 10000 * 3600 + size // 100 % 100 * 60 + size % 100) * 1_000_000
        return _put_interval(out, o, -us if value < 0 else us), 0
    if kind == 20:
        value = _little(data, at, 8)
        date = value // 1_000_000
        year, month, day = date // 10000, date // 100 % 100, date % 100
        if not _is_date(year, month, day):
            return _put_null(out, o), 1
        return _put_datetime(out, o, year, month, day, value // 10000 % 100, value // 100 % 100, value % 100, 0), 0
    if kind == 23:
        return _put_geometry(data, at, size, out, o)
    if kind == 24:
        return _put_vector(data, at, size, out, o)
    if kind == 25 or kind == 26:
        return _put_fixed(column, data, at, size, out, o)
    return _put_null(out, o), 1


# ---------------------------------------------------------------------------------------------------- rows
@njit(cache=True, inline="always", nogil=True)
def _put_doubles(data, at, count, out, o):
    """Write so many DOUBLEs of a row image as COPY fields; the offset after them."""
    for _ in range(count):
        _store4(out, o, 8)
        _store8(out, o + 4, _load8(data, at))
        at += 8
        o += 12
    return o


@njit(cache=True, inline="always", nogil=True)
def _has_null(data, nulls, first, count):
    """Whether one of so many columns from the first on is NULL; at most 56 of them."""
    bits = _load8(data, nulls + (first >> 3)) >> (first & 7)
    return bits & ((np.int64(1) << count) - 1) != 0


@njit(cache=True, inline="always", nogil=True)
def _extended(data, at, size, unsigned):
    """An integer of `size` bytes, with its sign; up to eight bytes are read."""
    shift = 64 - 8 * size
    value = _load8(data, at) << shift
    if unsigned:
        return np.int64(np.uint64(value) >> np.uint64(shift))
    return value >> shift


@njit(cache=True, nogil=True)
def _read_image(data, at, end, plan, columns, blob, labels, full, out, o, keys, k, digits):
    """Read one row image; write its tuple's fields into out (where full) and its key fields into keys.

    Returns:
        Where the image ends (-1: beyond end), the offsets after what was written, and whether a value, and whether a
        key's value, is left to Python.
    """
    count = np.int64(plan.columns)
    nulls = at
    at += (count + 7) // 8
    hard = 0
    hard_key = 0
    if at > end:
        return np.int64(-1), o, k, hard, hard_key
    i = np.int64(0)
    while i < count:
        column = columns[plan.first + i]
        doubles = np.int64(column.doubles)
        # most sensor readings are DOUBLE, so the columns of a row are mostly runs of these
        if doubles > 0 and at + 8 * doubles <= end and not _has_null(data, nulls, i, doubles):
            if full:
                o = _put_doubles(data, at, doubles, out, o)
            at += 8 * doubles
            i += doubles
            continue
        if (data[nulls + (i >> 3)] >> (i & 7)) & 1:
            if full:
                o = _put_null(out, o)
            if column.is_key:
                k = _put_null(keys, k)
            i += 1
            continue
        i += 1
        size = np.int64(column.fixed)
        if size == 0:
            prefix = np.int64(column.prefix)
            if at + prefix > end:
                return np.int64(-1), o, k, hard, hard_key
            size = _little(data, at, prefix)
            at += prefix
        if size < 0 or at + size > end:
            return np.int64(-1), o, k, hard, hard_key
        integer = np.int64(column.integer)
        if integer > 0:
            value = _extended(data, at, size, column.unsigned)
            if full:
                o = _put(out, _put(out, o, integer, 4), value, integer)
            if column.is_key:
                k = _put(keys, _put(keys, k, integer, 4), value, integer)
        elif full:
            start = o
            o, left = _put_value(column, data, at, size, out, o, blob, labels, digits)
            hard |= left
            if column.is_key:
                hard_key |= left
                _copy(keys, k, out, start, o - start)
                k += o - start
        elif column.is_key:
            k, left = _put_value(column, data, at, size, keys, k, blob, labels, digits)
            hard_key |= left
        at += size
    return at, o, k, hard, hard_key


@njit(cache=True, inline="always", nogil=True)
def _put_own_columns(out, o, seq, commit_us):
    """Write _seq, _committed_at and an empty _raw."""
    o = _put(out, o, 8, 4)
    o = _put(out, o, seq, 8)
    if commit_us < 0:
        o = _put_null(out, o)
    else:
        o = _put(out, o, 8, 4)
        o = _put(out, o, commit_us - POSTGRES_EPOCH_S * 1_000_000, 8)
    return _put_null(out, o)


@njit(cache=True, nogil=True)
def _read_keyless_rows(data, at, end, kind, p, plan, columns, blob, labels, out, keys, changes, state, commit_us, digits):
    """Read the row images of one rows event of a table without a key, each as a change of its own with the whole tuple.

    Args and returns: as _read_rows, but at is that of the images.
    """
    n, o, k, seq = state[CHANGES], state[OUT], state[KEYS], state[SEQ]
    is_before = kind != INSERT
    while at < end or (kind == UPDATE and not is_before):
        if n >= changes.shape[0] or o + 5 * (end - at) + plan.fixed_out > out.shape[0]:
            return FULL
        change = changes[n]
        seq += 1
        change.plan = p
        change.op = DELETE if is_before else INSERT
        change.seq = seq
        change.commit_us = commit_us
        change.rows_flags = state[ROWS_FLAGS]
        change.key_bytes = 0
        change.old_key_bytes = 0
        change.hard_bytes = 0
        change.image = o
        image_at = at
        o = _put(out, o, np.int64(plan.columns) + 3, 2)
        at, o, k, hard, _ = _read_image(data, at, end, plan, columns, blob, labels, True, out, o, keys, k, digits)
        if at < 0:
            return MALFORMED
        o = _put_own_columns(out, o, seq, commit_us)
        change.image_bytes = o - change.image
        if hard:
            change.hard_at = o
            change.hard_bytes = at - image_at
            _copy(out, o, data, image_at, at - image_at)
            o += at - image_at
        n += 1
        if kind == UPDATE:
            is_before = not is_before
    state[CHANGES], state[OUT], state[SEQ] = n, o, seq
    return 0


@njit(cache=True, nogil=True)
def _read_rows(data, at, end, kind, p, plan, columns, blob, labels, out, keys, changes, state, commit_us, digits):
    """Read the row images of one rows event.

    Args:
        at: the number of columns (a packed integer) and the bitmaps of those present, then the images.
        kind: INSERT, UPDATE or DELETE.

    Returns:
        0, or FULL, MALFORMED, PARTIAL_IMAGE; then nothing of the event counts.
    """
    n, o, k, seq = state[CHANGES], state[OUT], state[KEYS], state[SEQ]
    count = np.int64(plan.columns)
    width = np.int64(data[at])
    at += 1
    if width == 252:
        width = _little(data, at, 2)
        at += 2
    if width != count:
        return MALFORMED
    for _ in range(2 if kind == UPDATE else 1):
        bitmap_end = at + (count + 7) // 8
        if bitmap_end > end:
            return MALFORMED
        for i in range(at, bitmap_end):
            present = 0xFF if i + 1 < bitmap_end or count & 7 == 0 else (1 << (count & 7)) - 1
            if data[i] & present != present:
                return PARTIAL_IMAGE
        at = bitmap_end
    flags = state[ROWS_FLAGS]
    if plan.keys == 0:
        return _read_keyless_rows(
            data, at, end, kind, p, plan, columns, blob, labels, out, keys, changes, state, commit_us, digits
        )
    while at < end:
        room = 4 * (end - at) + plan.fixed_out
        if n >= changes.shape[0] or o + room > out.shape[0] or k + 2 * room > keys.shape[0]:
            return FULL
        change = changes[n]
        seq += 1
        change.plan = p
        change.op = kind
        change.seq = seq
        change.commit_us = commit_us
        change.rows_flags = flags
        change.hard_bytes = 0
        change.old_key_bytes = 0
        change.key_bytes = 0
        change.image_bytes = 0
        row_at = at
        bad = False
        if kind != INSERT:
            change.old_key = k
            at, o, k, _, hard_key = _read_image(data, at, end, plan, columns, blob, labels, False, out, o, keys, k, digits)
            if at < 0:
                return MALFORMED
            change.old_key_bytes = k - change.old_key
            if hard_key:
                # the row cannot be found again, and Python sets a deletion aside
                bad = True
                change.rows_flags |= HARD_OLD_KEY
        if kind != DELETE:
            change.image = o
            change.key = k
            image_at = at
            o = _put(out, o, count + 3, 2)
            at, o, k, hard, hard_key = _read_image(data, at, end, plan, columns, blob, labels, True, out, o, keys, k, digits)
            if at < 0:
                return MALFORMED
            change.key_bytes = k - change.key
            o = _put_own_columns(out, o, seq, commit_us)
            change.image_bytes = o - change.image
            # Of an update whose old key alone is such the insertion is left: its row was never in the mirror.
            if bad and not hard_key:
                change.op = INSERT
            bad = hard_key != 0
            if hard and not bad:
                change.hard_at = o
                change.hard_bytes = at - image_at
                _copy(out, o, data, image_at, at - image_at)
                o += at - image_at
        if bad:
            change.hard_at = o
            change.hard_bytes = row_at - at
            _copy(out, o, data, row_at, at - row_at)
            o += at - row_at
        n += 1
    state[CHANGES], state[OUT], state[KEYS], state[SEQ] = n, o, k, seq
    return 0


# ---------------------------------------------------------------------------------------------------- events
@njit(cache=True, inline="always", nogil=True)
def _same(data, at, blob, start, size):
    k = np.int64(0)
    while k + 8 <= size:
        if _load8(data, at + k) != _load8(blob, start + k):
            return False
        k += 8
    while k < size:
        if data[at + k] != blob[start + k]:
            return False
        k += 1
    return True


@njit(cache=True, nogil=True)
def commit(state, transactions):
    """Close the transaction at hand."""
    transactions = _bare(transactions)
    tx = transactions[state[TRANSACTIONS]]
    tx.changes_end = state[CHANGES]
    tx.out_end = state[OUT]
    tx.keys_end = state[KEYS]
    tx.end_pos = state[LOG_POS]
    tx.file = state[FILE]
    state[TRANSACTIONS] += 1
    if state[TRANSACTIONS] < transactions.shape[0]:
        # what begins without a GTID must not take over one that stood here
        tx = transactions[state[TRANSACTIONS]]
        tx.number = tx.domain = tx.server = tx.commit_us = 0
    state[COMMITS] += 1
    state[IN_TRANSACTION] = 0
    state[PENDING] = 0


@njit(cache=True, nogil=True)
def _begin(state, tx, data, at, end, kind, time_s):
    """Read a GTID event into the transaction at hand.

    MySQL: flags 1, uuid 16, number 8, logical clock 1 + 16, then 7 bytes commit time in microseconds, whose bit 55 says
    that another one follows. MariaDB: number 8, domain 4, flags 1; the server id stands in the event's header.

    Returns:
        False where the event is too short.
    """
    tx.commit_us = time_s * 1_000_000
    tx.number = 0
    if kind == 162:
        if end - at < 13:
            return False
        tx.number = _little(data, at, 8)
        tx.domain = _little(data, at + 8, 4)
        tx.server = _little(data, at - 14, 4)
        for i in range(16):
            tx.origin[i] = 0
        # bit 0: a statement that stands alone (DDL); then no commit follows
        state[IN_TRANSACTION] = 0 if data[at + 12] & 1 else 1
        state[PENDING] = 1
        return True
    if end - at < 25:
        return False
    tx.domain = tx.server = 0
    if kind == 33:
        tx.number = _little(data, at + 17, 8)
    for i in range(16):
        tx.origin[i] = data[at + 1 + i]
    if end - at >= 49:
        commit_us = _little(data, at + 42, 7) & ((np.int64(1) << 55) - 1)
        if commit_us > 0:
            tx.commit_us = commit_us
    state[PENDING] = 1
    return True


@njit(cache=True, nogil=True)
def consume(data, end, state, slots, plans, columns, blob, labels, out, keys, changes, transactions, digits):
    """Walk packets in data[state[AT]:end] until something needs Python.

    Args:
        data: (n,) uint8, bytes from the dump connection: packets of 3 bytes length, 1 byte number, then 0 and an event;
            or events alone (BARE).
        state: (STATE_CELLS,) int64, modified in place; see the cells above.
        slots: (SLOTS,) SLOT. plans: (p,) PLAN. columns: (c,) COLUMN. blob: (b,) uint8. labels: (2 l,) int32.
        out, keys: uint8, modified in place. changes: CHANGE, modified in place. transactions: TRANSACTION, modified in
            place. digits: (>= 81,) uint8, scratch.

    Returns:
        NEED_DATA: the next packet is not whole (WANTED_BYTES: at least so many from AT on). EVENT: the event at EVENT_AT
        is for Python; AT is already behind it. FULL: an output array has no room for what is at AT, or a
        transaction ended and there is enough for a batch. SPLIT:
        the packet at AT is continued in the next. SERVER_ERROR, SERVER_EOF: the packet at AT says so. Otherwise what is
        wrong with the event at EVENT_AT.
    """
    data, state, out, keys, blob, labels, digits = (
        _bare(data), _bare(state), _bare(out), _bare(keys), _bare(blob), _bare(labels), _bare(digits),
    )  # fmt: skip
    slots, plans, columns = _bare(slots), _bare(plans), _bare(columns)
    changes, transactions = _bare(changes), _bare(transactions)
    while True:
        at = state[AT]
        if state[BARE]:
            length = _little(data, at + 9, 4) if end - at >= 19 else np.int64(19)
            if end - at < length:
                state[WANTED_BYTES] = length
                return NEED_DATA
            e = at
        else:
            if end - at < 4:
                state[WANTED_BYTES] = 4
                return NEED_DATA
            # an event of several packets has been joined, and its length does not fit into a packet's header
            size = state[JOINED] if state[JOINED] > 0 else _little(data, at, 3)
            if size == 0xFFFFFF and state[JOINED] == 0:
                return SPLIT
            if end - at < 4 + size:
                state[WANTED_BYTES] = 4 + size
                return NEED_DATA
            if size < 1:
                state[EVENT_AT], state[EVENT_BYTES] = at, 0
                return MALFORMED
            if data[at + 4] == 0xFF:
                return SERVER_ERROR
            if data[at + 4] == 0xFE:
                return SERVER_EOF
            if data[at + 4] != 0:
                return MALFORMED
            e = at + 5
            length = size - 1
        state[EVENT_AT], state[EVENT_BYTES] = e, length
        if length < 19 or _little(data, e + 9, 4) != length:
            return MALFORMED
        kind = np.int64(data[e + 4])
        time_s = _little(data, e, 4)
        state[EVENT_TYPE], state[EVENT_TIME] = kind, time_s
        body = e + 19
        stop = e + length
        # FORMAT_DESCRIPTION always has a checksum, whatever it says of the other events; Python checks it.
        if state[CHECKSUM] and kind != 15:
            stop -= 4
            if stop < body:
                return MALFORMED
            if np.int64(crc32(data, e, stop)) != _little(data, stop, 4):
                return BAD_CHECKSUM
        if transactions.shape[0] - state[TRANSACTIONS] < 2:
            return FULL
        # The header has 32 bits of the offset; within a file it only grows. Artificial events say 0.
        log_pos = _little(data, e + 13, 4)
        before = state[LOG_POS]
        if log_pos > 0 and kind != 15 and kind != 4 and state[BARE] == 0:
            whole = (before & ~np.int64(0xFFFFFFFF)) | log_pos
            if whole < before:
                whole += np.int64(1) << 32
            state[LOG_POS] = whole
        tx = transactions[state[TRANSACTIONS]]
        hand_over = is_enough = False
        if state[HOLD]:
            hand_over = True
        elif kind == 19:
            slot = slots[_little(data, body, 6) & (SLOTS - 1)] if stop - body >= 8 else slots[0]
            plan = plans[slot.plan]
            hand_over = (
                slot.table_id != _little(data, body, 6)
                or plan.map_bytes != stop - body - 6
                or not _same(data, body + 6, blob, plan.map_at, plan.map_bytes)
            )
        elif 30 <= kind <= 32 or 23 <= kind <= 25:
            if stop - body < 11:
                return MALFORMED
            table_id = _little(data, body, 6)
            rows_at = body + 8
            if kind >= 30:
                rows_at += _little(data, body + 8, 2)
            # this table id closes a statement, where the event has no columns; else it is a table's like any other
            if table_id != 0xFFFFFF or (rows_at < stop and data[rows_at] != 0):
                slot = slots[table_id & (SLOTS - 1)]
                if rows_at >= stop or state[IN_TRANSACTION] == 0:
                    return MALFORMED
                if slot.table_id != table_id:
                    return UNKNOWN_TABLE
                plan = plans[slot.plan]
                state[PLAN_AT_FAULT] = slot.plan
                state[ROWS_FLAGS] = _little(data, body + 6, 2)
                if plan.wanted:
                    op = kind - 29 if kind >= 30 else kind - 22
                    code = _read_rows(
                        data, rows_at, stop, op, slot.plan, plan, columns, blob, labels, out, keys, changes, state,
                        tx.commit_us, digits,
                    )  # fmt: skip
                    if code != 0:
                        state[LOG_POS] = before
                        return code
        elif kind == 16:
            if state[IN_TRANSACTION] == 0:
                return MALFORMED
            commit(state, transactions)
            is_enough = state[CHANGES] >= state[ENOUGH_ROWS] or state[OUT] >= state[ENOUGH_BYTES]
        elif kind == 33 or kind == 34 or kind == 162:
            if state[IN_TRANSACTION] != 0 or not _begin(state, tx, data, body, stop, kind, time_s):
                return MALFORMED
            # MariaDB flags a prepared or completed XA transaction here
            hand_over = kind == 162 and data[body + 12] & 0xC0 != 0
        elif kind == 2:
            text = body + 13 + _little(data, body + 11, 2) + np.int64(data[body + 8]) + 1 if stop - body >= 13 else stop
            if stop - text == 5 and _big(data, text, 5) == 0x424547494E:  # BEGIN
                if state[PENDING] == 0:
                    tx.number = 0
                    tx.commit_us = time_s * 1_000_000
                state[IN_TRANSACTION] = 1
            elif stop - text == 6 and _big(data, text, 6) == 0x434F4D4D4954 and state[IN_TRANSACTION]:  # COMMIT
                commit(state, transactions)
                is_enough = state[CHANGES] >= state[ENOUGH_ROWS] or state[OUT] >= state[ENOUGH_BYTES]
            else:
                hand_over = True
        else:
            hand_over = True
        state[AT] = e + length
        state[JOINED] = 0
        if hand_over:
            return EVENT
        if is_enough:
            return FULL


# ---------------------------------------------------------------------------------------------------- result sets
@njit(cache=True, inline="always", nogil=True)
def _packed_integer(data, at):
    """A length-encoded integer and the offset after it."""
    first = np.int64(data[at])
    if first < 251:
        return first, at + 1
    size = 2 if first == 252 else (3 if first == 253 else 8)
    return _little(data, at + 1, size), at + 1 + size


@njit(cache=True, nogil=True)
def _put_decimal_text(data, at, size, column, out, o, digits):
    """Write a DECIMAL that came as text, as numeric."""
    negative = size > 0 and data[at] == 45
    start = at + (1 if negative else 0)
    whole = 0
    n = 0
    seen_point = False
    for i in range(start, at + size):
        if data[i] == 46:
            seen_point = True
            continue
        digits[n] = data[i] - 48
        n += 1
        if not seen_point:
            whole += 1
    return _put_numeric(out, o, digits, whole, n - whole, negative)


@njit(cache=True, nogil=True)
def _result_value_size(column, data, at):
    """Where a value of a binary result row begins and how many bytes it takes.

    Times begin behind their own length byte, which is their size; text behind its length.
    """
    kind = column.kind
    if kind <= 5:
        return at, np.int64(1 if kind == 1 else (2 if kind == 2 else (8 if kind == 5 else 4)))
    if kind == 7:
        return at, np.int64(8)
    if kind == 6:
        return at, np.int64(4)
    if kind == 9:
        return at, np.int64(2)
    if kind == 16 or kind == 17:
        return at, np.int64(8)
    size, at = _packed_integer(data, at)
    return at, size


@njit(cache=True, nogil=True)
def _put_result_value(column, data, at, size, out, o, blob, labels, digits):
    """Write one value of a binary result row as a COPY field; see _put_value."""
    kind = column.kind
    if kind <= 5:
        return _put_integer(column, _integer(column, data, at, size), out, o, digits), 0
    if kind == 9:
        return _put_integer(column, _little(data, at, 2), out, o, digits), 0
    if kind == 6 or kind == 7:
        o = _put(out, o, size, 4)
        return _put(out, o, _little(data, at, size), size), 0
    if kind == 8 and size < digits.shape[0]:
        return _put_decimal_text(data, at, size, column, out, o, digits), 0
    if kind == 14 or kind == 15:
        return _put_text(column, data, at, size, out, o, blob)
    if kind == 16 or kind == 17:
        return _put_choice(column, _little(data, at, 8), out, o, blob, labels)
    if kind == 18:
        return _put_bits(data, at, size, column.width, out, o), 0
    if kind == 11 or kind == 19:
        us = np.int64(0)
        if size >= 8:
            seconds = ((_little(data, at + 1, 4) * 24 + data[at + 5]) * 60 + data[at + 6]) * 60 + data[at + 7]
            us = seconds * 1_000_000 + (_little(data, at + 8, 4) if size >= 12 else 0)
            if data[at]:
                us = -us
        return _put_interval(out, o, us), 0
    if kind == 10 or kind == 12 or kind == 13 or kind == 20 or kind == 21:
        if size < 4 or not _is_date(_little(data, at, 2), np.int64(data[at + 2]), np.int64(data[at + 3])):
            return _put_null(out, o), 1
        year, month, day = _little(data, at, 2), np.int64(data[at + 2]), np.int64(data[at + 3])
        if kind == 10:
            o = _put(out, o, 4, 4)
            return _put(out, o, days_from_civil(year, month, day) - POSTGRES_EPOCH_DAYS, 4), 0
        hour = minute = second = us = np.int64(0)
        if size >= 7:
            hour, minute, second = np.int64(data[at + 4]), np.int64(data[at + 5]), np.int64(data[at + 6])
        if size >= 11:
            us = _little(data, at + 7, 4)
        return _put_datetime(out, o, year, month, day, hour, minute, second, us), 0
    if kind == 22:
        return _put_json_text(data, at, size, out, o)
    if kind == 23:
        return _put_geometry(data, at, size, out, o)
    if kind == 24:
        return _put_vector(data, at, size, out, o)
    if kind == 25 or kind == 26:
        return _put_fixed(column, data, at, size, out, o)
    return _put_null(out, o), 1


@njit(cache=True, nogil=True)
def consume_result(data, end, state, p, plan, columns, blob, labels, out, changes, digits):
    """Turn the packets of a binary result set in data[state[AT]:end] into COPY tuples, as inserts.

    Args: see consume(). p, plan: the plan of the selected columns; ENUM and SET are selected as unsigned numbers.

    Returns:
        NEED_DATA, FULL, SPLIT, SERVER_ERROR or SERVER_EOF (the end of the rows), or MALFORMED.

    Source: MySQL internals, "Binary Protocol Result Set".
    """
    data, state, out, blob, labels, digits = (
        _bare(data), _bare(state), _bare(out), _bare(blob), _bare(labels), _bare(digits),
    )  # fmt: skip
    columns, changes = _bare(columns), _bare(changes)
    count = np.int64(plan.columns)
    while True:
        at = state[AT]
        if end - at < 4:
            state[WANTED_BYTES] = 4
            return NEED_DATA
        size = state[JOINED] if state[JOINED] > 0 else _little(data, at, 3)
        if size == 0xFFFFFF and state[JOINED] == 0:
            return SPLIT
        if end - at < 4 + size:
            state[WANTED_BYTES] = 4 + size
            return NEED_DATA
        if size < 1:
            return MALFORMED
        at += 4
        stop = at + size
        if data[at] == 0xFF:
            return SERVER_ERROR
        if data[at] == 0xFE:
            return SERVER_EOF
        n, o = state[CHANGES], state[OUT]
        if n >= changes.shape[0] or o + 5 * size + plan.fixed_out > out.shape[0]:
            return FULL
        row_at = at
        nulls = at + 1
        at += 1 + (count + 9) // 8
        change = changes[n]
        seq = state[SEQ] + 1
        change.plan, change.op, change.seq, change.commit_us = p, INSERT, seq, -1
        change.image = o
        change.hard_bytes = change.old_key_bytes = change.key_bytes = change.rows_flags = 0
        hard = 0
        o = _put(out, o, count + 3, 2)
        for i in range(count):
            column = columns[plan.first + i]
            if (data[nulls + ((i + 2) >> 3)] >> ((i + 2) & 7)) & 1:
                o = _put_null(out, o)
                continue
            if at >= stop:
                return MALFORMED
            at, value_bytes = _result_value_size(column, data, at)
            if value_bytes < 0 or value_bytes > stop - at:
                return MALFORMED
            o, left = _put_result_value(column, data, at, value_bytes, out, o, blob, labels, digits)
            hard |= left
            if left and column.is_key:
                change.hard_bytes = -1
            at += value_bytes
        o = _put_own_columns(out, o, seq, -1)
        change.image_bytes = o - change.image
        if hard:
            change.hard_at = o
            change.hard_bytes = row_at - stop if change.hard_bytes < 0 else stop - row_at
            _copy(out, o, data, row_at, stop - row_at)
            o += stop - row_at
        state[CHANGES], state[OUT], state[SEQ] = n + 1, o, seq
        state[AT], state[ROW_AT] = stop, row_at
        state[JOINED] = 0


@njit(cache=True, inline="always", nogil=True)
def _hash_bytes(data, at, size):
    """FNV-1a over bytes, scrambled at the end; int64."""
    h = np.uint64(0xCBF29CE484222325)
    for k in range(at, at + size):
        h = (h ^ np.uint64(data[k])) * np.uint64(0x100000001B3)
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return np.int64(h ^ (h >> np.uint64(33)))


@njit(cache=True, nogil=True)
def index_tuples(changes, source, is_key, target, starts, seq_at, keys, key_starts, hashes):
    """Copy the tuples of changes one after another, and note where their parts are.

    Args:
        changes: (n,) CHANGE. source: uint8, what they point into. is_key: (c,) uint8, for each column of the source.
        target, keys: uint8, written: the tuples, and their key fields; each as large as all tuples together.
        starts, key_starts: (n + 1,) int64, written: where each begins in target and in keys, and where the last one ends.
        seq_at, hashes: (n,) int64, written: where the value of _seq is in target; the hash of the key fields.
    """
    target, keys, source = _bare(target), _bare(keys), _bare(source)
    o = np.int64(0)
    k = np.int64(0)
    for n in range(changes.shape[0]):
        change = changes[n]
        size = np.int64(change.image_bytes)
        _copy(target, o, source, change.image, size)
        starts[n], key_starts[n] = o, k
        at = o + 2
        for i in range(is_key.shape[0]):
            field_bytes = _big(target, at, 4)
            end = at + 4 + (field_bytes if field_bytes != 0xFFFFFFFF else 0)
            if is_key[i]:
                _copy(keys, k, target, at, end - at)
                k += end - at
            at = end
        seq_at[n] = at + 4
        hashes[n] = _hash_bytes(keys, key_starts[n], k - key_starts[n])
        o += size
    starts[changes.shape[0]], key_starts[changes.shape[0]] = o, k


@njit(cache=True, nogil=True)
def number_tuples(tuples, seq_at, first):
    """Write the numbers from `first` on as the tuples' _seq, modified in place; seq_at as index_tuples gives it."""
    for n in range(seq_at.shape[0]):
        _put(tuples, seq_at[n], first + n, 8)


@njit(cache=True, nogil=True)
def index_keys(entries, source, keys, key_starts, hashes):
    """Copy the keys of folded changes one after another, with their hashes.

    Args:
        entries: (n,) ENTRY. source: uint8, what they point into.
        keys, key_starts, hashes: written; see index_tuples.
    """
    keys, source = _bare(keys), _bare(source)
    k = np.int64(0)
    for n in range(entries.shape[0]):
        entry = entries[n]
        size = np.int64(entry.key_bytes)
        _copy(keys, k, source, entry.key, size)
        key_starts[n], hashes[n] = k, _hash_bytes(keys, k, size)
        k += size
    key_starts[entries.shape[0]] = k


@njit(cache=True, nogil=True)
def find_left(rows, changes, out, plans, columns, is_result, left):
    """Find the values that the kernels left to Python: NULL in the tuple, and not NULL in the raw image.

    Args:
        rows: (n,) int64, indexes of changes with a raw image. out: uint8, what the changes point into.
        is_result: the raw images are binary result rows.
        left: (all columns of these changes,) LEFT, written.

    Returns:
        How many were found.
    """
    changes, plans, columns, left = _bare(changes), _bare(plans), _bare(columns), _bare(left)
    found = 0
    skip = 2 if is_result else 0
    nulls = 1 if is_result else 0
    for r in rows:
        change = changes[r]
        plan = plans[change.plan]
        count = np.int64(plan.columns)
        bits = change.hard_at + nulls
        at = bits + (count + 7 + skip) // 8
        # behind the number of fields
        field = change.image + 2
        for i in range(count):
            column = columns[plan.first + i]
            field_bytes = _big(out, field, 4)
            if not (out[bits + ((i + skip) >> 3)] >> ((i + skip) & 7)) & 1:
                if is_result:
                    at, size = _result_value_size(column, out, at)
                else:
                    size = np.int64(column.fixed)
                    if size == 0:
                        size = _little(out, at, np.int64(column.prefix))
                        at += column.prefix
                if field_bytes == 0xFFFFFFFF:
                    entry = left[found]
                    entry.change, entry.column, entry.at, entry.value_bytes, entry.field = r, i, at, size, field
                    found += 1
                at += size
            field += 4 + (field_bytes if field_bytes != 0xFFFFFFFF else 0)
    return found


# ---------------------------------------------------------------------------------------------------- folding
# What a batch leaves of one key. last: index of the change that holds its last image, -1 where the row is gone. fresh: the
# key did not exist before the batch. seq: of the last change that took the row away.
ENTRY = np.dtype(
    [
        ("key", np.int64),
        ("key_bytes", np.int64),
        ("last", np.int64),
        ("fresh", np.int64),
        ("seq", np.int64),
        ("commit_us", np.int64),
    ],
    align=True,
)


@njit(cache=True, inline="always", nogil=True)
def _entry_of(keys, at, size, entries, count, buckets):
    """The index of the key's entry, a new one (last -1, fresh 1) where there is none, and the new count."""
    h = np.uint64(0xCBF29CE484222325)
    for k in range(size):
        h = (h ^ np.uint64(keys[at + k])) * np.uint64(0x100000001B3)
    mask = np.uint64(buckets.shape[0] - 1)
    b = (h ^ (h >> np.uint64(29))) & mask
    while True:
        i = buckets[b]
        if i < 0:
            buckets[b] = count
            entry = entries[count]
            entry.key, entry.key_bytes, entry.last, entry.fresh, entry.seq = at, size, -1, 1, 0
            return count, count + 1
        if entries[i].key_bytes == size:
            same = True
            for k in range(size):
                if keys[entries[i].key + k] != keys[at + k]:
                    same = False
                    break
            if same:
                return i, count
        b = (b + np.uint64(1)) & mask


@njit(cache=True, nogil=True)
def fold(rows, changes, keys, entries, buckets):
    """Fold the changes of one table to the last image of every key.

    Args:
        rows: (n,) int64, indexes of the table's changes, in order.
        entries: (2 n,) ENTRY, written. buckets: (a power of two >= 4 n,) int64, all -1 on entry, modified in place.

    Returns:
        The number of entries.
    """
    changes, keys, entries, buckets = _bare(changes), _bare(keys), _bare(entries), _bare(buckets)
    count = 0
    for r in rows:
        change = changes[r]
        if change.op != INSERT:
            is_new = count
            i, count = _entry_of(keys, change.old_key, np.int64(change.old_key_bytes), entries, count, buckets)
            if count > is_new:
                entries[i].fresh = 0
            entries[i].last = -1
            entries[i].seq = change.seq
            entries[i].commit_us = change.commit_us
        if change.op != DELETE:
            i, count = _entry_of(keys, change.key, np.int64(change.key_bytes), entries, count, buckets)
            entries[i].last = r
    return count


@njit(cache=True, nogil=True)
def gather(rows, changes, source, target):
    """Copy the tuples of the changes `rows` one after another into target; the number of bytes.

    Args:
        rows: (n,) int64. source, target: uint8; target is modified in place and must be large enough.
    """
    changes = _bare(changes)
    o = np.int64(0)
    for r in rows:
        size = np.int64(changes[r].image_bytes)
        _copy(target, o, source, changes[r].image, size)
        o += size
    return o


@njit(cache=True, inline="always", nogil=True)
def _fields_end(data, at, count):
    """Where `count` COPY fields from `at` on end."""
    for _ in range(count):
        size = _big(data, at, 4)
        at += 4 + (size if size != 0xFFFFFFFF else 0)
    return at


@njit(cache=True, nogil=True)
def _hash_fields(data, at, count):
    """FNV-1a over `count` COPY fields from `at` on, scrambled at the end; int64."""
    h = np.uint64(0xCBF29CE484222325)
    for k in range(at, _fields_end(data, at, count)):
        h = (h ^ np.uint64(data[k])) * np.uint64(0x100000001B3)
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return np.int64(h ^ (h >> np.uint64(33)))


@njit(cache=True, nogil=True)
def gather_hashed(rows, changes, source, columns, more, target):
    """Copy the tuples of the changes `rows` into target, each with the hash of its row and more fields of 8 bytes behind it.

    Args:
        rows: (n,) int64. source, target: uint8; target is modified in place and has room for 12 (m + 1) bytes more a row.
        columns: of the source; the hash is over these. more: (n, m) int64.

    Returns:
        The number of bytes.
    """
    changes = _bare(changes)
    o = np.int64(0)
    for n in range(rows.shape[0]):
        change = changes[rows[n]]
        size = np.int64(change.image_bytes)
        _copy(target, o, source, change.image, size)
        _put(target, o, np.int64(columns) + 4 + more.shape[1], 2)
        row_hash = _hash_fields(target, o + 2, columns)
        o += size
        o = _put(target, o, 8, 4)
        o = _put(target, o, row_hash, 8)
        for m in range(more.shape[1]):
            o = _put(target, o, 8, 4)
            o = _put(target, o, more[n, m], 8)
    return o


@njit(cache=True, inline="always", nogil=True)
def _same_rows(first, second, out, columns):
    """Whether the tuples of two changes have the same values; _seq and _committed_at, behind the columns, do not count."""
    one = first.image + 2
    two = second.image + 2
    one_end = _fields_end(out, one, columns)
    two_end = _fields_end(out, two, columns)
    if one_end - one != two_end - two or not _same(out, one, out, two, one_end - one):
        return False
    one = _fields_end(out, one_end, 2)
    two = _fields_end(out, two_end, 2)
    rest = first.image + first.image_bytes - one
    return rest == second.image + second.image_bytes - two and _same(out, one, out, two, rest)


@njit(cache=True, nogil=True)
def cancel(rows, changes, out, columns, kept, groups, buckets):
    """Let insertions and deletions of equal rows of a table without a key cancel each other, the latest first.

    Args:
        rows: (n,) int64, indexes of the table's changes, in order; each has an image in `out`.
        columns: of the source.
        kept: (n,) uint8, written: 1 for those that remain. Of equal rows only insertions or only deletions remain.
        groups: (n,) int64, written: the same number for equal rows, the index of the first of them.
        buckets: (a power of two >= 2 n,) int64, all -1 on entry, modified in place.
    """
    changes, out, kept, groups, buckets = _bare(changes), _bare(out), _bare(kept), _bare(groups), _bare(buckets)
    count = rows.shape[0]
    # the stack of those that remain of each group
    top = np.full(count, -1, np.int64)
    below = np.full(count, -1, np.int64)
    mask = np.uint64(buckets.shape[0] - 1)
    for n in range(count):
        change = changes[rows[n]]
        b = np.uint64(_hash_fields(out, change.image + 2, columns)) & mask
        while buckets[b] >= 0 and not _same_rows(changes[rows[buckets[b]]], change, out, columns):
            b = (b + np.uint64(1)) & mask
        if buckets[b] < 0:
            buckets[b] = n
        group = buckets[b]
        groups[n] = group
        last = top[group]
        if last >= 0 and changes[rows[last]].op != change.op:
            kept[last] = kept[n] = 0
            top[group] = below[last]
        else:
            kept[n] = 1
            below[n] = last
            top[group] = n


@njit(cache=True, nogil=True)
def renumber(changes, out, shift):
    """Add shift to the _seq of changes, in their records and in their tuples in out; both modified in place."""
    changes = _bare(changes)
    for i in range(changes.shape[0]):
        change = changes[i]
        change.seq += shift
        if change.image_bytes > 0:
            # behind _seq stand its commit time (length and 8 bytes) and an empty _raw (length)
            _put(out, change.image + change.image_bytes - 24, change.seq, 8)


@njit(cache=True, nogil=True)
def stage_keys(chosen, entries, keys, key_columns, target):
    """Write COPY tuples of the chosen entries: key fields, then the seq and commit time of the deletion, NULL where it returns.

    Args:
        chosen: (n,) int64, indexes of entries. target: uint8, modified in place and large enough.

    Returns:
        The number of bytes.
    """
    entries = _bare(entries)
    o = np.int64(0)
    for i in chosen:
        entry = entries[i]
        o = _put(target, o, key_columns + 2, 2)
        _copy(target, o, keys, entry.key, entry.key_bytes)
        o += entry.key_bytes
        if entry.last >= 0:
            o = _put_null(target, o)
            o = _put_null(target, o)
        else:
            o = _put(target, o, 8, 4)
            o = _put(target, o, entry.seq, 8)
            o = _put(target, o, 8, 4)
            o = _put(target, o, entry.commit_us - POSTGRES_EPOCH_S * 1_000_000, 8)
    return o
