"""The mirror's side of a comparison: the rows of one table, and rows of the source as Postgres would write them.

Owns the statements and the temporary tables that keys and rows are staged in, on a connection of its own; writes nothing else.
The mirror is read with COPY BINARY, so its rows have the form in which the source's rows are sent there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from replicator.compare import COPY_HEADER_BYTES
from replicator.copy_binary import copy_into, copy_tuples
from replicator.errors import TableProblem
from replicator.mirror import MirrorTable, key_object
from replicator.quarantine import identify_tuple
from replicator.rows import Indexes, Rows
from replicator.source_side import Span
from warehouse.db import Connection, read_queries

QUERIES = read_queries("replicator", "verify.sql")
_BLOCK_BYTES = 8 << 20


class TableChanged(TableProblem):
    """A table was copied, altered or dropped while it was verified; nothing is said about it."""


class MirrorSide:
    """One table's mirror.

    Args:
        conn: to the warehouse, for this object alone.
        name: the source's name in the warehouse.
        table: its mirror.
        pause: called between blocks; raises where the work is to end.
        is_shared: both sides order the keys alike, so that a span of the source's holds the same keys here.

    Attributes:
        since: the mirror is what it is since then; None before the first look.
    """

    def __init__(self, conn: Connection, name: str, table: MirrorTable, pause: Callable[[], None], *, is_shared: bool) -> None:
        self.conn, self.name, self.table, self.is_shared, self._pause = conn, name, table, is_shared, pause
        self.since: datetime | None = None
        self._is_key = np.array([column["name"] in table.key for column in table.columns], np.uint8)
        self._excluded: list[str] = []
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        # A stage has no statistics; and what the planner takes for dear here would be compiled before it runs.
        for setting in ("enable_hashjoin", "enable_mergejoin", "enable_seqscan", "jit"):
            conn.execute(sql.SQL("SET {} = off").format(sql.Identifier(setting)))
        if table.key:
            self._make_stage()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction that sees the mirror at one moment.

        Raises:
            TableChanged: the table is not what it was when this object first looked.
        """
        with self.conn.transaction():
            self.check_table()
            yield

    def check_table(self) -> None:
        """See, in the transaction at hand, whether the table is Synced, and has been ever since the first look."""
        row = self.conn.execute(QUERIES["read_table"], {"source": self.name, "table": self.table.name}).fetchone()
        if row is None or row[0] != "Synced" or row[2] or not row[3]:
            raise TableChanged(f"{self.table.name} is {'gone' if row is None else row[0]}, so it cannot be compared now")
        if self.since not in (None, row[1]):
            raise TableChanged(f"{self.table.name} was copied or altered while it was compared")
        self.since, self._excluded = row[1], list(row[4])

    def read_span(self, span: Span, source: Rows) -> Rows:
        """The rows of a span; where the two sides may not order keys alike, those with the keys of these rows."""
        if not self.is_shared:
            self.stage(source.all_keys(0))
            return self._copy_out(
                sql.SQL("SELECT {} FROM pg_temp.verify_keys k JOIN {} m ON {}").format(
                    self._columns(), self.table.identifier, self._same()
                )
            )
        self.stage(span.low + span.high)
        key = sql.SQL(", ").join([sql.Identifier("m", name) for name in self.table.key_names])
        bound = sql.SQL(", ").join([sql.Identifier("k", name) for name in self.table.key_names])
        parts = [
            sql.SQL("({}) {} (SELECT {} FROM pg_temp.verify_keys k WHERE k._n = {})").format(
                key, sql.SQL(sign), bound, sql.Literal(number)
            )
            for given, sign, number in ((span.low, ">", 0), (span.high, "<=", 1))
            if given
        ]
        condition = sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(parts)) if parts else sql.SQL("")
        return self._copy_out(sql.SQL("SELECT {} FROM {} m{}").format(self._columns(), self.table.identifier, condition))

    def read_keys(self, first_block: int, end_block: int | None) -> Rows:
        """The keys of the mirror's rows that lie in these blocks of its file, to its end where end_block is None."""
        keys = sql.SQL(", ").join([sql.SQL("m.{}").format(name) for name in self.table.key_identifiers])
        condition = sql.SQL("m.ctid >= {}::tid").format(sql.Literal(f"({first_block},0)"))
        if end_block is not None:
            condition += sql.SQL(" AND m.ctid < {}::tid").format(sql.Literal(f"({end_block},0)"))
        query = sql.SQL("SELECT {}, m._seq, NULL::timestamptz, NULL::jsonb FROM {} m WHERE {}")
        is_key = np.ones(len(self.table.key), np.uint8)
        return self._copy_out(query.format(keys, self.table.identifier, condition), is_key)

    def count_blocks(self) -> int:
        """How many blocks the mirror's file has."""
        row: Any = self.conn.execute(
            sql.SQL("SELECT pg_relation_size({}::regclass) / current_setting('block_size')::bigint").format(
                sql.Literal(self.table.identifier.as_string(self.conn))
            )
        ).fetchone()
        return int(row[0])

    def blocks(self) -> Iterator[Rows]:
        """All rows of the mirror, in blocks."""
        query = sql.SQL("SELECT {} FROM {} m").format(self._columns(), self.table.identifier)
        data, at = bytearray(), COPY_HEADER_BYTES
        with self.conn.cursor().copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(query)) as copy:
            for piece in copy:
                data += piece
                if len(data) > _BLOCK_BYTES:
                    yield Rows.parse(data, self._is_key, at)
                    data, at = bytearray(), 0
                    self._pause()
        yield Rows.parse(data, self._is_key, min(at, len(data)))

    def _copy_out(self, query: sql.Composable, is_key: NDArray[np.uint8] | None = None) -> Rows:
        data = bytearray()
        with self.conn.cursor().copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(query)) as copy:
            for piece in copy:
                data += piece
        return Rows.parse(data, self._is_key if is_key is None else is_key, COPY_HEADER_BYTES)

    def _columns(self) -> sql.Composed:
        """A row of the mirror, laid out as the source's rows come."""
        names = [sql.SQL("m.{}").format(sql.Identifier(column["mirror_name"])) for column in self.table.columns]
        own: dict[str, sql.Composable] = {name: sql.SQL(f"m.{name}") for name in self.table.own_columns}
        own["_committed_at"] = sql.SQL("NULL::timestamptz")
        if self.table.kept:
            # what the source has no longer cannot differ from it
            kept = sql.Literal(list(self.table.kept))
            own["_raw"] = sql.SQL("nullif(m._raw - {}::text[], '{{}}'::jsonb)").format(kept)
        return sql.SQL(", ").join([*names, *own.values()])

    # ------------------------------------------------------------------------------------------------ keys
    def _make_stage(self) -> None:
        keys = sql.SQL(", ").join(self.table.key_identifiers)
        self.conn.execute("DROP TABLE IF EXISTS pg_temp.verify_keys")
        self.conn.execute(
            sql.SQL(
                "CREATE TEMP TABLE verify_keys ON COMMIT DELETE ROWS AS SELECT {}, 0::bigint AS _n FROM {} WITH NO DATA"
            ).format(keys, self.table.identifier)
        )

    def stage(self, keys: bytes) -> None:
        """Put keys, as Rows.keys gives them, into pg_temp.verify_keys."""
        copy_tuples(self.conn, copy_into(sql.Identifier("pg_temp", "verify_keys"), [*self.table.key_names, "_n"]), keys)

    def _same(self) -> sql.Composed:
        return sql.SQL(" AND ").join([sql.SQL("m.{0} = k.{0}").format(name) for name in self.table.key_identifiers])

    def find_deleted(self, rows: Rows, chosen: Indexes, seq: int) -> Indexes:
        """Those of some rows whose keys were recorded as deleted behind a _seq."""
        if not len(chosen):
            return chosen
        with self.conn.transaction():
            self.stage(rows.keys(chosen, chosen))
            found = self.conn.execute(
                sql.SQL(
                    "SELECT k._n FROM pg_temp.verify_keys k WHERE {key} IN (SELECT d.key FROM warehouse.deleted_rows d"
                    " WHERE d.source = {source} AND d.table_name = {table} AND d.seq > {seq})"
                ).format(
                    key=key_object(self.table, sql.SQL("k.")), source=sql.Literal(self.name),
                    table=sql.Literal(self.table.name), seq=sql.Literal(seq),
                )
            ).fetchall()  # fmt: skip
        return np.array([number for (number,) in found], np.int64)

    def read_held(self) -> Counter[bytes]:
        """The identities of the rows that are in the quarantine, in the transaction at hand."""
        facts = {"source": self.name, "table": self.table.name}
        return Counter(bytes(identity) for (identity,) in self.conn.execute(QUERIES["read_held"], facts))

    def are_held(self, rows: Rows, chosen: Indexes, held: Counter[bytes]) -> NDArray[np.bool_]:
        """(n,) bool: which of some rows of the source are in the quarantine, so many of each as are there."""
        found = np.zeros(len(chosen), np.bool_)
        left = held.copy()
        for n, i in enumerate(chosen.tolist() if held else ()):
            identity = identify_tuple(self.table, rows.tuples(np.array([i])))
            found[n] = left[identity] > 0
            left[identity] -= 1
        return found

    # ------------------------------------------------------------------------------------------------ the same form
    def as_stored(self, tuples: bytes) -> Rows:
        """Rows of the source as the mirror would give them: Postgres prints jsonb in a form of its own."""
        with self.conn.transaction():
            stage = self.stage_rows(tuples)
            self._leave_out(stage)
            return self._copy_out(sql.SQL("SELECT {} FROM {} m").format(self._columns(), stage))

    def _leave_out(self, stage: sql.Identifier) -> None:
        """Take away what the mirror's own trigger takes away of each row."""
        names = {column["name"]: column["mirror_name"] for column in self.table.columns}
        columns = [names[name] for name in self._excluded if name in names]
        if columns:
            nulls = [sql.SQL("{} = NULL").format(sql.Identifier(name)) for name in columns]
            raw = sql.SQL("_raw = nullif(_raw - {}::text[], '{{}}'::jsonb)").format(sql.Literal(columns))
            self.conn.execute(sql.SQL("UPDATE {} SET {}").format(stage, sql.SQL(", ").join([*nulls, raw])))

    def stage_rows(self, tuples: bytes) -> sql.Identifier:
        """Put rows into a temporary table like the mirror, for the transaction at hand; its name."""
        stage = sql.Identifier("pg_temp", "verify_rows")
        self.conn.execute("DROP TABLE IF EXISTS pg_temp.verify_rows")
        self.conn.execute(sql.SQL("CREATE TEMP TABLE verify_rows (LIKE {}) ON COMMIT DROP").format(self.table.identifier))
        names = [*(column["mirror_name"] for column in self.table.columns), *self.table.own_columns]
        copy_tuples(self.conn, copy_into(stage, names), tuples)
        return stage
