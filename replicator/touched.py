"""Which keys of a table the stream has changed since a copy of it began to be read. Pure.

A row that was read before a change must not be written after it. Keys are compared by the bytes of their COPY fields, which
are the same however a value came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from replicator import decode

_PLACES = 1 << 21


class Keyed(Protocol):
    """Rows with their keys; see key_range.Block."""

    @property
    def keys(self) -> NDArray[np.uint8]:
        """The key fields of all rows."""

    @property
    def key_starts(self) -> NDArray[np.int64]:
        """Where each row's begin, and the end."""

    @property
    def hashes(self) -> NDArray[np.int64]:
        """Of each row's key fields."""


@dataclass(frozen=True)
class _Batch:
    seq: int
    keys: NDArray[np.uint8]
    key_starts: NDArray[np.int64]
    hashes: NDArray[np.int64]


class Touched:
    """The keys that batches of the stream changed: those of the latest batches exactly, all of them as a filter."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []
        self._places: NDArray[np.bool_] = np.zeros(_PLACES, np.bool_)

    def add(self, entries: NDArray[np.void], keys: NDArray[np.uint8], seq: int) -> None:
        """Take in the keys of a batch.

        Args:
            entries: (n,) decode.ENTRY. keys: what they point into. seq: at or behind the last of the batch's changes.
        """
        copied = np.empty(int(entries["key_bytes"].sum()), np.uint8)
        starts, hashes = np.empty(len(entries) + 1, np.int64), np.empty(len(entries), np.int64)
        decode.index_keys(entries, keys, copied, starts, hashes)
        self._batches.append(_Batch(seq, copied, starts, hashes))
        self._places[hashes & (_PLACES - 1)] = True

    def forget(self, seq: int | None) -> None:
        """Forget the keys of batches up to this one exactly, all where it is None; the filter keeps them."""
        self._batches = [] if seq is None else [batch for batch in self._batches if batch.seq > seq]

    def find(self, rows: Keyed, seq: int) -> NDArray[np.bool_]:
        """(n,) bool: which rows' keys were changed behind this _seq, whose batches must not be forgotten."""
        found = np.zeros(len(rows.hashes), np.bool_)
        later = [batch for batch in self._batches if batch.seq > seq]
        if not later:
            return found
        candidates = np.nonzero(np.isin(rows.hashes, np.concatenate([batch.hashes for batch in later])))[0]
        if not len(candidates):
            return found
        wanted = set(rows.hashes[candidates].tolist())
        known = {
            batch.keys[batch.key_starts[i] : batch.key_starts[i + 1]].tobytes()
            for batch in later
            for i in np.nonzero(np.isin(batch.hashes, list(wanted)))[0]
        }
        for i in candidates.tolist():
            found[i] = rows.keys[rows.key_starts[i] : rows.key_starts[i + 1]].tobytes() in known
        return found

    def may_hold(self, rows: Keyed) -> NDArray[np.bool_]:
        """(n,) bool: False for rows whose keys no batch has changed."""
        found: NDArray[np.bool_] = self._places[rows.hashes & (_PLACES - 1)]
        return found
