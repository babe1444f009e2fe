"""Applies batches: the rows, the deleted keys, the tables' states and the checkpoint in one Postgres transaction.

Folds the changes of each key to its last image, deletes the keys that were there and copies the images straight in.
Owns every write to the mirror but the snapshot's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray
from psycopg import sql

from replicator import decode
from replicator.changes import Batch
from replicator.errors import TableProblem
from replicator.position import Position
from replicator.schema import QUERIES, MirrorTable, Registry, key_object
from replicator.values import finish_rows
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
COPY_TRAILER = struct.pack("!h", -1)

Rows = NDArray[np.int64]


# What Postgres answers to rows that it cannot hold, and to a mirror that is not as it was left.
REFUSALS = (
    psycopg.errors.IntegrityError,
    psycopg.errors.DataError,
    psycopg.errors.NotSupportedError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.TooManyColumns,
)
_ALTERED = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.DatatypeMismatch)


class MirrorDiverged(TableProblem):
    """The mirror holds rows that it cannot hold if every change was applied."""


class Applier:
    """Writes to the warehouse for one source.

    Args:
        conn: the connection that also holds the source's lock, so that a writer without the lock cannot commit.
        registry: the tables.
        identity: the source server's identity, kept in the checkpoint.
    """

    def __init__(self, conn: Connection, registry: Registry, identity: str) -> None:
        self.conn, self.registry, self.identity = conn, registry, identity
        self._staged: set[str] = set()

    def apply(self, batch: Batch) -> None:
        """Commit a batch.

        A table whose rows cannot be written goes into a state that says so, and the batch is committed without it.

        Raises:
            TryLater: the warehouse is down, busy or full; nothing of the batch is committed.
        """
        out, changes, raw = self._finish_hard_rows(batch)
        tables = np.array(batch.plans.tables, np.int64)[changes["plan"]]
        while True:
            current: MirrorTable | None = None
            try:
                with wrap_errors(position=batch.position), self.conn.transaction():
                    self.registry.write(self.conn, batch.position)
                    for number in np.unique(tables):
                        current = self.registry.by_number[int(number)]
                        rows: Rows = np.nonzero(tables == number)[0]
                        if current.state in ("Snapshotting", "Synced") and not current.resync:
                            self._apply_table(current, rows, changes, out, batch, raw)
                    current = None
                    self._write_checkpoint(batch.position, batch.seq, batch.commit_us)
                    whole = self.registry.settle(self.conn, batch.position)
                    if len(changes):
                        self.conn.execute(QUERIES["notify"], {"source": self.registry.name, "seq": batch.seq})
                self._settled(whole)
                return
            except (*REFUSALS, *_ALTERED) as error:
                if current is None:
                    raise
                self.registry.require_resync(current, MirrorDiverged(f"a change does not fit the mirror: {_first_line(error)}"))
            except TableProblem as problem:
                if current is None:
                    raise
                self.registry.reject(current.number, problem)

    def _settled(self, whole: Sequence[MirrorTable]) -> None:
        for table in whole:
            table.state, table.reason, table.consistent_from = "Synced", None, None
            log.info("table state", table=table.name, state="Synced")
        self.registry.written()

    def save_position(self, position: Position, seq: int, commit_us: int | None) -> None:
        """Commit a position that no rows belong to, and the states that changed."""
        with wrap_errors(position=position), self.conn.transaction():
            self.registry.write(self.conn, position)
            self._write_checkpoint(position, seq, commit_us)
            whole = self.registry.settle(self.conn, position)
        self._settled(whole)

    def empty(self, table: MirrorTable, position: Position, seq: int, commit_us: int) -> int:
        """Commit a TRUNCATE: the keys are recorded as deleted, each with a _seq of its own; the last one given out."""
        keys = key_object(table, sql.SQL("m."))
        with wrap_errors(table=table.name), self.conn.transaction():
            self.registry.write(self.conn, position)
            row: Any = self.conn.execute(
                sql.SQL(
                    "WITH gone AS (DELETE FROM {mirror} m RETURNING {keys} AS key), recorded AS ("
                    "INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
                    " SELECT {source}, {table}, key, {seq} + row_number() OVER (), {at} FROM gone)"
                    " SELECT count(*) FROM gone"
                ).format(
                    mirror=table.identifier, keys=keys, source=sql.Literal(self.registry.name), table=sql.Literal(table.name),
                    seq=sql.Literal(seq), at=sql.Literal(_instant(commit_us)),
                )
            ).fetchone()  # fmt: skip
            seq += int(row[0])
            self._count(table, -int(row[0]), 0, 0, int(row[0]), 0, seq, commit_us, position)
            self._write_checkpoint(position, seq, commit_us)
            self.conn.execute(QUERIES["notify"], {"source": self.registry.name, "seq": seq})
        self.registry.written()
        return seq

    # ------------------------------------------------------------------------------------------------ one table
    def _apply_table(
        self,
        table: MirrorTable,
        rows: Rows,
        changes: NDArray[np.void],
        out: NDArray[np.uint8],
        batch: Batch,
        raw: NDArray[np.bool_],
    ) -> None:
        operations = np.bincount(changes["op"][rows], minlength=4)
        if not table.overlaps and operations[decode.INSERT] == len(rows):
            removed, images = 0, rows
        else:
            entries = self._fold(rows, changes, batch.keys)
            touched = np.nonzero((entries["fresh"] == 0) | table.overlaps)[0]
            removed = self._delete_keys(table, touched, entries, batch.keys) if len(touched) else 0
            images = np.sort(entries["last"][entries["last"] >= 0])
        if len(images):
            self._copy(table, images, changes, out)
        self._count(
            table,
            len(images) - removed,
            int(operations[decode.INSERT]),
            int(operations[decode.UPDATE]),
            int(operations[decode.DELETE]),
            int(raw[rows].sum()),
            int(changes["seq"][rows[-1]]),
            int(changes["commit_us"][rows[-1]]),
            batch.position,
        )

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
            row: Any = cursor.execute(
                sql.SQL(
                    "WITH gone AS (DELETE FROM {mirror} m USING {stage} s WHERE {same}"
                    " RETURNING {keys} AS key, s._seq, s._committed_at), recorded AS ("
                    "INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
                    " SELECT {source}, {table}, key, _seq, _committed_at FROM gone WHERE _seq IS NOT NULL)"
                    " SELECT count(*) FROM gone"
                ).format(
                    mirror=table.identifier, stage=stage, same=same, keys=key_object(table, sql.SQL("m.")),
                    source=sql.Literal(self.registry.name), table=sql.Literal(table.name),
                )
            ).fetchone()  # fmt: skip
        return int(row[0])

    def _stage(self, table: MirrorTable) -> sql.Identifier:
        """A temporary table of the key's columns, empty at the start of each transaction."""
        stage = sql.Identifier("pg_temp", f"stage_{table.number}")
        types = {column["mirror_name"]: column["mirror_type"] for column in table.columns}
        signature = f"{table.number} {table.key} {types}"
        if signature not in self._staged:
            parts = [sql.SQL("m.{}").format(name) for name in table.key_identifiers]
            self.conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(stage))
            self.conn.execute(
                sql.SQL(
                    "CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {}, m._seq, m._committed_at FROM {} m WITH NO DATA"
                ).format(sql.Identifier(f"stage_{table.number}"), sql.SQL(", ").join(parts), table.identifier)
            )
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
    ) -> None:  # fmt: skip
        self.conn.execute(
            QUERIES["count_changes"],
            {
                "source": self.registry.name, "table": table.name, "rows": rows, "inserted": inserted, "updated": updated,
                "deleted": deleted, "raw_rows": raw_rows, "seq": seq, "committed_at": _instant(commit_us),
                "position": str(position),
            },
        )  # fmt: skip

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
    def _finish_hard_rows(self, batch: Batch) -> tuple[NDArray[np.uint8], NDArray[np.void], NDArray[np.bool_]]:
        """Build the tuples that the kernel left; the bytes, the changes pointing into them, and which rows have _raw."""
        changes = batch.changes
        if changes["hard_bytes"].any():
            # the kernel's own arrays stay as they are
            changes = changes.copy()

        def reject(i: int, problem: TableProblem) -> None:
            self.registry.reject(batch.plans.tables[int(changes["plan"][i])], problem)

        out, raw = finish_rows(batch.plans, changes, batch.out, is_result=False, reject=reject)
        return out, changes, raw


def copy_statement(table: MirrorTable) -> sql.Composed:
    """COPY into a mirror, columns named, because a mirror may also have columns that the source has no longer."""
    names = [sql.Identifier(column["mirror_name"]) for column in table.columns]
    own = [sql.Identifier("_seq"), sql.Identifier("_committed_at"), sql.Identifier("_raw")]
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table.identifier, sql.SQL(", ").join([*names, *own]))


def _instant(commit_us: int) -> datetime:
    return datetime.fromtimestamp(commit_us / 1_000_000, UTC)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
