"""Writes one table's changes: folds them to the last image of each key, deletes the keys that were there, copies the images in.

Owns the statements on a mirror and the stages that deletions pass through. Transactions are the applier's: everything here
runs inside one that is open.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from replicator import decode
from replicator.copy_binary import COPY_HEADER, COPY_TRAILER, copy_into, copy_statement, copy_tuples
from replicator.errors import TableProblem
from replicator.history import History, follow_keys
from replicator.mirror import QUERIES, MirrorTable, key_object
from replicator.multiset import delete_rows, make_stage, net, pack
from replicator.position import Position
from replicator.quarantine import end_all, end_one, end_superseded, identify, identify_tuple
from replicator.work import Work
from warehouse.db import Connection

Rows = NDArray[np.int64]

# Rows that come back, with another image, need no record; so the usual batch of updates builds none.
_DELETE_RETURNING_ROWS = sql.SQL("DELETE FROM {mirror} m USING {stage} s WHERE {same} AND s._seq IS NULL")
_DELETE_GONE_ROWS = sql.SQL(
    "WITH gone AS (DELETE FROM {mirror} m USING {stage} s WHERE {same} AND s._seq IS NOT NULL"
    " RETURNING {keys} AS key, s._seq, s._committed_at)"
    " INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
    " SELECT {source}, {table}, key, _seq, _committed_at FROM gone"
)


class MirrorDiverged(TableProblem):
    """The mirror holds rows that it cannot hold if every change was applied."""


class MirrorWriter:
    """Writes to the mirrors of one source, inside the transaction at hand.

    Args:
        conn: with a transaction open. source: the source's name.
    """

    def __init__(self, conn: Connection, source: str) -> None:
        self.conn, self.source = conn, source
        self.history = History(conn)
        self._staged: dict[int, str] = {}
        self._counts: list[dict[str, object]] = []
        self._used: set[int] = set()

    def begin(self) -> None:
        """A new transaction: stages are empty again."""
        self._used.clear()
        self._counts.clear()
        self.history.begin()

    def forget(self, counts: int = 0) -> None:
        """The transaction was rolled back, and with it the stages that were made inside.

        Args:
            counts: where it was only to a savepoint: what `counts` was then.
        """
        self._staged.clear()
        self.history.forget()
        self._used.clear()
        del self._counts[counts:]

    @property
    def counts(self) -> int:
        """How many notes for write_counts there are."""
        return len(self._counts)

    def write_counts(self) -> None:
        """Add what was written since the last time to the tables' counters."""
        for count in self._counts:
            self.conn.execute(QUERIES["count_changes"], count)
        self._counts.clear()

    def apply_table(self, table: MirrorTable, rows: Rows, work: Work) -> None:
        """Write these changes of a table; rows: (n,) int64, their indexes, in order.

        Raises:
            MirrorDiverged: a row that is to be deleted is not there.
        """
        changes, keys = work.changes, work.batch.keys
        operations = np.bincount(changes["op"][rows], minlength=4)
        raw_rows = int(work.raw[rows].sum())
        if not table.key:
            images, removed, raw_rows = self._apply_multiset(table, rows, work)
        elif not table.overlaps and operations[decode.INSERT] == len(rows):
            removed, images = 0, rows
        else:
            entries = self.fold(rows, changes, keys)
            if table.touched is not None:
                table.touched.add(entries, keys, int(changes["seq"][rows[-1]]))
            if table.held:
                self._end_superseded(table, entries, changes, keys)
            touched = np.nonzero((entries["fresh"] == 0) | table.overlaps)[0]
            moves = follow_keys(rows, changes, keys) if table.kept else None
            if moves:
                self.history.save_moved(table, moves)
            removed = self.delete_keys(table, touched, entries, keys, saves=moves is None) if len(touched) else 0
            images = np.sort(entries["last"][entries["last"] >= 0])
        if len(images) and table.key:
            self._copy(table, images, changes, work.out)
            if table.kept:
                self.history.put_back(table)
        inserted, updated, deleted = (int(operations[op]) for op in (decode.INSERT, decode.UPDATE, decode.DELETE))
        last = changes[rows[-1]]
        self.count(
            table, len(images) - removed, inserted, updated, deleted, raw_rows, int(last["seq"]), int(last["commit_us"]),
            work.batch.position,
        )  # fmt: skip

    def _apply_multiset(self, table: MirrorTable, rows: Rows, work: Work) -> tuple[Rows, int, int]:
        """Write the changes of a table without a key; the rows that came, how many went, and how many came with a _raw.

        Raises:
            MirrorDiverged: a row to be deleted is not there.
        """
        columns, removed = len(table.columns), 0
        images, deletions, groups = net(rows, work.changes, work.out, columns)
        if table.held and len(deletions):
            kept = np.array([not self._end_one(table, work, i) for i in deletions.tolist()], np.bool_)
            deletions, groups = deletions[kept], groups[kept]
        if len(deletions):
            stage = self.stage(table)
            removed = delete_rows(self.conn, self.source, table, stage, deletions, groups, work.changes, work.out)
            if removed != len(deletions) and table.owed is None:
                raise MirrorDiverged(f"{len(deletions) - removed} deleted rows are not in the mirror")
        if len(images):
            copy_tuples(self.conn, copy_statement(table), pack(images, work.changes, work.out, columns))
        came = rows[work.changes["op"][rows] == decode.INSERT]
        return images, removed, int(work.raw[came].sum())

    def _end_one(self, table: MirrorTable, work: Work, i: int) -> bool:
        """Whether the row that a deletion is about is one that was held, and is held no more."""
        at, size = int(work.changes["image"][i]), int(work.changes["image_bytes"][i])
        return end_one(self.conn, self.source, table, identify_tuple(table, work.out[at : at + size].tobytes()))

    def _end_superseded(
        self, table: MirrorTable, entries: NDArray[np.void], changes: NDArray[np.void], keys: NDArray[np.uint8]
    ) -> None:
        """What is held of these keys ends by what changed them since."""
        view, changed = keys.data, {}
        for entry in entries:
            at = int(entry["key"])
            identity = identify(view[at : at + int(entry["key_bytes"])])
            if identity in table.held:
                changed[identity] = int(changes["seq"][entry["last"]] if entry["last"] >= 0 else entry["seq"])
        end_superseded(self.conn, self.source, table, changed)

    def fold(self, rows: Rows, changes: NDArray[np.void], keys: NDArray[np.uint8]) -> NDArray[np.void]:
        """What these changes leave of each key: (n,) decode.ENTRY."""
        entries: NDArray[np.void] = np.zeros(2 * len(rows), decode.ENTRY)
        buckets = np.full(1 << (4 * len(rows) - 1).bit_length(), -1, np.int64)
        return entries[: decode.fold(rows, changes, keys, entries, buckets)]

    def delete_keys(
        self, table: MirrorTable, touched: Rows, entries: NDArray[np.void], keys: NDArray[np.uint8], *, saves: bool = True
    ) -> int:
        """Delete the rows with these keys and record those that do not come back; how many rows were there.

        Args:
            saves: what the others hold in kept columns is saved, to be put back once they are there again.
        """
        stage = self.stage(table)
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
                "source": sql.Literal(self.source), "table": sql.Literal(table.name),
            }  # fmt: skip
            if table.kept and saves:
                self.history.save(table, stage, sql.SQL("s._seq IS NULL"))
            removed = 0
            gone = int((entries["last"][touched] < 0).sum())
            if gone < len(touched):
                removed += cursor.execute(_DELETE_RETURNING_ROWS.format(**parts)).rowcount
            if gone:
                removed += cursor.execute(_DELETE_GONE_ROWS.format(**parts)).rowcount
        return removed

    def stage(self, table: MirrorTable) -> sql.Identifier:
        """An empty temporary table of the key's columns, of all columns where there is no key."""
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
        elif table.number in self._used:
            self.conn.execute(sql.SQL("TRUNCATE {}").format(stage))
        self._used.add(table.number)
        return stage

    def _copy(self, table: MirrorTable, images: Rows, changes: NDArray[np.void], out: NDArray[np.uint8]) -> None:
        """Copy the tuples of these changes straight into the mirror."""
        copy_tuples(self.conn, copy_statement(table), _join(images, changes, out))

    def count(
        self, table: MirrorTable, rows: int, inserted: int, updated: int, deleted: int, raw_rows: int, seq: int,
        commit_us: int, position: Position,
    ) -> None:  # fmt: skip
        """Note what was written, for write_counts."""
        self._counts.append({
            "source": self.source, "table": table.name, "rows": rows, "inserted": inserted, "updated": updated,
            "deleted": deleted, "raw_rows": raw_rows, "seq": seq, "committed_at": instant(commit_us),
            "position": str(position),
        })  # fmt: skip

    def read_rows(
        self, table: MirrorTable, chosen: Rows, entries: NDArray[np.void], keys: NDArray[np.uint8], *, by_key: bool
    ) -> str:
        """The mirror's rows with these keys, as a JSON array.

        Args:
            by_key: nothing but the key will be looked at, so that of a row in the quarantine that is enough.

        Raises:
            MirrorDiverged: one is not there.
        """
        stage = self.stage(table)
        target = np.empty(int(entries["key_bytes"][chosen].sum()) + 64 * len(chosen), np.uint8)
        size = decode.stage_keys(chosen, entries, keys, len(table.key), target)
        copy_tuples(self.conn, copy_into(stage, [*table.key_names, "_seq", "_committed_at"]), target[:size].tobytes())
        same = sql.SQL(" AND ").join([sql.SQL("m.{0} = s.{0}").format(name) for name in table.key_identifiers])
        row: Any = self.conn.execute(
            sql.SQL("SELECT count(*), json_agg(to_jsonb(m.*))::text FROM {} m JOIN {} s ON {}").format(
                table.identifier, stage, same
            )
        ).fetchone()
        if row[0] != len(chosen) and by_key and table.held:
            row = self._read_keys(table, stage, same, row[0] + self._count_held(table, chosen, entries, keys))
        if row[0] != len(chosen):
            raise MirrorDiverged(f"{len(chosen) - row[0]} rows that a cascade begins with are not in the mirror")
        return str(row[1])

    def _count_held(self, table: MirrorTable, chosen: Rows, entries: NDArray[np.void], keys: NDArray[np.uint8]) -> int:
        found = 0
        for i in chosen.tolist():
            at = int(entries["key"][i])
            found += identify(keys.data[at : at + int(entries["key_bytes"][i])]) in table.held
        return found

    def _read_keys(self, table: MirrorTable, stage: sql.Identifier, same: sql.Composed, found: int) -> Any:
        """The staged keys as rows, or the mirror's rows where they are there; and how many were found."""
        row: Any = self.conn.execute(
            sql.SQL("SELECT json_agg(coalesce(to_jsonb(m.*), to_jsonb(s.*)))::text FROM {} s LEFT JOIN {} m ON {}").format(
                stage, table.identifier, same
            )
        ).fetchone()
        return found, row[0]

    def empty(self, table: MirrorTable, position: Position, seq: int, commit_us: int) -> int:
        """Empty a mirror and record its keys as deleted, each with a _seq of its own; the last one given out."""
        keys = key_object(table, sql.SQL("m."))
        row: Any = self.conn.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM {mirror} m RETURNING {keys} AS key), recorded AS ("
                "INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
                " SELECT {source}, {table}, key, {seq} + row_number() OVER (), {at} FROM gone)"
                " SELECT count(*) FROM gone"
            ).format(
                mirror=table.identifier, keys=keys, source=sql.Literal(self.source), table=sql.Literal(table.name),
                seq=sql.Literal(seq), at=sql.Literal(instant(commit_us)),
            )
        ).fetchone()  # fmt: skip
        gone = int(row[0])
        end_all(self.conn, self.source, table)
        self.count(table, -gone, 0, 0, gone, 0, seq + gone, commit_us, position)
        return seq + gone


def _join(rows: Rows, changes: NDArray[np.void], out: NDArray[np.uint8]) -> memoryview:
    """The tuples of these changes one behind the other: where the kernel wrote them so, which is usual, without a copy."""
    starts, sizes = changes["image"][rows], changes["image_bytes"][rows]
    if np.array_equal(starts[1:], starts[:-1] + sizes[:-1]):
        return out[int(starts[0]) : int(starts[-1]) + int(sizes[-1])].data
    target = np.empty(int(sizes.sum()), np.uint8)
    decode.gather(rows, changes, out, target)
    return target.data


def instant(commit_us: int) -> datetime:
    """A commit time, microseconds since 1970, as Postgres takes it."""
    return datetime.fromtimestamp(commit_us / 1_000_000, UTC)
