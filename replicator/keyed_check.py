"""Compares a table with a key, range by range, while both sides change; takes no locks.

A look at a range: note what the stream touches from here on (watch.py); read the source's rows; wait until the mirror has all
that the source had committed by then; read the mirror's rows. A key that the stream did not touch meanwhile had the same row
throughout, on both sides, so whatever differs there is drift. What was touched is looked at again. Drift counts once two
looks in a row have found it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replicator.mirror_side import TableChanged
from replicator.rows import Hashes, Indexes, Rows, match_rows
from replicator.source_side import MOST_BYTES, ChunkTooLarge, Span
from replicator.verification import Verification

# More looks settle nothing more: a row that changes all the time is read while it changes every time.
LOOKS = 8
_MISSING, _DIFFERENT, _EXTRA = 0, 1, 2


@dataclass(frozen=True)
class Look:
    """What one look found.

    Attributes:
        span: of keys. source, mirror: the rows of both sides.
        hashes: (d,) uint64, keys in which the sides differ. what: (d,) int64, how.
        rows, others: (d,) int64, indexes of their rows in source and in mirror, -1 where there is none.
        in_flux: (d,) bool, the stream touched the key meanwhile.
        quarantined: how many rows of the source are not in the mirror because they are in the quarantine.
    """

    span: Span
    source: Rows
    mirror: Rows
    hashes: Hashes
    what: Indexes
    rows: Indexes
    others: Indexes
    in_flux: NDArray[np.bool_]
    quarantined: int


def check_keyed(work: Verification) -> None:
    """Compare a whole table; what is found is recorded, and repaired where that is wanted.

    Raises:
        TableChanged: the table was copied or altered meanwhile.
        StreamStands: the stream does not come to the source's position.
    """
    source_side, mirror_side = work.source_side, work.mirror_side
    work.watch.begin(mirror_side.table.number, work.check_stop)
    stage, rows = work.take_up(), work.chunk_rows
    while not stage.is_done:
        work.wait_turn()
        try:
            stage.span, keys = _check_span(work, stage.span, rows)
        except ChunkTooLarge:
            if rows == 1 or not source_side.is_paged:
                raise TableChanged(f"more than {MOST_BYTES >> 20} MiB would have to be compared at once") from None
            rows = max(1, rows // 2)
            continue
        work.tally.chunks += 1
        work.tally.rows += len(keys)
        if not mirror_side.is_shared:
            stage.seen.append(keys)
        stage.is_done = not stage.span.upto
        work.note_chunk(stage)
        rows = min(work.chunk_rows, 2 * rows)
    if not mirror_side.is_shared:
        _find_extra(work, np.concatenate(stage.seen), stage.first_seq)


def _check_span(work: Verification, before: Span, rows: int) -> tuple[Span, Hashes]:
    """Compare the rows behind a span; the span that they are, and the hashes of the source's keys."""
    span: Span | None = None
    suspects = recorded = open_keys = all_keys = np.empty(0, np.uint64)
    for number in range(LOOKS):
        look = _look(work, before, span, rows)
        if span is None:
            all_keys, open_keys = look.source.hashes, look.hashes
            work.tally.quarantined += look.quarantined
        span = look.span
        is_open = np.isin(look.hashes, open_keys)
        is_drift = is_open & ~look.in_flux & np.isin(look.hashes, suspects)
        _record(work, look, np.nonzero(is_drift & ~np.isin(look.hashes, recorded))[0])
        recorded = np.concatenate([recorded, look.hashes[is_drift]])
        if work.repair and is_drift.any():
            _repair(work, look, np.nonzero(is_drift)[0])
        suspects = look.hashes[is_open & ~look.in_flux]
        # What is repaired is looked at once more.
        is_done = is_drift if not work.repair or work.refusal else np.zeros_like(is_drift)
        open_keys = look.hashes[is_open & ~is_done]
        if not len(open_keys):
            work.note_repaired()
            return span, all_keys
        work.sleep(0.02 * 2**number)
    assert span is not None, "there was a look"
    work.tally.unsettled += len(np.setdiff1d(open_keys, recorded))
    return span, all_keys


