"""Applies batches: the rows, the deleted keys, the tables' states and the checkpoint in one Postgres transaction.

Owns the transaction, and what is left out of it where Postgres refuses something. How the rows are written is
batch_writer.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import psycopg
import structlog
from psycopg import sql

from replicator.batch_writer import BatchWriter
from replicator.changes import Batch
from replicator.crash import reach
from replicator.errors import TableProblem
from replicator.locks import transaction_with_short_waits, wait_as_usual
from replicator.mirror import QUERIES, MirrorTable
from replicator.position import Position
from replicator.prepared import write_changes
from replicator.quarantine import ROW_REFUSALS
from replicator.schema import Registry
from replicator.triggers import find_triggers
from replicator.versions import pass_over_history
from replicator.work import Work
from replicator.write import MirrorDiverged, MirrorWriter, instant
from warehouse.db import Connection, wrap_errors
from warehouse.errors import TryLater

log = structlog.get_logger()

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
        self._batches = BatchWriter(self.writer, registry)
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
                self._batches.write(work)
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
        # What earlier parts wrote stays where single rows may be the cause.
        keeps_parts = is_row and is_later
        if keeps_parts:
            self._take_back_part(counts)
        else:
            self._roll_back()
        if is_row and self._batches.find_refused(work):
            return False
        if keeps_parts:
            self._roll_back()
        table = work.current
        if table is None:
            raise problem
        self._leave_out(table, problem)
        if is_part:
            raise ReadAgain(
                f"table {table.name} is left out of a transaction that is partly read", position=work.batch.position
            )
        return False

    def _leave_out(self, table: MirrorTable, problem: TableProblem) -> None:
        """Let a table's state say why its rows cannot be written, so that the batch goes on without it."""
        if isinstance(problem, MirrorDiverged):
            self.registry.require_resync(table, problem)
        else:
            self.registry.reject(table.number, problem)

    def _take_back_part(self, counts: int) -> None:
        """Undo the last part of a transaction; counts: what the writer's were before it."""
        self._parts -= 1
        with wrap_errors():
            self.conn.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
        self.writer.forget(counts)

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


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
