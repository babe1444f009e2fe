"""Foreign-key cascades that the source does not log: what they did to the children is derived from the parents' changes.

InnoDB carries out ON DELETE and ON UPDATE with CASCADE or SET NULL below the binlog: MySQL before 9.6 (or with
innodb_native_foreign_keys) and MariaDB log the parent's row alone. The parent's row as it was is taken from its mirror, so
the changes before it must be applied already, and those behind it not yet.
Owns the derived statements; the order of the changes and the transaction are the applier's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg import sql

from replicator.source import VERSIONED, Source
from replicator.typemap import Kind
from warehouse.db import Connection

if TYPE_CHECKING:
    from replicator.mirror import MirrorTable

# Whose equality is that of the bytes, or of the numbers, here and there. Texts are equal by their collation, labels by their
# number, and dates may be such as Postgres does not have.
_PLAIN = frozenset(
    {
        Kind.TINY, Kind.SHORT, Kind.INT24, Kind.LONG, Kind.LONGLONG, Kind.DECIMAL, Kind.BIT, Kind.YEAR, Kind.BYTES, Kind.UUID,
        Kind.INET,
    }
)  # fmt: skip
ACTIONS = frozenset({"CASCADE", "SET NULL"})


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key through which changes of the parent change the child.

    Attributes:
        child, parent: database.table. columns, referenced: source names, in the same order.
        on_delete, on_update: the rules as information_schema has them.
        is_plain: the child's changes can be derived; else the child is copied afresh after each.
    """

    child: str
    columns: tuple[str, ...]
    parent: str
    referenced: tuple[str, ...]
    on_delete: str
    on_update: str
    is_plain: bool

    def as_json(self) -> dict[str, Any]:
        """What warehouse.tables keeps."""
        return asdict(self) | {"columns": list(self.columns), "referenced": list(self.referenced)}


def read_foreign_key(kept: dict[str, Any]) -> ForeignKey:
    """What as_json gave."""
    return ForeignKey(**(kept | {"columns": tuple(kept["columns"]), "referenced": tuple(kept["referenced"])}))


def logs_cascades(source: Source) -> bool:
    """Whether the children's rows are logged: MySQL does it since 9.6 (worklog 11249) unless told otherwise."""
    version = tuple(int(part) for part in re.findall(r"\d+", source.version)[:2])
    if source.flavor != "mysql" or version < (9, 6):
        return False
    return source.variables().get("innodb_native_foreign_keys", "OFF").upper() not in ("ON", "1")


def find_foreign_keys(source: Source) -> list[ForeignKey]:
    """All foreign keys that cascade without a trace in the binlog, as they are now."""
    if logs_cascades(source):
        return []
    found: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for row in source.query(
        "SELECT k.CONSTRAINT_SCHEMA, k.CONSTRAINT_NAME, k.TABLE_SCHEMA, k.TABLE_NAME, k.COLUMN_NAME, k.REFERENCED_TABLE_SCHEMA,"
        " k.REFERENCED_TABLE_NAME, k.REFERENCED_COLUMN_NAME, r.DELETE_RULE, r.UPDATE_RULE"
        " FROM information_schema.REFERENTIAL_CONSTRAINTS r JOIN information_schema.KEY_COLUMN_USAGE k"
        " USING (CONSTRAINT_SCHEMA, CONSTRAINT_NAME, TABLE_NAME) WHERE k.REFERENCED_TABLE_NAME IS NOT NULL"
        " AND (r.DELETE_RULE IN ('CASCADE', 'SET NULL') OR r.UPDATE_RULE IN ('CASCADE', 'SET NULL'))"
        " ORDER BY 1, 2, 4, k.ORDINAL_POSITION"
    ):
        found.setdefault((f"{row[2]}.{row[3]}", str(row[1])), []).append(row)
    keys = []
    for (child, _), parts in sorted(found.items()):
        columns = tuple(str(part[4]) for part in parts)
        names = (f"{parts[0][5]}.{parts[0][6]}", tuple(str(part[7]) for part in parts))
        rules = (str(parts[0][8]), str(parts[0][9]))
        keys.append(ForeignKey(child, columns, *names, *rules, is_plain=_is_plain(source, child, columns)))
    return keys