def _look(work: Verification, before: Span, span: Span | None, rows: int) -> Look:
    """Look at a span, or first of all at the rows behind one."""
    source_side, mirror_side = work.source_side, work.mirror_side
    work.watch.begin(mirror_side.table.number, work.check_stop)
    seq = work.read_checkpoint()
    if span is None:
        source, span = source_side.read_next(before, rows)
    else:
        source = source_side.read_again(span)
    work.wait_applied()
    with mirror_side.snapshot():
        mirror, held = mirror_side.read_span(span, source), mirror_side.read_held()
    found = match_rows(source, mirror)
    is_held = mirror_side.are_held(source, found.missing, held)
    missing = found.missing[~is_held]
    pairs = found.different
    if len(pairs):
        # Postgres' own form of jsonb is not the source's
        stored = mirror_side.as_stored(source.tuples(pairs[:, 0]))
        part = Rows.parse(mirror.tuples(pairs[:, 1]), source_side.is_key)
        pairs = pairs[match_rows(stored, part).different[:, 0]]
    sizes = (len(missing), len(pairs), len(found.extra))
    ours = np.concatenate([missing, pairs[:, 0], np.full(sizes[2], -1)])
    others = np.concatenate([np.full(sizes[0], -1), pairs[:, 1], found.extra])
    hashes = np.concatenate([source.hashes[missing], source.hashes[pairs[:, 0]], mirror.hashes[found.extra]])
    in_flux = np.isin(hashes, work.watch.touched())
    # What cascades change is in no batch, but has its number.
    is_there = others >= 0
    in_flux[is_there] |= mirror.seqs[others[is_there]] > seq
    if len(missing):
        in_flux |= np.isin(ours, mirror_side.find_deleted(source, missing, seq)) & ~is_there
    quarantined = int(is_held.sum()) + source_side.unreadable
    return Look(span, source, mirror, hashes, np.repeat(np.arange(3), sizes), ours, others, in_flux, quarantined)


def _record(work: Verification, look: Look, drift: Indexes) -> None:
    of_kind = [drift[look.what[drift] == what] for what in (_MISSING, _DIFFERENT, _EXTRA)]
    work.record("missing", look.source, look.rows[of_kind[_MISSING]])
    work.record("different", look.source, look.rows[of_kind[_DIFFERENT]])
    work.record("extra", look.mirror, look.others[of_kind[_EXTRA]])


def _repair(work: Verification, look: Look, drift: Indexes) -> None:
    extra = drift[look.what[drift] == _EXTRA]
    came = drift[look.what[drift] != _EXTRA]
    work.ask_repair(look.source.choose(look.rows[came]), look.mirror.choose(look.others[extra]))


def _find_extra(work: Verification, seen: Hashes, first_seq: int) -> None:
    """Find the mirror's rows that no range of the source had, where the two sides may order keys differently.

    A row that is older than the first look was there all the time, and at the source, had it been there, some range would
    have had it.
    """
    mirror_side = work.mirror_side
    work.watch.begin(mirror_side.table.number, work.check_stop)
    work.read_checkpoint()
    work.wait_applied()
    with mirror_side.snapshot():
        blocks = mirror_side.count_blocks()
    step = max(1, blocks * work.chunk_rows // max(1, len(seen)))
    for first in range(0, max(1, blocks), step):
        work.check_stop()
        end = first + step if first + step < blocks else None
        rows, extra = _read_extra(work, seen, first_seq, first, end)
        work.record("extra", rows, extra)
        if work.repair and len(extra):
            work.ask_repair(rows.choose(extra[:0]), rows.choose(extra))
            if not len(_read_extra(work, seen, first_seq, first, end)[1]):
                work.note_repaired()


def _read_extra(work: Verification, seen: Hashes, first_seq: int, first: int, end: int | None) -> tuple[Rows, Indexes]:
    with work.mirror_side.snapshot():
        rows = work.mirror_side.read_keys(first, end)
    return rows, np.nonzero(~np.isin(rows.hashes, seen) & (rows.seqs <= first_seq))[0]
