"""Compares a table without a key: as multisets of rows, at exactly one moment.

Nothing tells which of two equal rows changed, so the two sides must be read as of the same position. The table is locked
against writes until the stream has come to that position and both sides hold a snapshot: as long as the stream lags, and no
longer than MOST_LOCK_S. Then both are read at leisure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from replicator.errors import LockRefused
from replicator.position import Position
from replicator.read_view import ReadView
from replicator.result import ResultReader
from replicator.rows import Hashes, Rows, surplus
from replicator.verification import Verification

MOST_LOCK_S = 1.0
_TRIES = 10
_LOOKS = 3
_BLOCK_BYTES = 8 << 20


class NotAligned(Exception):
    """The stream did not come to the locked position in time."""


def check_keyless(work: Verification) -> None:
    """Compare a whole table; what is found is recorded, and repaired where that is wanted.

    Raises:
        LockRefused: the table cannot be locked for a moment.
        TableChanged: the table was copied or altered meanwhile.
    """
    for look in range(_LOOKS if work.repair else 1):
        missing, extra, quarantined = _look(work, is_first=look == 0)
        work.tally.quarantined = quarantined
        if not len(missing) and not len(extra):
            work.note_repaired()
            return
        if look == 0:
            work.record("missing", missing, np.arange(len(missing)))
            work.record("extra", extra, np.arange(len(extra)))
        if work.repair:
            work.ask_repair(missing, extra)
        if work.refusal:
            return


def _look(work: Verification, *, is_first: bool) -> tuple[Rows, Rows, int]:
    """The rows that only the source has, as Postgres stores them, those that only the mirror has; how many are held."""
    source_side, mirror_side = work.source_side, work.mirror_side
    tables = [mirror_side.table.name]
    for _ in range(_TRIES):
        work.wait_turn()
        try:
            view = ReadView(source_side.source, tables, lambda position: _hold_mirror(work, position))
            break
        except NotAligned:
            work.sleep(0.5)
    else:
        raise LockRefused(f"the stream did not come to a locked position within {MOST_LOCK_S:.0f} s, {_TRIES} times")
    try:
        work.position = view.position
        ours = _hashes(_read_source(work, view, is_counted=is_first))
        theirs = _hashes(mirror_side.blocks())
        only_source, only_mirror = ours[surplus(ours, theirs)], theirs[surplus(theirs, ours)]
        held = mirror_side.read_held()
        missing = _collect(_read_source(work, view, is_counted=False), only_source) if len(only_source) else b""
        extra = _collect(mirror_side.blocks(), only_mirror) if len(only_mirror) else b""
    finally:
        mirror_side.conn.execute("ROLLBACK")
        view.close()
    found = Rows.parse(missing, source_side.is_key)
    is_held = mirror_side.are_held(found, np.arange(len(found)), held)
    missing = found.tuples(np.nonzero(~is_held)[0])
    stored, rows = mirror_side.as_stored(missing), Rows.parse(extra, source_side.is_key)
    return (
        stored.choose(surplus(stored.hashes, rows.hashes)),
        rows.choose(surplus(rows.hashes, stored.hashes)),
        int(is_held.sum()) + source_side.unreadable,
    )


def _hold_mirror(work: Verification, position: Position) -> None:
    """Begin a transaction that sees the mirror as the locked source is."""
    if not work.watch.wait_applied(position, MOST_LOCK_S):
        raise NotAligned
    work.mirror_side.conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    work.mirror_side.check_table()


def _read_source(work: Verification, view: ReadView, *, is_counted: bool) -> Iterable[Rows]:
    source_side = work.source_side
    reader = ResultReader(source_side.source, source_side.found, 0, view)
    data = bytearray()
    source_side.unreadable = 0
    for count, block in reader.blocks():
        data += block
        if is_counted:
            work.tally.rows += count
            work.keep_pace()
        work.check_stop()
        if len(data) > _BLOCK_BYTES:
            yield Rows.parse(data, source_side.is_key)
            data = bytearray()
    yield Rows.parse(data, source_side.is_key)
    source_side.unreadable = len(reader.take_set_aside())
    work.tally.chunks += is_counted


def _hashes(blocks: Iterable[Rows]) -> Hashes:
    return np.concatenate([np.empty(0, np.uint64), *(rows.hashes for rows in blocks)])


def _collect(blocks: Iterable[Rows], wanted: Hashes) -> bytes:
    """The tuples of rows with these hashes, as many of each."""
    left = Counter(wanted.tolist())
    found = []
    for rows in blocks:
        chosen = []
        for i in np.nonzero(np.isin(rows.hashes, wanted))[0].tolist():
            hashed = int(rows.hashes[i])
            if left[hashed]:
                left[hashed] -= 1
                chosen.append(i)
        found.append(rows.tuples(np.array(chosen, np.int64)))
    return b"".join(found)
