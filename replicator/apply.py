"""Applies batches: the rows, the deleted keys, the tables' states and the checkpoint in one Postgres transaction.

Owns the transaction, the order of tables, and what happens to rows that cannot be written. What is done to one table is
write.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray
from psycopg import sql

from replicator import decode
from replicator.cascades import Cascades
from replicator.changes import Batch
from replicator.copied import leave_out_copied
from replicator.crash import reach
from replicator.errors import TableProblem
from replicator.locks import transaction_with_short_waits, wait_as_usual
from replicator.mirror import LIVE, QUERIES, MirrorTable, key_object
from replicator.multiset import pack
from replicator.position import Position
from replicator.prepared import write_changes
from replicator.quarantine import ROW_REFUSALS, end_one, set_aside, take_tuple
from replicator.refused import find_refused
from replicator.schema import Registry
from replicator.triggers import cut_runs, find_triggers
from replicator.versions import pass_over_history
from replicator.work import Work
from replicator.write import MirrorDiverged, MirrorWriter, instant
from warehouse.db import Connection, wrap_errors
from warehouse.errors import TryLater

log = structlog.get_logger()

Rows = NDArray[np.int64]

# What Postgres answers to rows that it cannot hold, and to a mirror that is not as it was left.
REFUSALS = (
    psycopg.errors.IntegrityError,
    psycopg.errors.DataError,
    psycopg.errors.NotSupportedError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.TooManyColumns,
)
ALTERED = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.DatatypeMismatch)


class ReadAgain(TryLater):
    """The transaction at hand was rolled back after parts of it had been written; read it again from its start."""


class Applier:
    """Writes to the warehouse for one source.

    Args:
        conn: the connection that also holds the source's lock, so that a writer without the lock cannot commit.
        registry: the tables.
        identity: the source server's identity, kept in the checkpoint.
    """

    def __init__(self, conn: Connection, registry: Registry, identity: str) -> None:
        self.conn, self.registry, self.identity = conn, registry, identity
        self.writer = MirrorWriter(conn, registry.name)
        self._parts = 0
        self._notified = -1
        # The planner knows nothing of a stage's rows, and would rather read a whole mirror than look up each key.
        with wrap_errors():
            for method in ("hashjoin", "mergejoin", "seqscan"):
                conn.execute(sql.SQL("SET {} = off").format(sql.Identifier(f"enable_{method}")))

    @property
    def is_open(self) -> bool:
        """True while parts of a transaction are written that has not come to its end."""
        return self._parts > 0

    def abandon(self) -> None:
        """Take back the parts of a transaction that has not come to its end."""
        if self.is_open:
            self._roll_back()

    def apply(self, batch: Batch) -> int:
        """Commit a batch; a part of a transaction is written, and committed with the part that ends it.

        A table whose rows cannot be written goes into a state that says so, and the batch is committed without it.

        Returns:
            The last _seq given out: the batch's, and behind it those of changes that cascades made.

        Raises:
            TryLater: the warehouse is down, busy or full; nothing of the batch is committed.
            ReadAgain: as above, but earlier parts of the transaction are gone and must be read again.
        """
        with self.registry.lock:
            if batch.undone:
                self.abandon()
            tables = np.array(batch.plans.tables, np.int64)[batch.changes["plan"]]
            pass_over_history(batch.changes, batch.keys, batch.out, tables, self.registry.by_number)
            triggers = find_triggers(batch, tables, self.registry)
            work = Work.of(batch, tables, triggers)
            if not len(triggers):
                work.finish_hard_rows(self.registry)
            done = False
            while not done:
                done = self._try(work)
            return batch.seq + work.derived

    def _try(self, work: Work) -> bool:
        """Write a batch; False where a row or a table had to be left out and it is to be done again."""
        is_later, counts = self.is_open, self.writer.counts
        is_part = is_later or not work.batch.whole
        is_row = False
        try:
            with wrap_errors(position=work.batch.position):
                if is_later:
                    self.conn.execute("SAVEPOINT part")
                else:
                    self.conn.execute("BEGIN")
                    self.writer.begin()
                    self.registry.write(self.conn, work.batch.position)
                self._parts += 1
                reach("before_rows")
                self._write(work)
                reach("after_rows")
                if work.batch.whole:
                    # parts, and pieces between cascades, may have found more that is to be known with these rows
                    self.registry.write(self.conn, work.batch.position)
                    whole = self._commit(replace(work.batch, seq=work.batch.seq + work.derived))
                    reach("after_commit")
                    self._parts = 0
                    self._settled(whole)
                elif is_later:
                    self.conn.execute("RELEASE SAVEPOINT part")
            return True
        except (*REFUSALS, *ALTERED) as error:
            problem: TableProblem = MirrorDiverged(f"a change does not fit the mirror: {_first_line(error)}")
            is_row = isinstance(error, ROW_REFUSALS)
        except TableProblem as error:
            problem = error
        except BaseException:
            self._roll_back()
            raise
        if is_row and is_later:
            # what earlier parts wrote stays
            self._parts -= 1
            with wrap_errors():
                self.conn.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
            self.writer.forget(counts)
        else:
            self._roll_back()
        if is_row and work.current is not None and self._set_refused_aside(work, work.current):
            return False
        self._roll_back()
        if work.current is None:
            raise problem
        if isinstance(problem, MirrorDiverged):
            self.registry.require_resync(work.current, problem)
        else:
            self.registry.reject(work.current.number, problem)
        if is_part:
            raise ReadAgain(
                f"table {work.current.name} is left out of a transaction that is partly read", position=work.batch.position
            )
        return False

    def _write(self, work: Work) -> None:
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
        if table.exact and table.consistent_from is not None:
            rows = leave_out_copied(work.batch, rows, table.consistent_from)
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

    def _commit(self, batch: Batch) -> list[MirrorTable]:
        """Write what goes with the rows and commit, in one round trip; where a statement fails the server skips the rest."""
        reach("before_checkpoint")
        with self.conn.pipeline():
            self.writer.write_counts()
            write_changes(self.conn, self.registry.name, batch.xa, str(batch.position))
            self._write_checkpoint(batch.position, batch.seq, batch.commit_us)
            reach("after_checkpoint")
            if batch.seq > self._notified:
                self.conn.execute(QUERIES["notify"], {"source": self.registry.name, "seq": batch.seq})
            whole = self.registry.settle(self.conn, batch.position)
            reach("before_commit")
            self.conn.execute("COMMIT")
        self._notified = batch.seq
        return whole

    def _roll_back(self) -> None:
        self._parts = 0
        self.writer.forget()
        if not self.conn.closed:
            with wrap_errors():
                self.conn.rollback()

    def _settled(self, whole: Sequence[MirrorTable]) -> None:
        for table in whole:
            table.state, table.reason, table.consistent_from = "Synced", None, None
            log.info("table state", table=table.name, state="Synced")
        self.registry.written()

    def save_position(self, position: Position, seq: int, commit_us: int | None) -> None:
        """Commit a position that no rows belong to, and the states that changed."""
        # The lock is held until the states count as written: one that the stream's thread sets meanwhile must not.
        with self.registry.lock:
            with wrap_errors(position=position), self.conn.transaction():
                self.registry.write(self.conn, position)
                self._write_checkpoint(position, seq, commit_us)
                whole = self.registry.settle(self.conn, position)
                reach("save")
            self._settled(whole)

    def change_mirrors(
        self, position: Position, seq: int, commit_us: int, change: Callable[[int], int], tables: Sequence[MirrorTable], *,
        lock: bool = True,
    ) -> int:  # fmt: skip
        """Commit what `change` does to mirrors together with the position and the tables' states.

        Args:
            change: is given the last _seq given out, and returns it as it is then.
            tables: whose mirrors are changed. lock: they are altered, so nobody else may read or write them meanwhile.

        Raises:
            MirrorLocked: somebody does.
        """
        with self.registry.lock:
            with wrap_errors(position=position), transaction_with_short_waits(self.conn, *tables, lock=lock):
                last = change(seq)
                wait_as_usual(self.conn)
                self.registry.write(self.conn, position)
                self._write_checkpoint(position, last, commit_us)
                if last > seq:
                    self.conn.execute(QUERIES["notify"], {"source": self.registry.name, "seq": last})
                whole = self.registry.settle(self.conn, position)
            self._settled(whole)
        return last

    def empty(self, table: MirrorTable, position: Position, seq: int, commit_us: int) -> int:
        """Commit a TRUNCATE: the keys are recorded as deleted, each with a _seq of its own; the last one given out."""
        with self.registry.lock:
            with wrap_errors(table=table.name), self.conn.transaction():
                self.registry.write(self.conn, position)
                self.writer.begin()
                seq = self.writer.empty(table, position, seq, commit_us)
                self.writer.write_counts()
                self._write_checkpoint(position, seq, commit_us)
                reach("truncate")
                self.conn.execute(QUERIES["notify"], {"source": self.registry.name, "seq": seq})
            self.registry.written()
        return seq

    def _write_checkpoint(self, position: Position, seq: int, commit_us: int | None) -> None:
        self.conn.execute(
            QUERIES["write_checkpoint"],
            {
                "source": self.registry.name, "identity": self.identity, "file": position.file, "pos": position.pos, "seq": seq,
                "gtid_set": None if position.gtids is None else str(position.gtids), "last_gtid": position.last,
                "committed_at": None if commit_us is None else instant(commit_us),
            },
        )  # fmt: skip

    def _set_refused_aside(self, work: Work, table: MirrorTable) -> bool:
        """Set aside the tuples that Postgres refuses by themselves; False where there are none."""
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
