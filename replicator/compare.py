"""Compiled code of `verify`: rows of both sides, as COPY BINARY tuples, laid beside each other by their keys.

Owns its kernels and uses nothing compiled of another file. A tuple here is a mirror's row as COPY has it: the source's columns,
_seq, _committed_at, _raw. Values are compared byte by byte; _seq and _committed_at do not count. Pure.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Postgres: signature, flags and the extension's length; PostgreSQL manual, "COPY", binary format.
COPY_HEADER_BYTES = 19


@njit(cache=True, nogil=True)
def _int16(data, at):
    return (np.int64(data[at]) << 8) | np.int64(data[at + 1])


@njit(cache=True, nogil=True)
def _int32(data, at):
    """A signed integer of four bytes, the highest first."""
    value = np.int64(0)
    for k in range(4):
        value = (value << 8) | np.int64(data[at + k])
    return value - (np.int64(1) << 32) if value >= (np.int64(1) << 31) else value


@njit(cache=True, nogil=True)
def _skip(data, at, count):
    """Where `count` fields from `at` on end."""
    for _ in range(count):
        size = _int32(data, at)
        at += 4 + (size if size > 0 else 0)
    return at


@njit(cache=True, nogil=True)
def _hash(data, at, end, h):
    """FNV-1a over data[at:end], begun with h."""
    for k in range(at, end):
        h = (h ^ np.uint64(data[k])) * np.uint64(0x100000001B3)
    return h


@njit(cache=True, nogil=True)
def _scramble(h):
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return h ^ (h >> np.uint64(33))


@njit(cache=True, nogil=True)
def count_tuples(data, at):
    """How many tuples begin at `at`; they end with the data, or with COPY's trailer."""
    count = 0
    while at + 2 <= data.shape[0]:
        fields = _int16(data, at)
        if fields == 0xFFFF:
            break
        at = _skip(data, at + 2, fields)
        count += 1
    return count


@njit(cache=True, nogil=True)
def find_tuples(data, at, starts):
    """Where the tuples begin.

    Args:
        data: (b,) uint8. at: the first one.
        starts: (n + 1,) int64, written: of each of n tuples, and the end of the last one.
    """
    for i in range(starts.shape[0] - 1):
        starts[i] = at
        at = _skip(data, at + 2, _int16(data, at))
    starts[-1] = at


@njit(cache=True, nogil=True)
def hash_tuples(data, starts, is_key, hashes, seqs):
    """Of each tuple a hash of its key, and its _seq.

    Args:
        is_key: (c,) uint8: which of the columns are the key. All 0: the hash is over the whole row, _raw included.
        hashes: (n,) uint64. seqs: (n,) int64; both written.
    """
    columns = is_key.shape[0]
    whole = not is_key.any()
    for i in range(hashes.shape[0]):
        at = starts[i] + 2
        h = np.uint64(0xCBF29CE484222325)
        for c in range(columns):
            end = _skip(data, at, 1)
            if whole or is_key[c]:
                h = _hash(data, at, end, h)
            at = end
        seq = np.int64(0)
        for k in range(8):
            seq = (seq << 8) | np.int64(data[at + 4 + k])
        if whole:
            raw = _skip(data, at, 2)
            h = _hash(data, raw, _skip(data, raw, 1), h)
        hashes[i] = _scramble(h)
        seqs[i] = seq


@njit(cache=True, nogil=True)
def hash_changes(changes, rows, keys, hashes):
    """The hashes of the keys that changes of the stream touch, as hash_tuples makes them; how many.

    Args:
        changes: decode.CHANGE. rows: (n,) int64, indexes of changes. keys: uint8, what they point into.
        hashes: (2 n,) uint64, written.
    """
    count = 0
    for r in rows:
        change = changes[r]
        for at, size in ((change.key, change.key_bytes), (change.old_key, change.old_key_bytes)):
            if size > 0:
                hashes[count] = _scramble(_hash(keys, at, at + np.int64(size), np.uint64(0xCBF29CE484222325)))
                count += 1
    return count


