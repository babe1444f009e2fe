"""The mirror's tables: which source tables are wanted, what their mirrors look like, and each one's state.

Owns warehouse.tables and the mirror's DDL. Decides by the table map whether a table's rows still fit its mirror. Never
touches rows.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from psycopg import sql

from replicator.cascades import ForeignKey, find_family, find_foreign_keys, read_foreign_key
from replicator.charsets import Charsets
from replicator.errors import LostParent, MissingMetadata, SchemaChanged, TableProblem, UnsupportedColumn
from replicator.position import Flavor, Position, parse_position
from replicator.source import Source, SourceTable
from replicator.stream import Choice
from replicator.tablemap import TableMap
from replicator.typemap import OLD_LAYOUT, OWN_COLUMNS, OWN_SCHEMAS, ROW_HASH, Column, Kind, mirror_identifier, recognize
from warehouse.db import Connection, read_queries

log = structlog.get_logger()

State = Literal["Snapshotting", "Synced", "Failed", "ResyncRequired", "DroppedSource"]
QUERIES = read_queries("replicator")
LIVE: frozenset[State] = frozenset({"Snapshotting", "Synced"})


@dataclass
class MirrorTable:
    """A source table and its mirror.

    Attributes:
        number: by which changes name the table.
        name, mirror: database.table at the source, schema.table here.
        columns: source name, source type and mirror type of each column, in the source's order.
        key: source names of the columns that identify a row; empty where nothing does, and the mirror is a multiset.
        consistent_from: the position that must be applied before a snapshot is whole; None once it is. Until then
            changes may meet rows that are newer than they, so every change replaces its row.
        foreign_keys: those through which other tables' changes change this one without a trace in the binlog.
        exact: the snapshot was read as of consistent_from, so that changes up to there are left out instead.
        resync: a copy was asked for.
        first_plan: changes decoded by older plans were committed before the last copy began, which brought what they left.
            Applying some of them late, and not those that were passed over meanwhile, would bring back old values.
        dirty: differs from what warehouse.tables says.
    """

    number: int
    name: str
    mirror: str
    state: State
    columns: list[dict[str, str]]
    key: list[str]
    reason: str | None = None
    consistent_from: Position | None = None
    exact: bool = False
    foreign_keys: list[ForeignKey] = field(default_factory=list)
    resync: bool = False
    first_plan: int = 0
    dirty: bool = field(default=False, repr=False)

    @property
    def identifier(self) -> sql.Identifier:
        """The quoted name of the mirror."""
        return sql.Identifier(*self.mirror.split(".", 1))

    @property
    def key_identifiers(self) -> list[sql.Identifier]:
        """The quoted names of the key's columns in the mirror, in the source's column order."""
        return [sql.Identifier(name) for name in self.key_names]

    @property
    def key_names(self) -> list[str]:
        """The names of the key's columns in the mirror, in the source's column order."""
        return [column["mirror_name"] for column in self.columns if column["name"] in self.key]

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The mirror's columns that the source does not have, as COPY tuples end with them."""
        own = ("_seq", "_committed_at", "_raw")
        return own if self.key else (*own, ROW_HASH)

    @property
    def overlaps(self) -> bool:
        """True while changes may meet rows that a snapshot already brought."""
        return self.state == "Snapshotting" and not self.exact

    def is_like(self, columns: Sequence[Column]) -> bool:
        """Whether rows with these columns fit the mirror as it is."""
        return [(c["name"], c["mirror_type"]) for c in self.columns] == [(c.name, c.mirror_type) for c in columns]


def describe_columns(columns: Sequence[Column]) -> list[dict[str, str]]:
    """Columns as warehouse.tables keeps them."""
    return [
        {"name": c.name, "mirror_name": c.mirror_name, "source_type": c.source_type, "mirror_type": str(c.mirror_type)}
        for c in columns
    ]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """database.table with LIKE's wildcards, as a regular expression over the whole name."""
    parts = [".*" if char == "%" else "." if char == "_" else re.escape(char) for char in pattern]
    return re.compile("".join(parts), re.DOTALL)


