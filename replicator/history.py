"""Columns that the source has no longer: what they hold stays in the mirror, with the row that it belonged to.

A row that is written again (decision 2) would have NULL in them. So before rows go that come back, what they hold in such
columns is put beside them, and from there into their new versions. Owns these statements; transactions are the caller's. A
table without such columns never comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from replicator import decode
from replicator.copy_binary import COPY_HEADER, COPY_TRAILER
from replicator.mirror import QUERIES, MirrorTable
from warehouse.db import Connection

Moves = list[tuple[bytes, bytes]]
"""Pairs of keys as COPY fields."""

_SAVE = sql.SQL("INSERT INTO {saved} SELECT {keys}, {values} FROM {mirror} m JOIN {stage} s ON {same} WHERE {anything}")
_ALL = sql.SQL("true")
_PUT_BACK = sql.SQL("UPDATE {mirror} m SET {assign} FROM {saved} h WHERE {same}")
# Rows without a key are told by what they hold in the columns that they had before and have now; of equal rows, the oldest.
_COPIES = sql.SQL(
    "SELECT m.ctid AS place, sha256(record_send(ROW({content}))) AS content,"
    " row_number() OVER (PARTITION BY sha256(record_send(ROW({content}))) ORDER BY m._seq, m.ctid) AS copy FROM {mirror} m"
)


def find_kept(conn: Connection, table: MirrorTable) -> tuple[str, ...]:
    """The mirror's columns that the source has no longer."""
    row = conn.execute(
        QUERIES["find_kept"], {"mirror": table.mirror, "known": [column["mirror_name"] for column in table.columns]}
    ).fetchone()
    return tuple(row[0]) if row is not None else ()


@dataclass(frozen=True)
class _Parts:
    """Pieces of SQL about one table's kept columns; the mirror's rows are called m there."""

    values: sql.Composable
    anything: sql.Composable
    assign: sql.Composable
    same: sql.Composable


def _parts(table: MirrorTable) -> _Parts:
    columns = [sql.Identifier(name) for name in table.kept]
    names = sql.SQL("{}::text[]").format(sql.Literal(list(table.kept)))
    raw = sql.SQL(
        "(SELECT jsonb_object_agg(each.key, each.value) FROM jsonb_each(m._raw) each WHERE each.key = ANY ({})) AS _raw"
    ).format(names)
    anything = [sql.SQL("m.{} IS NOT NULL").format(column) for column in columns]
    return _Parts(
        values=sql.SQL(", ").join([*(sql.SQL("m.{}").format(column) for column in columns), raw]),
        anything=sql.SQL(" OR ").join([*anything, sql.SQL("coalesce(m._raw ?| {}, false)").format(names)]),
        assign=sql.SQL(", ").join(
            [
                *(sql.SQL("{0} = h.{0}").format(column) for column in columns),
                sql.SQL("_raw = CASE WHEN h._raw IS NULL THEN m._raw ELSE coalesce(m._raw, '{}') || h._raw END"),
            ]
        ),
        same=sql.SQL(" AND ").join([sql.SQL("m.{0} = h.{0}").format(name) for name in table.key_identifiers]),
    )