def _is_plain(source: Source, child: str, columns: Sequence[str]) -> bool:
    found = source.describe(child)
    # the period of a versioned child changes with it, and only the source knows when that was
    if found is None or not found.key or found.table_type == VERSIONED:
        return False
    kinds = {column.name.lower(): column.kind for column in found.columns}
    if not all(kinds.get(name.lower()) in _PLAIN for name in columns):
        return False
    # what the server computes from a column that a cascade changes cannot be told here
    generated = source.query(
        "SELECT COUNT(*) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s"
        " AND GENERATION_EXPRESSION > ''",
        child.split(".", 1),
    )
    return not generated[0][0]


def find_family(keys: Iterable[ForeignKey], names: Collection[str]) -> set[str]:
    """These tables and all that they are tied to by cascading foreign keys, in either direction."""
    keys, family, before = list(keys), set(names), 0
    while len(family) != before:
        before = len(family)
        for key in keys:
            if key.child in family or key.parent in family:
                family |= {key.child, key.parent}
    return family


# ---------------------------------------------------------------------------------------------------- statements
# `olds` and `pairs` are rows of the parent as JSON, which Postgres turns into the mirror's own types again.
_DELETE_CHILDREN = sql.SQL(
    "WITH parents AS (SELECT DISTINCT {referenced} FROM jsonb_populate_recordset(NULL::{parent}, {rows}::jsonb) p),"
    " gone AS (DELETE FROM {child} c USING parents p WHERE {same} RETURNING to_jsonb(c.*) AS old, {key} AS key),"
    " numbered AS (SELECT old, key, {seq} + row_number() OVER () AS seq FROM gone),"
    " recorded AS (INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
    " SELECT {source}, {table}, key, seq, {at} FROM numbered)"
    " SELECT count(*), json_agg(old)::text FROM numbered"
)
_UPDATE_CHILDREN = sql.SQL(
    "WITH pairs AS (SELECT jsonb_populate_record(NULL::{parent}, value -> 'old') AS old,"
    " jsonb_populate_record(NULL::{parent}, value -> 'new') AS new FROM jsonb_array_elements({rows}::jsonb) pair (value)),"
    " picked AS (SELECT c.ctid AS place, to_jsonb(c.*) AS old, {old_key} AS key, p.new AS parent,"
    " {seq} + row_number() OVER () AS seq FROM {child} c JOIN pairs p ON {same}),"
    " changed AS (UPDATE {child} u SET {assign}, _seq = k.seq, _committed_at = {at} FROM picked k WHERE u.ctid = k.place"
    " RETURNING k.old, to_jsonb(u.*) AS new, k.key AS old_key, {new_key} AS new_key, k.seq),"
    " recorded AS (INSERT INTO warehouse.deleted_rows (source, table_name, key, seq, committed_at)"
    " SELECT {source}, {table}, old_key, seq, {at} FROM changed WHERE old_key <> new_key)"
    " SELECT count(*), json_agg(json_build_object('old', old, 'new', new))::text FROM changed"
)


@dataclass
class Derived:
    """What one derived statement did.

    Attributes:
        table: the child. deleted, updated: rows. seq: the last _seq given out.
    """

    table: MirrorTable
    deleted: int
    updated: int
    seq: int


