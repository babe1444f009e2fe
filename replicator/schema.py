"""The tables of a source: which ones are wanted, what state each is in, and which of them cascades tie together.

Owns warehouse.tables. Never touches rows; the mirror's DDL is in mirror_ddl.py, and whether rows of the stream fit a mirror is
found in chooser.py.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Sequence

import structlog

from replicator.cascades import ForeignKey, find_family, find_foreign_keys, read_foreign_key
from replicator.charsets import Charsets
from replicator.errors import FilterUnmet, LostParent, MirrorTaken, SchemaChanged, TableProblem, UnsupportedColumn
from replicator.mirror import LIVE, QUERIES, MirrorTable, State, describe_columns
from replicator.mirror_ddl import create_mirror
from replicator.position import Flavor, Position, parse_position
from replicator.quarantine import read_identities
from replicator.selection import Selection, fit_filter, read_filters
from replicator.source import Source, SourceTable
from replicator.typemap import OWN_SCHEMAS, mirror_identifier
from replicator.unsupported import find_unsupported
from warehouse.db import Connection

log = structlog.get_logger()

_POSTPONED_S = 1.0


class Registry:
    """All matching tables of one source.

    Args:
        source: to look up columns and keys.
        name: the source's name in the warehouse.
        selection: which tables are wanted, with which of their columns.
        prefix: what the schemas of new mirrors begin with, before the database's name.
        drops_columns: columns that the source drops are dropped from their mirrors, too.
    """

    def __init__(
        self, source: Source, name: str, selection: Selection, prefix: str = "", *, drops_columns: bool = False
    ) -> None:
        self.source, self.name, self.selection, self.prefix = source, name, selection, prefix
        self.drops_columns = drops_columns
        self.flavor: Flavor = source.flavor
        self.charsets: Charsets = source.charsets()
        # The stream's thread asks while the applier's writes.
        self.lock = threading.RLock()
        self.tables: dict[str, MirrorTable] = {}
        self.by_number: list[MirrorTable] = []
        # Where the stream must be before tables are looked for that are new at the source; None where they were.
        self.look_at: Position | None = None

    def load(self, conn: Connection) -> None:
        """Read the states that earlier runs left, and find the tables that are new at the source."""
        kept = {name: tuple(columns) for name, columns in conn.execute(QUERIES["read_kept"], {"source": self.name})}
        held = read_identities(conn, self.name)
        for name, mirror, state, columns, key, consistent_from, exact, foreign_keys, resync in conn.execute(
            QUERIES["read_tables"], {"source": self.name}
        ):
            position = parse_position(consistent_from, self.flavor) if consistent_from else None
            table = self._enlist(name, mirror, state, columns, list(key))
            table.consistent_from, table.exact, table.resync = position, exact, resync
            table.foreign_keys = [read_foreign_key(kept) for kept in foreign_keys]
            table.kept = kept.get(name, ())
            table.held = held.get(name, set())
            # A snapshot that never came to its end begins again, and one that was still to be made is made.
            if (state == "Snapshotting" and position is None) or state == "ResyncRequired":
                table.resync = True
        there = self.source.table_names()
        if any(table.state == "Synced" and table.name not in there for table in self.by_number):
            # It may have been renamed, and then has its mirror already; the stream will tell.
            self.look_at = self.source.position()
        self.follow_selection(conn)

    def matches(self, name: str) -> bool:
        """Whether a table's rows are wanted."""
        return self.selection.matches(name)

    def follow_selection(self, conn: Connection) -> None:
        """Read what is chosen: tables that are no longer wanted stop where they are, new ones are to be copied."""
        self.selection.read(conn, self.name)
        there = sorted(self.source.table_names())
        filters = read_filters(conn, self.name)
        with self.lock:
            for table in self.by_number:
                if not self.matches(table.name):
                    table.resync = False
                    if table.state not in ("Removed", "DroppedSource"):
                        self.set_state(table, "Removed", "neither source.tables nor add_table names it any more")
                elif table.state == "Removed":
                    table.resync = True
                    self.set_state(table, "Snapshotting")
                self._follow_filter(table, filters.get(table.name, []))
            for name in there if self.look_at is None else ():
                if self.matches(name) and name not in self.tables:
                    self.discover(name)
        self.read_foreign_keys()

    def _follow_filter(self, table: MirrorTable, filtered: Sequence[str]) -> None:
        wanted = self.selection.excluded(table.name)
        if wanted == sorted(filtered):
            return
        table.dirty = True
        problem = self.find_unmet(table.name, [column["name"] for column in table.columns], table.key)
        if table.state not in LIVE:
            return
        if problem is not None:
            self.reject(table.number, problem)
        elif set(filtered) - set(wanted):
            self.require_resync(table, SchemaChanged("columns that were left out are taken in"))

    def find_unmet(self, name: str, columns: Sequence[str], key: Sequence[str]) -> TableProblem | None:
        """Why columns of a table with these columns and key cannot be left out as asked; None where they can."""
        unmet = self.selection.find_unmet(name, columns, key)
        hint = "SELECT exclude_columns(...) or include_columns(...), then resync the table."
        return None if unmet is None else FilterUnmet(unmet, hint=hint)

    def _enlist(self, name: str, mirror: str, state: State, columns: list[dict[str, str]], key: list[str]) -> MirrorTable:
        table = MirrorTable(len(self.by_number), name, mirror, state, columns, key)
        self.tables[name] = table
        self.by_number.append(table)
        return table

    def mirror_of(self, name: str) -> str:
        """The mirror that a source table has here, by its name."""
        database, _, table = name.partition(".")
        return f"{mirror_identifier(self.prefix + database)}.{mirror_identifier(table)}"

    def discover(self, name: str, *, created_at: Position | None = None) -> MirrorTable | None:
        """Take in a table that the mirror does not have; None where the source has it no longer.

        Args:
            name: database.table.
            created_at: the position behind its creation, which was just seen in the stream: all of its rows are still to come.
        """
        found = self.source.describe(name)
        if found is None:
            return None
        table = self.tables.get(name) or self._enlist(name, self.mirror_of(name), "Snapshotting", [], [])
        table.columns = describe_columns(found.columns)
        table.key = [found.columns[i].name for i in found.key]
        problem = self.find_problem(found)
        if problem is not None:
            self.reject(table.number, problem)
        elif created_at is not None:
            table.consistent_from = None
            table.foreign_keys = [key for key in find_foreign_keys(self.source) if key.child == name]
            self.set_state(table, "Synced")
            now = self.source.position()
            if (now.file, now.pos) != (created_at.file, created_at.pos):
                # it may have been altered since, in which case it is copied once the stream comes there
                self.set_state(table, "Snapshotting", "its columns are being confirmed")
                table.consistent_from, table.exact = now, False
        else:
            table.resync = True
            self.set_state(table, "Snapshotting")
        log.info("table found", table=name, state=table.state, reason=table.reason)
        return table

    def find_problem(self, found: SourceTable) -> TableProblem | None:
        """Why a table cannot be mirrored; None where it can."""
        problem = self.find_schema_problem(found.name) or find_unsupported(found, self.charsets)
        if problem is not None:
            return problem
        names = [column.name for column in found.columns]
        return self.find_unmet(found.name, names, [names[i] for i in found.key])

    def find_schema_problem(self, name: str) -> TableProblem | None:
        """Why a table of this name cannot have a mirror; None where it can."""
        schema = mirror_identifier(self.prefix + name.partition(".")[0])
        if schema in OWN_SCHEMAS or schema.startswith("pg_"):
            return UnsupportedColumn(f"the database's name {schema} is that of a schema that is not for mirrors")
        return None

    def rename(self, table: MirrorTable, new: str) -> None:
        """Know a table, with its mirror, by another name; under the old one it is DroppedSource."""
        old, mirror = table.name, table.mirror
        del self.tables[old]
        table.name, table.mirror, table.dirty = new, self.mirror_of(new), True
        self.tables[new] = table
        left = self._enlist(old, mirror, "DroppedSource", list(table.columns), list(table.key))
        left.dirty, left.reason = True, f"the source renamed the table to {new}"

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

    # ------------------------------------------------------------------------------------------------ states
    def reject(self, table: int, problem: TableProblem) -> None:
        """A table cannot be replicated; the others go on."""
        with self.lock:
            self.set_state(self.by_number[table], "Failed", str(problem).replace("\n", " "))

    def require_resync(self, table: MirrorTable, problem: TableProblem) -> None:
        """A table must be copied afresh; its mirror stays as it is until then."""
        if table.state == "Removed":
            return
        table.resync = True
        self.set_state(table, "ResyncRequired", problem.message)

    def postpone(self, table: MirrorTable, problem: TableProblem) -> None:
        """A copy could not begin; it is tried again after a while."""
        self.require_resync(table, problem)
        table.not_before = time.monotonic() + _POSTPONED_S

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
            self.refuse_taken(conn)
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
                    "exact": table.exact,
                },
            )  # fmt: skip
            fit_filter(conn, self.name, table, self.selection.excluded(table.name))

    def refuse_taken(self, conn: Connection) -> None:
        """Two sources must not write to one mirror: the one that was there first has it."""
        for table in self.by_number:
            if not table.resync and not (table.dirty and table.state in LIVE):
                continue
            row = conn.execute(QUERIES["find_mirror_owner"], {"source": self.name, "mirror": table.mirror}).fetchone()
            if row is not None and table.mirror != self.mirror_of(table.name):
                # the prefix is another one since
                table.mirror = self.mirror_of(table.name)
                row = conn.execute(QUERIES["find_mirror_owner"], {"source": self.name, "mirror": table.mirror}).fetchone()
            if row is not None:
                table.resync = False
                conn.execute(QUERIES["drop_request"], {"source": self.name, "table": table.name})
                hint = "Give this source a source.schema_prefix of its own, or remove the table from one of them."
                self.reject(table.number, MirrorTaken(f"the mirror {table.mirror} is that of source {row[0]}", hint=hint))

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