class History:
    """What rows hold in kept columns while they are written again by key.

    Args:
        conn: with a transaction open whenever something is saved or put back.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._made: dict[int, str] = {}
        self._used: set[int] = set()
        self._waiting: set[int] = set()

    def begin(self) -> None:
        """A new transaction: what was saved is gone."""
        self._used.clear()
        self._waiting.clear()

    def forget(self) -> None:
        """The transaction was rolled back, and with it the tables that were made inside."""
        self._made.clear()
        self.begin()

    def save(self, table: MirrorTable, stage: sql.Composable, condition: sql.SQL = _ALL) -> None:
        """Save what rows hold that are about to go.

        Args:
            stage: a table of the keys (s), by their names in the mirror. condition: which of them.
        """
        self._make(table)
        same = sql.SQL(" AND ").join([sql.SQL("m.{0} = s.{0}").format(name) for name in table.key_identifiers])
        self._save(table, stage, sql.SQL("({}) AND ({})").format(same, condition))

    def save_moved(self, table: MirrorTable, moves: Moves) -> None:
        """Save what rows hold that come back, perhaps under another key; moves: as follow_keys gives them."""
        self._make(table)
        stage, keys = self._stage(table, "moves"), table.key_names
        names = sql.SQL(", ").join([*map(sql.Identifier, keys), *map(_old, range(len(keys)))])
        fields = (2 * len(keys)).to_bytes(2)
        with self._conn.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(stage, names)) as copy:
            copy.write(COPY_HEADER)
            copy.write(b"".join(fields + then + before for before, then in moves))
            copy.write(COPY_TRAILER)
        same = [sql.SQL("m.{} = s.{}").format(sql.Identifier(name), _old(i)) for i, name in enumerate(keys)]
        self._save(table, stage, sql.SQL(" AND ").join(same))

    def _save(self, table: MirrorTable, stage: sql.Composable, same: sql.Composable) -> None:
        parts = _parts(table)
        keys = sql.SQL(", ").join([sql.SQL("s.{}").format(name) for name in table.key_identifiers])
        self._conn.execute(
            _SAVE.format(
                saved=self._stage(table, "history"), keys=keys, values=parts.values, mirror=table.identifier, stage=stage,
                same=same, anything=parts.anything,
            )
        )  # fmt: skip

    def put_back(self, table: MirrorTable) -> None:
        """Give the rows what was saved of them; those that did not come back have lost it."""
        if table.number not in self._waiting:
            return
        self._waiting.remove(table.number)
        parts = _parts(table)
        self._conn.execute(
            _PUT_BACK.format(mirror=table.identifier, assign=parts.assign, saved=self._stage(table, "history"), same=parts.same)
        )

    @staticmethod
    def _stage(table: MirrorTable, what: str) -> sql.Identifier:
        return sql.Identifier("pg_temp", f"{what}_{table.number}")

    def _make(self, table: MirrorTable) -> None:
        """Empty temporary tables for what is saved, and for keys that move."""
        types = {column["mirror_name"]: column["mirror_type"] for column in table.columns}
        signature = f"{[(name, types[name]) for name in table.key_names]} {table.kept}"
        saved, moves = self._stage(table, "history"), self._stage(table, "moves")
        if self._made.get(table.number) != signature:
            keys = [sql.SQL("m.{}").format(name) for name in table.key_identifiers]
            olds = [sql.SQL("m.{} AS {}").format(name, _old(i)) for i, name in enumerate(table.key_identifiers)]
            for stage, columns in ((saved, [*keys, _parts(table).values]), (moves, [*keys, *olds])):
                self._conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(stage))
                self._conn.execute(
                    sql.SQL("CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} m WITH NO DATA").format(
                        stage, sql.SQL(", ").join(columns), table.identifier
                    )
                )
            self._made[table.number] = signature
        elif table.number in self._used:
            self._conn.execute(sql.SQL("TRUNCATE {}, {}").format(saved, moves))
        self._used.add(table.number)
        self._waiting.add(table.number)


def _old(number: int) -> sql.Identifier:
    return sql.Identifier(f"tailrace old {number}")


def follow_keys(rows: NDArray[np.int64], changes: NDArray[np.void], keys: NDArray[np.uint8]) -> Moves | None:
    """Under which keys the rows come back that these changes find in the mirror: the key before, and the one then.

    None where every row that comes back has the key that it had. What was deleted does not come back: a row that is inserted
    later under the same key is another one.

    Args:
        rows: (n,) int64, indexes of one table's changes, in order. changes: decode.CHANGE. keys: what they point into.
    """
    chosen = changes[rows]
    updates = chosen[chosen["op"] == decode.UPDATE]
    if not (chosen["op"] == decode.DELETE).any() and _have_same_keys(updates, keys):
        return None
    origins: dict[bytes, bytes | None] = {}
    for change in chosen:
        before = then = b""
        if change["op"] != decode.INSERT:
            before = keys[change["old_key"] : change["old_key"] + change["old_key_bytes"]].tobytes()
        if change["op"] != decode.DELETE:
            then = keys[change["key"] : change["key"] + change["key_bytes"]].tobytes()
        origin = origins.get(before, before) if change["op"] == decode.UPDATE else None
        if before:
            origins[before] = None
        if then:
            origins[then] = origin
    return [(origin, key) for key, origin in origins.items() if origin is not None]


def _have_same_keys(updates: NDArray[np.void], keys: NDArray[np.uint8]) -> bool:
    sizes = updates["key_bytes"].astype(np.int64)
    if (sizes != updates["old_key_bytes"]).any():
        return False
    inside = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return bool((keys[np.repeat(updates["key"], sizes) + inside] == keys[np.repeat(updates["old_key"], sizes) + inside]).all())


# ---------------------------------------------------------------------------------------------------- whole mirrors
def save_all(conn: Connection, table: MirrorTable, known: Sequence[str]) -> bool:
    """Save what all rows hold in kept columns, before a copy takes their place; False where that is nothing.

    Args:
        known: mirror names of the columns that a row without a key had before and has now; it is known again by these.
    """
    if not table.kept or (not table.key and not known):
        return False
    parts = _parts(table)
    conn.execute("DROP TABLE IF EXISTS pg_temp.history_of_all")
    if table.key:
        told_by: sql.Composable = sql.SQL(", ").join([sql.SQL("m.{}").format(name) for name in table.key_identifiers])
        rows: sql.Composable = table.identifier
    else:
        told_by = sql.SQL("m.content, m.copy")
        rows = sql.SQL("(SELECT n.*, c.content, c.copy FROM ({}) c JOIN {} n ON n.ctid = c.place)").format(
            _copies(table, known), table.identifier
        )
    made = conn.execute(
        sql.SQL("CREATE TEMP TABLE history_of_all ON COMMIT DROP AS SELECT {}, {} FROM {} m WHERE {}").format(
            told_by, parts.values, rows, parts.anything
        )
    )
    return made.rowcount > 0


def put_all_back(conn: Connection, table: MirrorTable, known: Sequence[str]) -> None:
    """Give the rows of a copy what save_all saved, where they are known again."""
    parts = _parts(table)
    saved = sql.Identifier("pg_temp", "history_of_all")
    if table.key:
        conn.execute(_PUT_BACK.format(mirror=table.identifier, assign=parts.assign, saved=saved, same=parts.same))
        return
    conn.execute(sql.SQL("CREATE INDEX ON {} (content, copy)").format(saved))
    columns = sql.SQL(", ").join([sql.SQL("{0} = h.{0}").format(sql.Identifier(name)) for name in table.kept])
    conn.execute(
        sql.SQL(
            "UPDATE {mirror} m SET {assign} FROM ({copies}) c JOIN {saved} h USING (content, copy) WHERE m.ctid = c.place"
        ).format(mirror=table.identifier, assign=columns, copies=_copies(table, known), saved=saved)
    )


def _copies(table: MirrorTable, known: Sequence[str]) -> sql.Composable:
    content = sql.SQL(", ").join([sql.SQL("m.{}").format(sql.Identifier(name)) for name in known])
    return _COPIES.format(content=content, mirror=table.identifier)


def set_rows_aside(conn: Connection, source: str, table: MirrorTable) -> None:
    """Keep whole rows in warehouse.kept_rows that hold something in kept columns, because no copy can know them again by a key.

    Args:
        source: its name in the warehouse. table: with the columns that it will have.
    """
    if not table.kept:
        return
    conn.execute(
        sql.SQL(
            "INSERT INTO warehouse.kept_rows (source, table_name, mirror, seq, columns, row)"
            " SELECT {source}, {table}, {mirror_name}, m._seq, {kept}::text[], to_jsonb(m.*) - '{{_row_hash}}'::text[]"
            " FROM {mirror} m WHERE {anything}"
        ).format(
            source=sql.Literal(source), table=sql.Literal(table.name), mirror_name=sql.Literal(table.mirror),
            kept=sql.Literal(list(table.kept)), mirror=table.identifier, anything=_parts(table).anything,
        )
    )  # fmt: skip