@njit(cache=True, nogil=True)
def _equal(first, at, end, second, other_at, other_end):
    if end - at != other_end - other_at:
        return False
    for k in range(end - at):
        if first[at + k] != second[other_at + k]:
            return False
    return True


@njit(cache=True, nogil=True)
def _same_row(one, at, two, other, columns):
    """Whether two tuples have the same values and the same _raw."""
    end, other_end = _skip(one, at + 2, columns), _skip(two, other + 2, columns)
    if not _equal(one, at + 2, end, two, other + 2, other_end):
        return False
    raw, other_raw = _skip(one, end, 2), _skip(two, other_end, 2)
    return _equal(one, raw, _skip(one, raw, 1), two, other_raw, _skip(two, other_raw, 1))


@njit(cache=True, nogil=True)
def _same_key(one, at, two, other, is_key):
    at += 2
    other += 2
    for c in range(is_key.shape[0]):
        end, other_end = _skip(one, at, 1), _skip(two, other, 1)
        if is_key[c] and not _equal(one, at, end, two, other, other_end):
            return False
        at, other = end, other_end
    return True


@njit(cache=True, nogil=True)
def match(source, source_starts, source_hashes, mirror, mirror_starts, mirror_hashes, is_key, buckets, partner, same, taken):
    """Find for each row of the source the mirror's row with the same key, and whether the two are equal.

    Args:
        source, mirror: uint8, tuples. *_starts, *_hashes: as find_tuples and hash_tuples give them.
        is_key: (c,) uint8, with at least one 1.
        buckets: (a power of two >= 2 m,) int64, all -1 on entry, modified in place.
        partner: (n,) int64, written: index of the mirror's row, or -1. same: (n,) uint8, written.
        taken: (m,) uint8, 0 on entry, written: 1 for the mirror's rows that have a partner.
    """
    mask = np.uint64(buckets.shape[0] - 1)
    for m in range(mirror_hashes.shape[0]):
        b = mirror_hashes[m] & mask
        while buckets[b] >= 0:
            b = (b + np.uint64(1)) & mask
        buckets[b] = m
    for n in range(source_hashes.shape[0]):
        partner[n] = -1
        same[n] = 0
        b = source_hashes[n] & mask
        while buckets[b] >= 0:
            m = buckets[b]
            if source_hashes[n] == mirror_hashes[m]:
                same[n] = _same_row(source, source_starts[n], mirror, mirror_starts[m], is_key.shape[0])
                if same[n] or _same_key(source, source_starts[n], mirror, mirror_starts[m], is_key):
                    partner[n] = m
                    taken[m] = 1
                    break
            b = (b + np.uint64(1)) & mask


@njit(cache=True, nogil=True)
def gather_keys(data, starts, rows, numbers, is_key, target):
    """Write COPY tuples of the keys of `rows`, each with a number of 8 bytes behind it; the number of bytes.

    Args:
        rows, numbers: (n,) int64. target: uint8, modified in place, with room for the tuples and 16 bytes more for each.
    """
    keys = np.int64(0)
    for c in range(is_key.shape[0]):
        keys += np.int64(is_key[c])
    o = 0
    for i in range(rows.shape[0]):
        target[o], target[o + 1] = (keys + 1) >> 8, (keys + 1) & 255
        o += 2
        at = starts[rows[i]] + 2
        for c in range(is_key.shape[0]):
            end = _skip(data, at, 1)
            if is_key[c]:
                for k in range(at, end):
                    target[o] = data[k]
                    o += 1
            at = end
        target[o], target[o + 1], target[o + 2], target[o + 3] = 0, 0, 0, 8
        for k in range(8):
            target[o + 4 + k] = (numbers[i] >> (56 - 8 * k)) & 255
        o += 12
    return o