class Registry:
    """All matching tables of one source; the stream asks it about every new table map.

    Args:
        source: to look up columns and keys.
        name: the source's name in the warehouse.
        patterns: which tables are wanted.
    """

    def __init__(self, source: Source, name: str, patterns: Sequence[str]) -> None:
        self.source, self.name = source, name
        self.flavor: Flavor = source.flavor
        self.charsets: Charsets = source.charsets()
        self._patterns = [compile_pattern(pattern) for pattern in patterns]
        # The stream's thread asks while the applier's writes.
        self.lock = threading.RLock()
        self.tables: dict[str, MirrorTable] = {}
        self.by_number: list[MirrorTable] = []

    def load(self, conn: Connection) -> None:
        """Read the states that earlier runs left, and find the tables that are new at the source."""
        for name, mirror, state, columns, key, consistent_from, exact, foreign_keys, resync in conn.execute(
            QUERIES["read_tables"], {"source": self.name}
        ):
            position = parse_position(consistent_from, self.flavor) if consistent_from else None
            table = self._enlist(name, mirror, state, columns, list(key))
            table.consistent_from, table.exact, table.resync = position, exact, resync
            table.foreign_keys = [read_foreign_key(kept) for kept in foreign_keys]
            # A snapshot that never came to its end begins again, and one that was still to be made is made.
            if (state == "Snapshotting" and position is None) or state == "ResyncRequired":
                table.resync = True
        for name in sorted(self.source.table_names()):
            if self.matches(name) and name not in self.tables:
                self.discover(name)
        self.read_foreign_keys()

    def matches(self, name: str) -> bool:
        """Whether a table's rows are wanted."""
        return any(pattern.fullmatch(name) for pattern in self._patterns)

    def _enlist(self, name: str, mirror: str, state: State, columns: list[dict[str, str]], key: list[str]) -> MirrorTable:
        table = MirrorTable(len(self.by_number), name, mirror, state, columns, key)
        self.tables[name] = table
        self.by_number.append(table)
        return table

    def discover(self, name: str, *, is_new: bool = False) -> MirrorTable | None:
        """Take in a table that the mirror does not have; None where the source has it no longer.

        Args:
            name: database.table.
            is_new: its creation was just seen in the stream, so that all of its rows are still to come.
        """
        found = self.source.describe(name)
        if found is None:
            return None
        database, _, table_name = name.partition(".")
        mirror = f"{mirror_identifier(database)}.{mirror_identifier(table_name)}"
        table = self.tables.get(name) or self._enlist(name, mirror, "Snapshotting", [], [])
        table.columns = describe_columns(found.columns)
        table.key = [found.columns[i].name for i in found.key]
        problem = self.find_problem(found)
        if problem is not None:
            self.reject(table.number, problem)
        elif is_new:
            table.consistent_from = None
            table.foreign_keys = [key for key in find_foreign_keys(self.source) if key.child == name]
            self.set_state(table, "Synced")
        else:
            table.resync = True
            self.set_state(table, "Snapshotting")
        log.info("table found", table=name, state=table.state, reason=table.reason)
        return table

    def find_problem(self, found: SourceTable) -> TableProblem | None:
        """Why a table cannot be mirrored; None where it can."""
        schema = mirror_identifier(found.name.partition(".")[0])
        if schema in OWN_SCHEMAS or schema.startswith("pg_"):
            return UnsupportedColumn(f"the database's name {schema} is that of a schema that is not for mirrors")
        if found.table_type != "BASE TABLE":
            # MariaDB logs the old versions of a system-versioned table's rows beside the new ones, under the same key.
            return UnsupportedColumn(f"it is no plain table, but: {found.table_type.lower()}")
        for column in found.columns:
            if column.mirror_type is None:
                return UnsupportedColumn(f"column {column.name} has the type {column.source_type}, which is not covered")
            if column.kind in (Kind.TEXT, Kind.ENUM, Kind.SET) and not self.charsets.covers(column.charset):
                return UnsupportedColumn(f"column {column.name} has the character set {column.charset}, which is not covered")
            if column.mirror_name in OWN_COLUMNS or (column.mirror_name == ROW_HASH and not found.key):
                return UnsupportedColumn(f"column {column.name} has a name that the mirror needs for itself")
        return None

    # ------------------------------------------------------------------------------------------------ cascades
    def read_foreign_keys(self, altered: Collection[str] = ()) -> None:
        """Ask the source for the keys that cascade silently; a table whose keys are others than before is copied afresh.

        Args:
            altered: tables whose keys may have been others for a while, though they are the same now.
        """
        found: dict[str, list[ForeignKey]] = {}
        for key in find_foreign_keys(self.source):
            found.setdefault(key.child, []).append(key)
        with self.lock:
            for table in self.by_number:
                keys = found.get(table.name, [])
                if keys == table.foreign_keys and not (keys and table.name in altered):
                    continue
                table.foreign_keys, table.dirty = keys, True
                if table.state in LIVE and not table.resync:
                    self.require_resync(table, SchemaChanged("its cascading foreign keys changed"))

    def children(self, parent: str) -> list[tuple[ForeignKey, MirrorTable]]:
        """The live tables that cascades from a parent reach at once, each with the key."""
        return [
            (key, table)
            for table in self.by_number
            if table.foreign_keys and table.state in LIVE and not table.resync
            for key in table.foreign_keys
            if key.parent == parent
        ]

    def families(self, wanted: Sequence[MirrorTable]) -> list[list[MirrorTable]]:
        """These tables with all that must be copied as of the same position, because cascades tie them together."""
        keys = [key for table in self.by_number for key in table.foreign_keys]
        groups: list[list[MirrorTable]] = []
        for table in wanted:
            if not any(table in group for group in groups):
                family = find_family(keys, [table.name])
                groups.append([each for each in self.by_number if each.name in family])
        return groups

    def lost_parent(self, table: MirrorTable) -> TableProblem | None:
        """Why a table that cascades change cannot be kept: one that they come from is not replicated."""
        for key in table.foreign_keys:
            parent = self.tables.get(key.parent)
            if parent is None or not (parent.resync or parent.state in LIVE):
                hint = f"Replicate {key.parent} too, then resync the table; or make the foreign key RESTRICT."
                what = f"rows change by foreign-key cascades from {key.parent}, which is not replicated"
                return LostParent(what, hint=hint)
        return None

    def reject_orphans(self) -> None:
        """Give up the tables that cascades change from tables that are given up."""
        before = -1
        while before != (before := sum(table.state in LIVE for table in self.by_number)):
            for table in self.by_number:
                problem = self.lost_parent(table) if table.state in LIVE else None
                if problem is not None:
                    self.reject(table.number, problem)

    # ------------------------------------------------------------------------------------------------ the stream's side
    def choose(self, table_map: TableMap) -> Choice | None:
        """What to do with the rows behind a table map; see stream.Chooser."""
        with self.lock:
            return self._choose(table_map)

    def _choose(self, table_map: TableMap) -> Choice | None:
        name = f"{table_map.database}.{table_map.table}"
        if not self.matches(name):
            return None
        table = self.tables.get(name) or self.discover(name)
        if table is None or table.state not in LIVE or table.resync:
            return None
        if table_map.columns is None:
            hint = "Set binlog_row_metadata = FULL, then resync the table."
            self.reject(table.number, MissingMetadata("a table map lacks the columns' names", hint=hint))
            return None
        columns = recognize(table_map.columns, {column["name"]: column["mirror_type"] for column in table.columns})
        types = {column["name"]: column["source_type"] for column in table.columns}
        old = [column.name for column in columns if column.kind in OLD_LAYOUT and "(" in types.get(column.name, "")]
        if old:
            hint = "They were written before ALTER TABLE ... FORCE; resync the table once the stream is past them."
            what = "rows with fractional digits in MariaDB's layout of version 5.3 cannot be read: column "
            self.reject(table.number, UnsupportedColumn(what + ", ".join(old), hint=hint))
            return None
        if not table.is_like(columns):
            self.require_resync(table, SchemaChanged(_difference(table, columns)))
            return None
        names = [column.name for column in columns]
        return Choice(table.number, tuple(names.index(column) for column in table.key), columns)

    def reject(self, table: int, problem: TableProblem) -> None:
        """A table cannot be replicated; the others go on."""
        with self.lock:
            self.set_state(self.by_number[table], "Failed", str(problem).replace("\n", " "))

    def distrust(self, problem: TableProblem) -> None:
        """Rows are missing, and of which tables is not known: copy all of them afresh."""
        for table in self.by_number:
            if table.state in LIVE:
                self.require_resync(table, problem)

    def require_resync(self, table: MirrorTable, problem: TableProblem) -> None:
        """A table must be copied afresh; its mirror stays as it is until then."""
        table.resync = True
        self.set_state(table, "ResyncRequired", problem.message)

    def set_state(self, table: MirrorTable, state: State, reason: str | None = None) -> None:
        """Change a state in memory; it is written with the next commit."""
        if (table.state, table.reason) != (state, reason):
            log.info("table state", table=table.name, state=state, reason=reason)
        table.state, table.reason, table.dirty = state, reason, True
        if state != "Snapshotting":
            table.consistent_from = None

    # ------------------------------------------------------------------------------------------------ the warehouse's side
    def write(self, conn: Connection, position: Position) -> None:
        """Write what changed, inside the caller's transaction; mirrors that are missing are created."""
        if any(table.dirty for table in self.by_number):
            self.reject_orphans()
        for table in self.by_number:
            if not table.dirty:
                continue
            if table.state in LIVE:
                create_mirror(conn, table)
            conn.execute(
                QUERIES["write_table"],
                {
                    "source": self.name, "table": table.name, "mirror": table.mirror, "state": table.state,
                    "reason": table.reason, "columns": json.dumps(table.columns), "key_columns": table.key,
                    "position": str(position), "foreign_keys": json.dumps([key.as_json() for key in table.foreign_keys]),
                    "consistent_from": None if table.consistent_from is None else str(table.consistent_from),
                },
            )  # fmt: skip

    def written(self) -> None:
        """The transaction of write() is committed."""
        for table in self.by_number:
            table.dirty = False

    def settle(self, conn: Connection, position: Position) -> list[MirrorTable]:
        """Mark the snapshots that are whole at this position, inside the caller's transaction."""
        whole = [t for t in self.by_number if t.consistent_from is not None and position.covers(t.consistent_from)]
        for table in whole:
            conn.execute(QUERIES["mark_consistent"], {"source": self.name, "table": table.name})
        return whole


