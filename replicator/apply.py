"""Applies batches: the rows, the deleted keys, the tables' states and the checkpoint in one Postgres transaction.

Folds the changes of each key to its last image, deletes the keys that were there and copies the images straight in.
Owns every write to the mirror but the snapshot's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray
from psycopg import sql

from replicator import decode
from replicator.cascades import Cascades
from replicator.changes import Batch
from replicator.copied import leave_out_copied
from replicator.copy_binary import COPY_HEADER, COPY_TRAILER, copy_into, copy_statement, copy_tuples
from replicator.errors import RowProblem, TableProblem
from replicator.mirror import LIVE, QUERIES, MirrorTable, key_object
from replicator.multiset import delete_rows, make_stage, net, pack
from replicator.position import Position
from replicator.prepared import write_changes
from replicator.quarantine import ROW_REFUSALS, Poison, find_refused, set_aside, take_image, take_tuple
from replicator.schema import Registry
from replicator.triggers import cut_runs, find_triggers
from replicator.values import finish_rows
from warehouse.db import Connection, wrap_errors
from warehouse.errors import TryLater

log = structlog.get_logger()

Rows = NDArray[np.int64]

# Rows that come back, with another image, need no record; so the usual batch of updates builds none.
_DELETE_RETURNING_ROWS = sql.SQL("DELETE FROM {mirror} m USING {stage} s WHERE {same} AND s._seq IS NULL")
_DELETE_GONE_ROWS = sql.SQL(
    "WITH gone AS (DELETE FROM {mirror} m USING {stage} s WHERE {same} AND s._seq IS NOT NULL"
    " RETURNING {keys} AS key, s._seq, s._committed_at)"
    " INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
    " SELECT {source}, {table}, key, _seq, _committed_at FROM gone"
)


# What Postgres answers to rows that it cannot hold, and to a mirror that is not as it was left.
REFUSALS = (
    psycopg.errors.IntegrityError,
    psycopg.errors.DataError,
    psycopg.errors.NotSupportedError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.TooManyColumns,
)
_ALTERED = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.DatatypeMismatch)


class ReadAgain(TryLater):
    """The transaction at hand was rolled back after parts of it had been written; read it again from its start."""


class MirrorDiverged(TableProblem):
    """The mirror holds rows that it cannot hold if every change was applied."""


@dataclass
class _Work:
    """A batch on its way: its changes with the hard rows filled in, which table each belongs to, which have a _raw.

    triggers: (t,) indexes of the changes that cascade without a trace in the binlog. derived: how many changes these made.
    poison: what cannot be applied, by its index; aside: which of it is in the quarantine already.
    """

    batch: Batch
    changes: NDArray[np.void]
    out: NDArray[np.uint8]
    raw: NDArray[np.bool_]
    tables: NDArray[np.int64]
    triggers: Rows
    current: MirrorTable | None = None
    derived: int = 0
    poison: dict[int, Poison] = field(default_factory=dict)
    aside: set[int] = field(default_factory=set)


class Applier:
    """Writes to the warehouse for one source.

    Args:
        conn: the connection that also holds the source's lock, so that a writer without the lock cannot commit.
        registry: the tables.
        identity: the source server's identity, kept in the checkpoint.
    """

    def __init__(self, conn: Connection, registry: Registry, identity: str) -> None:
        self.conn, self.registry, self.identity = conn, registry, identity
        self._staged: dict[int, str] = {}
        self._counts: list[dict[str, object]] = []
        self._parts = 0
        self._is_cut = False
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
            tables = np.array(batch.plans.tables, np.int64)[batch.changes["plan"]]
            triggers = find_triggers(batch, tables, self.registry)
            if len(triggers):
                work = _Work(batch, batch.changes, batch.out, np.zeros(len(tables), np.bool_), tables, triggers)
            else:
                work = _Work(batch, batch.changes, batch.out, np.zeros(len(tables), np.bool_), tables, triggers)
                self._finish_hard_rows(work)
            done = False
            while not done:
                done = self._try(work)
            return batch.seq + work.derived

    def _try(self, work: _Work) -> bool:
        """Write a batch; False where a table had to be left out and all is to be done again."""
        is_part = self.is_open or not work.batch.whole
        is_row = False
        try:
            with wrap_errors(position=work.batch.position):
                if not self.is_open:
                    self.conn.execute("BEGIN")
                    self.registry.write(self.conn, work.batch.position)
                self._parts += 1
                self._write(work)
                if work.batch.whole:
                    # parts, and pieces between cascades, may have found more that is to be known with these rows
                    self.registry.write(self.conn, work.batch.position)
                    whole = self._finish(replace(work.batch, seq=work.batch.seq + work.derived))
                    self.conn.execute("COMMIT")
                    self._parts = 0
                    self._settled(whole)
            return True
        except (*REFUSALS, *_ALTERED) as error:
            problem: TableProblem = MirrorDiverged(f"a change does not fit the mirror: {_first_line(error)}")
            is_row = isinstance(error, ROW_REFUSALS)
        except TableProblem as error:
            problem = error
        except BaseException:
            self._roll_back()
            raise
        self._roll_back()
        if work.current is None:
            raise problem
        if is_row and not is_part and not len(work.triggers) and self._set_refused_aside(work, work.current):
            return False
        if isinstance(problem, MirrorDiverged):
            self.registry.require_resync(work.current, problem)
        else:
            self.registry.reject(work.current.number, problem)
        if is_part:
            raise ReadAgain(
                f"table {work.current.name} is left out of a transaction that is partly read", position=work.batch.position
            )
        return False

    def _write(self, work: _Work) -> None:
        self._counts.clear()
        work.aside.clear()
        self._is_cut = len(work.triggers) > 0
        if self._is_cut:
            self._write_in_order(work)
        else:
            self._write_span(work, 0, len(work.tables))
        work.current = None
        with self.conn.pipeline():
            for count in self._counts:
                self.conn.execute(QUERIES["count_changes"], count)

    def _write_span(self, work: _Work, start: int, end: int) -> None:
        """Write the changes from start to end, table by table."""
        span = work.tables[start:end]
        for number in np.unique(span):
            work.current = self.registry.by_number[int(number)]
            rows = self._current_rows(work, work.current, np.nonzero(span == number)[0] + start)
            if len(rows):
                self._apply_table(work.current, rows, work)

    def _current_rows(self, work: _Work, table: MirrorTable, rows: Rows) -> Rows:
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
                set_aside(self.conn, self.registry.name, table, work.batch, work.changes[i], work.poison[i], i)
            rows = rows[work.changes["op"][rows] > 0]
        return rows

    def _write_in_order(self, work: _Work) -> None:
        """Write a batch in pieces, cut around the changes that cascade, each followed by what it made of the children.

        The children's changes get a _seq of their own there, so what follows is numbered on from them.
        """
        changes, out = work.batch.changes.copy(), work.batch.out.copy()
        work.changes, work.derived, at = changes, 0, 0

        def write(start: int, end: int) -> None:
            decode.renumber(changes[start:end], out, work.derived)
            finished = self._finish_span(work, changes[start:end], out, start)
            work.out, work.raw[start:end] = finished
            self._write_span(work, start, end)

        for start, end in cut_runs(work.triggers, work.tables, changes):
            write(at, start)
            self._write_trigger(work, start, end, write)
            at = end
        write(at, len(changes))

    def _write_trigger(self, work: _Work, start: int, end: int, write: Callable[[int, int], None]) -> None:
        """Write one change of a parent, or several deletions in a row, and what they did to the children."""
        table = work.current = self.registry.by_number[int(work.tables[start])]
        rows = self._current_rows(work, table, np.arange(start, end))
        if not len(rows):
            write(start, end)
            return
        keys = work.batch.keys
        entries = self._fold(rows, work.changes, keys)
        is_deletion = bool(work.changes["op"][start] == decode.DELETE)
        old = self._read_rows(table, np.arange(len(entries)) if is_deletion else np.zeros(1, np.int64), entries, keys)
        write(start, end)
        if not is_deletion:
            new = self._read_rows(table, np.array([len(entries) - 1]), entries, keys)
            old = f'[{{"old": {old[1:-1]}, "new": {new[1:-1]}}}]'
        work.current = table
        last = work.changes[end - 1]
        seq, commit_us = int(last["seq"]), int(last["commit_us"])
        cascades = Cascades(self.conn, self.registry.name, self.registry.children, key_object)
        for each in cascades.follow(table, "delete" if is_deletion else "update", old, seq, _instant(commit_us)):
            work.derived += each.deleted + each.updated
            self._counts.append(
                self._count(
                    each.table, -each.deleted, 0, each.updated, each.deleted, 0, each.seq, commit_us, work.batch.position
                )
            )

    def _read_rows(self, table: MirrorTable, chosen: Rows, entries: NDArray[np.void], keys: NDArray[np.uint8]) -> str:
        """The mirror's rows with these keys, as a JSON array.

        Raises:
            MirrorDiverged: one is not there.
        """
        stage = self._stage(table)
        target = np.empty(int(entries["key_bytes"][chosen].sum()) + 64 * len(chosen), np.uint8)
        size = decode.stage_keys(chosen, entries, keys, len(table.key), target)
        copy_tuples(self.conn, copy_into(stage, [*table.key_names, "_seq", "_committed_at"]), target[:size].tobytes())
        same = sql.SQL(" AND ").join([sql.SQL("m.{0} = s.{0}").format(name) for name in table.key_identifiers])
        row: Any = self.conn.execute(
            sql.SQL("SELECT count(*), json_agg(to_jsonb(m.*))::text FROM {} m JOIN {} s ON {}").format(
                table.identifier, stage, same
            )
        ).fetchone()
        if row[0] != len(chosen):
            raise MirrorDiverged(f"{len(chosen) - row[0]} rows that a cascade begins with are not in the mirror")
        return str(row[1])

    def _finish(self, batch: Batch) -> list[MirrorTable]:
        """Write what goes with the rows."""
        write_changes(self.conn, self.registry.name, batch.xa, str(batch.position))
        with self.conn.pipeline():
            self._write_checkpoint(batch.position, batch.seq, batch.commit_us)
            if batch.seq > self._notified:
                self.conn.execute(QUERIES["notify"], {"source": self.registry.name, "seq": batch.seq})
        self._notified = batch.seq
        return self.registry.settle(self.conn, batch.position)

    def _roll_back(self) -> None:
        self._parts = 0
        # A rollback also takes away the stages that were made inside.
        self._staged.clear()
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
            self._settled(whole)

    def empty(self, table: MirrorTable, position: Position, seq: int, commit_us: int) -> int:
        """Commit a TRUNCATE: the keys are recorded as deleted, each with a _seq of its own; the last one given out."""
        keys = key_object(table, sql.SQL("m."))
        with self.registry.lock:
            with wrap_errors(table=table.name), self.conn.transaction():
                self.registry.write(self.conn, position)
                row: Any = self.conn.execute(
                    sql.SQL(
                        "WITH gone AS (DELETE FROM {mirror} m RETURNING {keys} AS key), recorded AS ("
                        "INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
                        " SELECT {source}, {table}, key, {seq} + row_number() OVER (), {at} FROM gone)"
                        " SELECT count(*) FROM gone"
                    ).format(
                        mirror=table.identifier, keys=keys, source=sql.Literal(self.registry.name),
                        table=sql.Literal(table.name), seq=sql.Literal(seq), at=sql.Literal(_instant(commit_us)),
                    )
                ).fetchone()  # fmt: skip
                seq += int(row[0])
                counts = self._count(table, -int(row[0]), 0, 0, int(row[0]), 0, seq, commit_us, position)
                self.conn.execute(QUERIES["count_changes"], counts)
                self._write_checkpoint(position, seq, commit_us)
                self.conn.execute(QUERIES["notify"], {"source": self.registry.name, "seq": seq})
            self.registry.written()
        return seq

    # ------------------------------------------------------------------------------------------------ one table
    def _apply_table(self, table: MirrorTable, rows: Rows, work: _Work) -> None:
        changes, keys = work.changes, work.batch.keys
        operations = np.bincount(changes["op"][rows], minlength=4)
        raw_rows = int(work.raw[rows].sum())
        if not table.key:
            images, removed, raw_rows = self._apply_multiset(table, rows, work)
        elif not table.overlaps and operations[decode.INSERT] == len(rows):
            removed, images = 0, rows
        else:
            entries = self._fold(rows, changes, keys)
            touched = np.nonzero((entries["fresh"] == 0) | table.overlaps)[0]
            removed = self._delete_keys(table, touched, entries, keys) if len(touched) else 0
            images = np.sort(entries["last"][entries["last"] >= 0])
        if len(images) and table.key:
            self._copy(table, images, changes, work.out)
        inserted, updated, deleted = (int(operations[op]) for op in (decode.INSERT, decode.UPDATE, decode.DELETE))
        last = changes[rows[-1]]
        self._counts.append(
            self._count(table, len(images) - removed, inserted, updated, deleted, raw_rows, int(last["seq"]),
                        int(last["commit_us"]), work.batch.position)
        )  # fmt: skip

    def _apply_multiset(self, table: MirrorTable, rows: Rows, work: _Work) -> tuple[Rows, int, int]:
        """Write the changes of a table without a key; the rows that came, how many went, and how many came with a _raw.

        Raises:
            MirrorDiverged: a row to be deleted is not there.
        """
        columns = len(table.columns)
        images, deletions, groups = net(rows, work.changes, work.out, columns)
        if len(deletions):
            stage = self._stage(table)
            removed = delete_rows(self.conn, self.registry.name, table, stage, deletions, groups, work.changes, work.out)
            if removed != len(deletions):
                raise MirrorDiverged(f"{len(deletions) - removed} deleted rows are not in the mirror")
        if len(images):
            copy_tuples(self.conn, copy_statement(table), pack(images, work.changes, work.out, columns))
        came = rows[work.changes["op"][rows] == decode.INSERT]
        return images, len(deletions), int(work.raw[came].sum())

    def _fold(self, rows: Rows, changes: NDArray[np.void], keys: NDArray[np.uint8]) -> NDArray[np.void]:
        entries: NDArray[np.void] = np.zeros(2 * len(rows), decode.ENTRY)
        buckets = np.full(1 << (4 * len(rows) - 1).bit_length(), -1, np.int64)
        return entries[: decode.fold(rows, changes, keys, entries, buckets)]

    def _delete_keys(self, table: MirrorTable, touched: Rows, entries: NDArray[np.void], keys: NDArray[np.uint8]) -> int:
        """Delete the rows with these keys and record those that do not come back; how many rows were there."""
        stage = self._stage(table)
        target = np.empty(int(entries["key_bytes"][touched].sum()) + 64 * len(touched), np.uint8)
        size = decode.stage_keys(touched, entries, keys, len(table.key), target)
        names = sql.SQL(", ").join([*table.key_identifiers, sql.Identifier("_seq"), sql.Identifier("_committed_at")])
        with self.conn.cursor() as cursor:
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(stage, names)) as copy:
                copy.write(COPY_HEADER + target[:size].tobytes() + COPY_TRAILER)
            same = sql.SQL(" AND ").join([sql.SQL("m.{0} = s.{0}").format(name) for name in table.key_identifiers])
            # Literals, because a percent sign in a name would pass for a parameter.
            parts = {
                "mirror": table.identifier, "stage": stage, "same": same, "keys": key_object(table, sql.SQL("m.")),
                "source": sql.Literal(self.registry.name), "table": sql.Literal(table.name),
            }  # fmt: skip
            removed = 0
            gone = int((entries["last"][touched] < 0).sum())
            if gone < len(touched):
                removed += cursor.execute(_DELETE_RETURNING_ROWS.format(**parts)).rowcount
            if gone:
                removed += cursor.execute(_DELETE_GONE_ROWS.format(**parts)).rowcount
        return removed

    def _stage(self, table: MirrorTable) -> sql.Identifier:
        """An empty temporary table of the key's columns."""
        stage = sql.Identifier("pg_temp", f"stage_{table.number}")
        types = {column["mirror_name"]: column["mirror_type"] for column in table.columns}
        signature = f"{table.key_names} {[types[name] for name in table.key_names or types]}"
        if self._staged.get(table.number) != signature and not table.key:
            make_stage(self.conn, table, f"stage_{table.number}")
            self._staged[table.number] = signature
        elif self._staged.get(table.number) != signature:
            parts = [sql.SQL("m.{}").format(name) for name in table.key_identifiers]
            self.conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(stage))
            self.conn.execute(
                sql.SQL(
                    "CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {}, m._seq, m._committed_at FROM {} m WITH NO DATA"
                ).format(sql.Identifier(f"stage_{table.number}"), sql.SQL(", ").join(parts), table.identifier)
            )
            self._staged[table.number] = signature
        elif self._parts > 1 or self._is_cut:
            self.conn.execute(sql.SQL("TRUNCATE {}").format(stage))
        return stage

    def _copy(self, table: MirrorTable, images: Rows, changes: NDArray[np.void], out: NDArray[np.uint8]) -> None:
        """Copy the tuples of these changes straight into the mirror."""
        target = np.empty(int(changes["image_bytes"][images].sum()), np.uint8)
        decode.gather(images, changes, out, target)
        with self.conn.cursor() as cursor, cursor.copy(copy_statement(table)) as copy:
            copy.write(COPY_HEADER)
            copy.write(target.data)
            copy.write(COPY_TRAILER)

    def _count(
        self, table: MirrorTable, rows: int, inserted: int, updated: int, deleted: int, raw_rows: int, seq: int,
        commit_us: int, position: Position,
    ) -> dict[str, object]:  # fmt: skip
        """The parameters of the query count_changes."""
        return {
            "source": self.registry.name, "table": table.name, "rows": rows, "inserted": inserted, "updated": updated,
            "deleted": deleted, "raw_rows": raw_rows, "seq": seq, "committed_at": _instant(commit_us),
            "position": str(position),
        }  # fmt: skip

    def _write_checkpoint(self, position: Position, seq: int, commit_us: int | None) -> None:
        self.conn.execute(
            QUERIES["write_checkpoint"],
            {
                "source": self.registry.name, "identity": self.identity, "file": position.file, "pos": position.pos, "seq": seq,
                "gtid_set": None if position.gtids is None else str(position.gtids),
                "committed_at": None if commit_us is None else _instant(commit_us),
            },
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ hard rows
    def _finish_hard_rows(self, work: _Work) -> None:
        """Build the tuples that the kernel left, and set aside those that cannot be built."""
        if work.changes["hard_bytes"].any():
            # the kernel's own arrays stay as they are
            work.changes = work.changes.copy()
            work.out, work.raw = self._finish_span(work, work.changes, work.out, 0)

    def _finish_span(
        self, work: _Work, changes: NDArray[np.void], out: NDArray[np.uint8], start: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """As _finish_hard_rows for a piece of a batch, its changes modified in place; they are those from `start` on."""
        for i in [i for i in work.poison if start <= i < start + len(changes)]:
            del work.poison[i]

        def reject(i: int, problem: TableProblem) -> None:
            table = self.registry.by_number[int(work.tables[start + i])]
            if isinstance(problem, RowProblem) and table.key:
                work.poison[start + i] = take_image(changes, out, i, str(problem))
            else:
                self.registry.reject(table.number, problem)

        return finish_rows(work.batch.plans, changes, out, is_result=False, reject=reject)

    def _set_refused_aside(self, work: _Work, table: MirrorTable) -> bool:
        """Set aside the tuples that Postgres refuses by themselves; False where there are none."""
        changes = work.changes
        rows = np.nonzero((work.tables == table.number) & (changes["op"] > 0) & (changes["image_bytes"] > 0))[0]
        refused = find_refused(self.conn, table, rows, changes, work.out) if table.key else {}
        if refused and changes is work.batch.changes:
            work.changes = changes = changes.copy()
        for i, reason in refused.items():
            work.poison[i] = take_tuple(changes, work.out, i, reason)
        return bool(refused)


def _instant(commit_us: int) -> datetime:
    return datetime.fromtimestamp(commit_us / 1_000_000, UTC)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
