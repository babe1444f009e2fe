"""Writes what copies read into the mirrors; see copies.py.

Owns the statements. Transactions are the caller's, unless it is said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.copy_binary import copy_into, copy_statement, copy_tuples, row_columns
from replicator.copy_plan import TableCopy
from replicator.copy_reader import Slice
from replicator.key_range import Block
from replicator.mirror import QUERIES, MirrorTable
from replicator.owed import is_owed, write_what_is_not_owed
from replicator.quarantine import Poison, end_superseded, identify, of_tuple, set_aside
from replicator.refused import find_refused
from replicator.write import MirrorWriter


def write_slices(
    writer: MirrorWriter, copy: TableCopy, slices: Sequence[Slice], seq: int, refused: Mapping[int, str]
) -> int:  # fmt: skip
    """Write slices of one copy, and how far it is, in the transaction at hand; the last _seq given out.

    Args:
        refused: rows that Postgres refuses, by their number among all rows of the slices, and why. They are set aside; what
            the mirror has of their keys is not touched: it is taken away at the copy's end, or changed by the stream.
    """
    table, conn = copy.table, writer.conn
    touched = table.touched
    assert touched is not None
    removed = written = 0
    pieces: list[memoryview] = []
    old: list[tuple[Block, NDArray[np.int64]]] = []
    aside: list[tuple[Slice, Poison]] = []
    first = 0
    for each in slices:
        block = each.block
        # The stream's version of a key is as of the stream's position, whatever was read before.
        kept = ~touched.find(block, each.seq)
        aside += [(each, poison) for poison in block.set_aside]
        if table.held and table.key:
            _end_held(writer, table, block, kept, seq + 1)
        for i in [number - first for number in sorted(refused) if first <= number < first + len(kept)]:
            if not kept[i]:
                continue
            kept[i] = False
            raw = block.tuples[block.starts[i] : block.starts[i + 1]].tobytes()
            aside.append((each, of_tuple(table, raw, refused[first + i])))
        first += len(kept)
        there = kept if copy.is_filled else kept & touched.may_hold(block)
        if there.any():
            old.append((block, np.nonzero(there)[0]))
        decode.number_tuples(block.tuples, block.seq_at[kept], seq + written + 1)
        written += int(kept.sum())
        pieces += _pieces(block, kept)
    if old:
        removed = _delete(writer, table, old)
    last = seq + written
    if written and table.owed is not None and is_owed(conn, table.owed):
        stage = writer.stage(table)
        copy_tuples(conn, copy_into(stage, row_columns(table)), *pieces)
        written = write_what_is_not_owed(conn, table, table.owed, stage)
    elif written:
        copy_tuples(conn, copy_statement(table), *pieces)
        if table.kept:
            writer.history.put_back(table)
    for each, poison in aside:
        # a number of its own says what came before it and what after
        last += 1
        place = "copy"
        if copy.order is not None:
            upto = f" up to {copy.order.show(each.block.last)}" if each.block.last else ""
            place = f"copy, behind {copy.order.show(each.range.after)}{upto}"
        set_aside(conn, writer.source, table, place, last, poison)
    after = [each.range.after for each in slices]
    rows_done = copy.rows_done
    try:
        for each in slices:
            # Without its last key a part is read again after a crash, and its rows take their own place.
            if each.block.last:
                each.range.after, each.range.inclusive = each.block.last, False
            copy.rows_done += each.block.rows_read
        facts = copy.describe(writer.source, None) | {
            "rows": written - removed, "inserted": written, "seq": last,
            "raw_rows": sum(each.block.raw_rows for each in slices),
        }  # fmt: skip
        with conn.pipeline():
            for name in ("note_copy", "count_copied", "write_seq", "notify"):
                conn.execute(QUERIES[name], facts)
    except BaseException:
        copy.rows_done = rows_done
        for each, before in zip(slices, after, strict=True):
            each.range.after = before
        raise
    return last


def find_refused_rows(writer: MirrorWriter, copy: TableCopy, slices: Sequence[Slice]) -> dict[int, str]:
    """Which rows of slices Postgres refuses by themselves; see write_slices."""
    starts = np.concatenate([each.block.starts[:-1] for each in slices])
    ends = np.concatenate([each.block.starts[1:] for each in slices])
    of = np.repeat(np.arange(len(slices)), [len(each.block.seq_at) for each in slices])

    def tuples(chosen: NDArray[np.int64]) -> bytes:
        return b"".join([slices[of[i]].block.tuples.data[starts[i] : ends[i]] for i in chosen.tolist()])

    return find_refused(writer.conn, copy.table, len(starts), tuples)


def _end_held(writer: MirrorWriter, table: MirrorTable, block: Block, kept: NDArray[np.bool_], seq: int) -> None:
    """What is held of keys that are written, or set aside, again ends."""
    view, starts = block.keys.data, block.key_starts
    found = {identify(view[starts[i] : starts[i + 1]]) for i in np.nonzero(kept)[0].tolist()}
    found = (found | {poison.identity for poison in block.set_aside if poison.identity is not None}) & table.held
    end_superseded(writer.conn, writer.source, table, dict.fromkeys(found, seq))


def _delete(writer: MirrorWriter, table: MirrorTable, old: list[tuple[Block, NDArray[np.int64]]]) -> int:
    """Delete the mirror's rows with the keys of these rows, which come back at once; how many were there."""
    entries: NDArray[np.void] = np.zeros(sum(len(rows) for _, rows in old), decode.ENTRY)
    at = offset = 0
    for block, rows in old:
        part = entries[at : at + len(rows)]
        part["key"] = block.key_starts[rows] + offset
        part["key_bytes"] = block.key_starts[rows + 1] - block.key_starts[rows]
        at, offset = at + len(rows), offset + len(block.keys)
    keys = np.concatenate([block.keys for block, _ in old])
    return writer.delete_keys(table, np.arange(len(entries)), entries, keys)


def _pieces(block: Block, kept: NDArray[np.bool_]) -> list[memoryview]:
    """The tuples of the kept rows, in as few pieces as they lie."""
    view = block.tuples.data
    if kept.all():
        return [view]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], kept, [False])).astype(np.int8)))
    return [view[int(block.starts[start]) : int(block.starts[end])] for start, end in zip(edges[::2], edges[1::2], strict=True)]