class Cascades:
    """Derives the children's changes, within the caller's transaction.

    Args:
        source: its name in the warehouse.
        keys: the foreign keys of a parent whose children are to follow, each with the child.
        key_object: as mirror.key_object.
        enter: called with each child before its rows change.
    """

    def __init__(
        self,
        conn: Connection,
        source: str,
        keys: Callable[[str], Sequence[tuple[ForeignKey, MirrorTable]]],
        key_object: Callable[[MirrorTable, sql.SQL], sql.Composable],
        enter: Callable[[MirrorTable], None],
    ) -> None:
        self.conn, self.source, self._keys, self._key_object, self._enter = conn, source, keys, key_object, enter

    def follow(self, parent: MirrorTable, op: str, rows: str, seq: int, at: datetime) -> list[Derived]:
        """Carry out what a change of a parent does to its children, theirs, and so on.

        Args:
            op: "delete" or "update".
            rows: the parent's rows as a JSON array: as they were, or objects of old and new.
            seq: the last _seq given out. at: the commit time of the change.
        """
        done: list[Derived] = []
        waiting = [(parent, op, rows)]
        while waiting:
            parent, op, rows = waiting.pop(0)
            for key, child in self._keys(parent.name):
                rule = key.on_delete if op == "delete" else key.on_update
                if rule not in ACTIONS:
                    continue
                self._enter(child)
                deletes = op == "delete" and rule == "CASCADE"
                if deletes:
                    count, changed = self._delete(key, parent, child, rows, seq, at)
                else:
                    pairs = _as_pairs(rows) if op == "delete" else _changed_pairs(rows, _mirror_names(parent, key.referenced))
                    if not pairs:
                        continue
                    count, changed = self._update(key, parent, child, pairs, rule, seq, at)
                if count:
                    seq += count
                    done.append(Derived(child, count * deletes, count * (not deletes), seq))
                    waiting.append((child, "delete" if deletes else "update", changed))
        return done

    def _delete(
        self, key: ForeignKey, parent: MirrorTable, child: MirrorTable, rows: str, seq: int, at: datetime
    ) -> tuple[int, str]:
        referenced = [sql.Identifier(name) for name in _mirror_names(parent, key.referenced)]
        columns = [sql.Identifier(name) for name in _mirror_names(child, key.columns)]
        same = [sql.SQL("c.{} = p.{}").format(mine, theirs) for mine, theirs in zip(columns, referenced, strict=True)]
        return self._run(
            _DELETE_CHILDREN, parent, child, rows, seq, at,
            referenced=sql.SQL(", ").join(sql.SQL("p.{}").format(name) for name in referenced),
            same=sql.SQL(" AND ").join(same), key=self._key_object(child, sql.SQL("c.")),
        )  # fmt: skip

    def _update(
        self, key: ForeignKey, parent: MirrorTable, child: MirrorTable, pairs: str, rule: str, seq: int, at: datetime
    ) -> tuple[int, str]:
        referenced = [sql.Identifier(name) for name in _mirror_names(parent, key.referenced)]
        columns = [sql.Identifier(name) for name in _mirror_names(child, key.columns)]
        both = list(zip(columns, referenced, strict=True))
        value = "{} = NULL" if rule == "SET NULL" else "{} = (k.parent).{}"
        return self._run(
            _UPDATE_CHILDREN, parent, child, pairs, seq, at,
            same=sql.SQL(" AND ").join(sql.SQL("c.{} = (p.old).{}").format(mine, theirs) for mine, theirs in both),
            assign=sql.SQL(", ").join(sql.SQL(value).format(mine, theirs) for mine, theirs in both),
            old_key=self._key_object(child, sql.SQL("c.")), new_key=self._key_object(child, sql.SQL("u.")),
        )  # fmt: skip

    def _run(
        self, statement: sql.SQL, parent: MirrorTable, child: MirrorTable, rows: str, seq: int, at: datetime,
        **parts: sql.Composable,
    ) -> tuple[int, str]:  # fmt: skip
        # Literals, because a percent sign in a name would pass for a parameter.
        query = statement.format(
            parent=parent.identifier, child=child.identifier, rows=sql.Literal(rows), seq=sql.Literal(seq), at=sql.Literal(at),
            source=sql.Literal(self.source), table=sql.Literal(child.name), **parts,
        )  # fmt: skip
        row: Any = self.conn.execute(query).fetchone()
        return int(row[0]), str(row[1])


def _mirror_names(table: MirrorTable, names: Sequence[str]) -> list[str]:
    """The mirror's names of source columns; a foreign key may write them in other capitals."""
    known = {column["name"].lower(): column["mirror_name"] for column in table.columns}
    return [known[name.lower()] for name in names]


def _as_pairs(rows: str) -> str:
    """Rows that went, for SET NULL, which needs no new ones."""
    return json.dumps([{"old": old, "new": {}} for old in _load(rows)])


def _changed_pairs(pairs: str, names: Sequence[str]) -> str:
    """The pairs in which one of these columns changed; empty where there is none."""
    changed = [pair for pair in _load(pairs) if any(pair["old"][name] != pair["new"][name] for name in names)]
    return json.dumps(changed) if changed else ""


def _load(rows: str) -> list[Any]:
    """Rows as Python values; fractions stay texts, which Postgres reads as well, so that no digit is lost."""
    loaded: list[Any] = json.loads(rows, parse_float=str)
    return loaded