def create_mirror(conn: Connection, table: MirrorTable) -> None:
    """Create a mirror with its index, or bring an existing one to the columns of the source; see fit_mirror."""
    schema, _, name = table.mirror.partition(".")
    columns = sql.SQL(", ").join(
        [sql.SQL("{} {}").format(sql.Identifier(c["mirror_name"]), sql.SQL(_type(c["mirror_type"]))) for c in table.columns]
    )
    conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    key: sql.Composable = sql.SQL("_row_hash bigint")
    if table.key:
        key = sql.SQL("PRIMARY KEY ({})").format(sql.SQL(", ").join(table.key_identifiers))
    conn.execute(
        sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, _seq bigint NOT NULL, _committed_at timestamptz, _raw jsonb, {})").format(
            table.identifier, columns, key
        )
    )
    indexes: list[tuple[str, sql.Composable]] = [("__seq", sql.SQL("_seq"))]
    if not table.key:
        # a mirror that had a key has no such column yet
        conn.execute(sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS _row_hash bigint").format(table.identifier))
        indexes.append(("__row_hash", sql.SQL("_row_hash, _seq")))
    names = {column["name"].lower(): column["mirror_name"] for column in table.columns}
    for foreign in table.foreign_keys:
        # where cascades look for the children
        parts = [names[column.lower()] for column in foreign.columns if column.lower() in names]
        indexes.append(("__fk_" + "_".join(parts), sql.SQL(", ").join(map(sql.Identifier, parts))))
    for ending, of in indexes:
        index = sql.Identifier(mirror_identifier(name + ending))
        conn.execute(sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} ({})").format(index, table.identifier, of))


def key_object(table: MirrorTable, prefix: sql.SQL) -> sql.Composable:
    """A row's key as a JSON object of mirror column names and values; prefix: the row's alias and a point.

    Without a key it is the whole row, with _raw where that is not NULL.
    Names may hold percent signs, so a statement with this in it takes no parameters: psycopg would read them.
    """
    if not table.key:
        own = sql.SQL("CASE WHEN {0}_raw IS NULL THEN '{{_seq,_committed_at,_row_hash,_raw}}'::text[]").format(prefix)
        return sql.SQL("to_jsonb({}*) - {} ELSE '{{_seq,_committed_at,_row_hash}}'::text[] END").format(prefix, own)
    pairs: list[sql.Composable] = []
    for name in table.key_names:
        pairs += [sql.Literal(name), sql.SQL("{}{}").format(prefix, sql.Identifier(name))]
    return sql.SQL("jsonb_build_object({})").format(sql.SQL(", ").join(pairs))


def mirror_key(conn: Connection, table: MirrorTable) -> dict[str, str]:
    """The columns of the mirror's primary key as it is, and their types."""
    rows = conn.execute(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_index i"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
        " WHERE i.indisprimary AND i.indrelid = format('%%I.%%I', %s::text, %s::text)::regclass",
        tuple(table.mirror.split(".", 1)),
    )
    return {str(name): str(type_) for name, type_ in rows}


def has_same_key(conn: Connection, table: MirrorTable) -> bool:
    """Whether the keys in the mirror can be compared with those of the source."""
    found = mirror_key(conn, table)
    wanted = {column["mirror_name"]: column["mirror_type"] for column in table.columns if column["name"] in table.key}
    return found.keys() == wanted.keys() and all(_same_type(conn, found[name], wanted[name]) for name in wanted)


def fit_mirror(conn: Connection, table: MirrorTable) -> None:
    """Change the columns and the key of an empty mirror to those of the source, without dropping it or any of its columns.

    Views depend on a mirror, and a column that vanished at the source is history.
    """
    rows = conn.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute"
        " WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass AND attnum > 0 AND NOT attisdropped",
        tuple(table.mirror.split(".", 1)),
    )
    found = {str(name): (str(type_), bool(required)) for name, type_, required in rows}
    alter = sql.SQL("ALTER TABLE {} ").format(table.identifier)
    old_key = mirror_key(conn, table)
    new_key = set(old_key) != set(table.key_names)
    if new_key and old_key:
        row: Any = conn.execute(
            "SELECT conname FROM pg_constraint"
            " WHERE contype = 'p' AND conrelid = format('%%I.%%I', %s::text, %s::text)::regclass",
            tuple(table.mirror.split(".", 1)),
        ).fetchone()
        conn.execute(alter + sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(row[0])))
    for name, (_, required) in found.items():
        if required and name not in (*table.key_names, "_seq"):
            conn.execute(alter + sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(name)))
    for column in table.columns:
        identifier, wanted = sql.Identifier(column["mirror_name"]), sql.SQL(_type(column["mirror_type"]))
        if column["mirror_name"] not in found:
            conn.execute(alter + sql.SQL("ADD COLUMN {} {}").format(identifier, wanted))
        elif not _same_type(conn, found[column["mirror_name"]][0], column["mirror_type"]):
            # Postgres refuses this while a view reads the column; the next refresh makes the derived views anew.
            conn.execute("SELECT warehouse.drop_views_of(%s)", (table.mirror,))
            conn.execute(alter + sql.SQL("ALTER COLUMN {0} TYPE {1} USING NULL::{1}").format(identifier, wanted))
    if new_key and table.key:
        conn.execute(alter + sql.SQL("ADD PRIMARY KEY ({})").format(sql.SQL(", ").join(table.key_identifiers)))


def _same_type(conn: Connection, first: str, second: str) -> bool:
    row: Any = conn.execute(
        "SELECT format_type(to_regtype(split_part(%(b)s, '(', 1)), NULL) = split_part(%(a)s, '(', 1)", {"a": first, "b": second}
    ).fetchone()
    return bool(row[0]) and first.partition("(")[2] == second.partition("(")[2]


_TYPE = re.compile(r"[a-z ]+(\(\d+(,\d+)?\))?(\[\])?")


def _type(text: str) -> Any:
    """A mirror type as SQL; the text comes from typemap.py, and nothing else may stand in it."""
    assert _TYPE.fullmatch(text), text
    return text


def _difference(table: MirrorTable, columns: Sequence[Column]) -> str:
    """What is different, in words."""
    had = {column["name"]: column["mirror_type"] for column in table.columns}
    has = {column.name: str(column.mirror_type) for column in columns}
    parts = [f"column {name} is new" for name in has if name not in had]
    parts += [f"column {name} is gone" for name in had if name not in has]
    parts += [f"column {name} is now {has[name]}, was {had[name]}" for name in has if name in had and has[name] != had[name]]
    return "the source's columns changed: " + ("; ".join(parts) or "their order")
