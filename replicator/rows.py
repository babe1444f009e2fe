"""Rows of one side as `verify` holds them: COPY tuples in one array, with a hash of each key.

Owns the arrays around the kernels of compare.py. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replicator import compare

Indexes = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Rows:
    """Tuples of a mirror's columns, in the order in which they were read.

    Attributes:
        data: (b,) uint8. starts: (n + 1,) int64, where each tuple begins.
        is_key: (c,) uint8, which columns are the key; all 0 where the table has none.
        hashes: (n,) uint64, of the keys, or of the whole rows where there is no key. seqs: (n,) int64, their _seq.
    """

    data: NDArray[np.uint8]
    starts: Indexes
    is_key: NDArray[np.uint8]
    hashes: Hashes
    seqs: Indexes

    @classmethod
    def parse(cls, data: bytes | bytearray, is_key: NDArray[np.uint8], at: int = 0) -> Rows:
        """Take in COPY tuples that begin at an offset and end with the data, or with COPY's trailer."""
        array = np.frombuffer(data, np.uint8)
        starts = np.zeros(int(compare.count_tuples(array, at)) + 1, np.int64)
        compare.find_tuples(array, at, starts)
        hashes, seqs = np.empty(len(starts) - 1, np.uint64), np.empty(len(starts) - 1, np.int64)
        compare.hash_tuples(array, starts, is_key, hashes, seqs)
        return cls(array, starts, is_key, hashes, seqs)

    def __len__(self) -> int:
        return len(self.hashes)

    def tuples(self, chosen: Indexes) -> bytes:
        """The tuples of some rows, one after another."""
        view = self.data.data
        return b"".join([view[self.starts[i] : self.starts[i + 1]] for i in chosen.tolist()])

    def choose(self, chosen: Indexes) -> Rows:
        """Some of the rows."""
        return Rows.parse(self.tuples(chosen), self.is_key)

    def all_tuples(self) -> bytes:
        """All tuples, one after another."""
        return self.tuples(np.arange(len(self)))

    def all_keys(self, number: int) -> bytes:
        """COPY tuples of all keys, each with the same number behind it."""
        return self.keys(np.arange(len(self)), np.full(len(self), number))

    def keys(self, chosen: Indexes, numbers: Indexes) -> bytes:
        """COPY tuples of the keys of some rows, each with a number behind it."""
        sizes = self.starts[chosen + 1] - self.starts[chosen]
        target = np.empty(int(sizes.sum()) + 16 * len(chosen), np.uint8)
        size = compare.gather_keys(self.data, self.starts, chosen, numbers.astype(np.int64), self.is_key, target)
        return target[:size].tobytes()


@dataclass(frozen=True)
class Match:
    """How rows of the source and of the mirror correspond.

    Attributes:
        different: (d, 2) int64, pairs of rows with the same key and other values.
        missing: (m,) int64, rows of the source that the mirror lacks. extra: (e,) int64, rows of the mirror alone.
    """

    different: Indexes
    missing: Indexes
    extra: Indexes


def match_rows(source: Rows, mirror: Rows) -> Match:
    """Lay both sides beside each other by key."""
    buckets = np.full(1 << (2 * len(mirror) + 1).bit_length(), -1, np.int64)
    partner, same = np.empty(len(source), np.int64), np.empty(len(source), np.uint8)
    taken = np.zeros(len(mirror), np.uint8)
    compare.match(
        source.data, source.starts, source.hashes, mirror.data, mirror.starts, mirror.hashes, source.is_key, buckets,
        partner, same, taken,
    )  # fmt: skip
    other = np.nonzero((partner >= 0) & (same == 0))[0]
    return Match(np.stack([other, partner[other]], axis=1), np.nonzero(partner < 0)[0], np.nonzero(taken == 0)[0])


def surplus(ours: Hashes, theirs: Hashes) -> Indexes:
    """Indexes of the rows of `ours` that are there more often than in `theirs`, so many of each as there are too many."""
    order = np.argsort(ours, kind="stable")
    ordered = ours[order]
    # which copy of its value each is, from 0
    first = np.searchsorted(ordered, ordered, side="left")
    copy = np.arange(len(ordered)) - first
    known = np.sort(theirs)
    there = np.searchsorted(known, ordered, side="right") - np.searchsorted(known, ordered, side="left")
    return np.sort(order[copy >= there])
