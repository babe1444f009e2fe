"""Writes a batch's changes, table by table, or in the order that cascades ask for.

Owns which of the changes a mirror takes, their order, and what becomes of those that cannot be written. Runs inside the
applier's transaction; the statements on one mirror are write.py's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.cascades import Cascades
from replicator.copied import leave_out_copied
from replicator.mirror import LIVE, MirrorTable, key_object
from replicator.multiset import pack
from replicator.quarantine import end_one, set_aside, take_tuple
from replicator.refused import find_refused
from replicator.schema import Registry
from replicator.triggers import cut_runs
from replicator.work import Work
from replicator.write import MirrorDiverged, MirrorWriter, instant

Rows = NDArray[np.int64]


class BatchWriter:
    """Writes batches to the mirrors of one source, inside the transaction at hand.

    Args:
        writer: for the statements on one mirror. registry: the tables.
    """

    def __init__(self, writer: MirrorWriter, registry: Registry) -> None:
        self.conn, self.writer, self.registry = writer.conn, writer, registry

    def write(self, work: Work) -> None:
        """Write a batch, inside the transaction at hand; work.current is the table at hand where that fails.

        Raises:
            MirrorDiverged: a change does not fit its mirror.
            psycopg.Error: Postgres refuses a change.
        """
        work.aside.clear()
        if len(work.triggers):
            # its tuples are built anew
            work.poison.clear()
            self._write_in_order(work)
        else:
            self._write_span(work, 0, len(work.tables))
        work.current = None

    def _write_span(self, work: Work, start: int, end: int) -> None:
        """Write the changes from start to end, table by table."""
        span, work.span = work.tables[start:end], (start, end)
        for number in np.unique(span):
            work.current = self.registry.by_number[int(number)]
            rows = self._current_rows(work, work.current, np.nonzero(span == number)[0] + start)
            if len(rows):
                self.writer.apply_table(work.current, rows, work)

    def _current_rows(self, work: Work, table: MirrorTable, rows: Rows) -> Rows:
        """Those of a table's changes that the mirror does not hold yet; none where it takes no changes."""
        if table.first_plan:
            rows = rows[work.changes["plan"][rows] >= table.first_plan]
        read_as_of = table.consistent_from if table.exact else table.read_as_of
        if read_as_of is not None:
            rows = leave_out_copied(work.batch, rows, read_as_of)
        if table.state not in LIVE or table.resync:
            return rows[:0]
        if work.poison:
            for i in sorted(work.poison.keys() & set(rows.tolist()) - work.aside):
                work.aside.add(i)
                self._set_aside(work, table, i)
        if work.poison or table.row_end is not None:
            rows = rows[work.changes["op"][rows] > 0]
        return rows

    def _set_aside(self, work: Work, table: MirrorTable, i: int) -> None:
        """Write a change to the quarantine; a deletion of a row without a key, which is there already, ends what is held.

        Raises:
            MirrorDiverged: that is not held.
        """
        poison, batch = work.poison[i], work.batch
        if not table.key and poison.operation == "delete":
            assert poison.identity is not None
            if not end_one(self.conn, self.registry.name, table, poison.identity):
                raise MirrorDiverged("a row was deleted that cannot be represented, and is not in the quarantine")
            return
        number = int(np.searchsorted(batch.transactions["changes_end"], i, side="right")) if batch.whole else 0
        transaction = batch.transactions[min(number, len(batch.transactions) - 1)]
        file = batch.files[int(transaction["file"])] if batch.files else batch.position.file
        place = f"{file}:{int(transaction['end_pos'])}" if batch.whole else str(batch.position)
        set_aside(self.conn, self.registry.name, table, place, int(work.changes["seq"][i]), poison)

    def _write_in_order(self, work: Work) -> None:
        """Write a batch in pieces, cut around the changes that cascade, each followed by what it made of the children.

        The children's changes get a _seq of their own there, so what follows is numbered on from them.
        """
        changes, out = work.batch.changes.copy(), work.batch.out.copy()
        work.changes, work.derived, at = changes, 0, 0

        def write(start: int, end: int) -> None:
            decode.renumber(changes[start:end], out, work.derived)
            finished = work.finish_span(self.registry, changes[start:end], out, start)
            work.out, work.raw[start:end] = finished
            self._write_span(work, start, end)

        for start, end in cut_runs(work.triggers, work.tables, changes):
            write(at, start)
            self._write_trigger(work, start, end, write)
            at = end
        write(at, len(changes))

    def _write_trigger(self, work: Work, start: int, end: int, write: Callable[[int, int], None]) -> None:
        """Write one change of a parent, or several deletions in a row, and what they did to the children."""
        table = work.current = self.registry.by_number[int(work.tables[start])]
        rows = self._current_rows(work, table, np.arange(start, end))
        if not len(rows):
            write(start, end)
            return
        keys = work.batch.keys
        entries = self.writer.fold(rows, work.changes, keys)
        is_deletion = bool(work.changes["op"][start] == decode.DELETE)
        in_key = {name.lower() for name in table.key}
        by_key = all({name.lower() for name in key.referenced} <= in_key for key, _ in self.registry.children(table.name))
        first = np.arange(len(entries)) if is_deletion else np.zeros(1, np.int64)
        old = self.writer.read_rows(table, first, entries, keys, by_key=by_key)
        write(start, end)
        if not is_deletion:
            new = self.writer.read_rows(table, np.array([len(entries) - 1]), entries, keys, by_key=by_key)
            old = f'[{{"old": {old[1:-1]}, "new": {new[1:-1]}}}]'
        work.current = table
        last = work.changes[end - 1]
        seq, commit_us = int(last["seq"]), int(last["commit_us"])

        def enter(child: MirrorTable) -> None:
            work.current = child
            if child.held and self.registry.children(child.name):
                raise MirrorDiverged("a cascade may go on from rows that are in the quarantine")

        cascades = Cascades(self.conn, self.registry.name, self.registry.children, key_object, enter)
        for each in cascades.follow(table, "delete" if is_deletion else "update", old, seq, instant(commit_us)):
            work.derived += each.deleted + each.updated
            self.writer.count(
                each.table, -each.deleted, 0, each.updated, each.deleted, 0, each.seq, commit_us, work.batch.position
            )

    def find_refused(self, work: Work) -> bool:
        """Note the tuples of the table at hand that Postgres refuses by themselves; False where there are none."""
        table = work.current
        if table is None:
            return False
        changes, out, (start, end) = work.changes, work.out, work.span
        rows = np.nonzero((work.tables == table.number) & (changes["op"] > 0) & (changes["image_bytes"] > 0))[0]
        rows = rows[(rows >= start) & (rows < end)]

        def tuples(chosen: Rows) -> memoryview:
            if not table.key:
                return pack(rows[chosen], changes, out, len(table.columns))
            target = np.empty(int(changes["image_bytes"][rows[chosen]].sum()), np.uint8)
            decode.gather(rows[chosen], changes, out, target)
            return target.data

        refused = {int(rows[n]): why for n, why in find_refused(self.conn, table, len(rows), tuples).items()}
        if len(work.triggers):
            work.refused |= refused
        elif refused:
            if changes is work.batch.changes:
                work.changes = changes = changes.copy()
            for i, why in refused.items():
                work.poison[i] = take_tuple(changes, out, i, why, table)
        return bool(refused)
