"""One source table and its mirror: names, columns, key, state.

Owns what is known of a table while the replicator runs, and the SQL pieces made from its names. Never talks to a database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from psycopg import sql

from replicator.cascades import ForeignKey
from replicator.position import Position
from replicator.touched import Touched
from replicator.typemap import ROW_HASH, Column
from warehouse.db import read_queries

if TYPE_CHECKING:
    from replicator.source import SourceTable

State = Literal["Snapshotting", "Synced", "Failed", "ResyncRequired", "DroppedSource", "Removed"]
QUERIES = read_queries("replicator")
MirrorColumn = dict[str, str]
"""name, mirror_name, source_type, mirror_type; charset, "" where it is not known or there is none; generated and row_end, where
it is; see typemap.Column."""
LIVE: frozenset[State] = frozenset({"Snapshotting", "Synced"})


@dataclass
class MirrorTable:
    """A source table and its mirror.

    Attributes:
        number: by which changes name the table.
        name, mirror: database.table at the source, schema.table here.
        columns: see MirrorColumn; in the source's order.
        key: source names of the columns that identify a row; empty where nothing does, and the mirror is a multiset.
        consistent_from: the position that must be applied before a snapshot is whole; None once it is. Until then
            changes may meet rows that are newer than they, so every change replaces its row.
        foreign_keys: those through which other tables' changes change this one without a trace in the binlog.
        exact: the snapshot was read as of consistent_from, so that changes up to there are left out instead.
        resync: a copy was asked for.
        copy_after: the copy that is due waits until the stream is here, past what it could not be read before.
        touched: what the stream changes while a copy runs beside it; None where none does.
        read_as_of: the position that this copy is read as of, where it is: changes up to there are left out.
        owed: where deletions are noted whose rows this copy has not brought yet; see owed.py.
        first_plan: changes decoded by older plans were committed before the last copy began, which brought what they left.
            Applying some of them late, and not those that were passed over meanwhile, would bring back old values.
        copied_after: the last copy began behind this position, so it holds what an ALTER before it did.
        kept: the mirror's columns that the source has no longer. What rows hold in them stays with them; see history.py.
        held: the identities of rows that are in the quarantine; it may name some that are not there any more.
        not_before: no copy begins earlier, in time.monotonic() seconds, because the mirror is locked.
        dirty: differs from what warehouse.tables says.
    """

    number: int
    name: str
    mirror: str
    state: State
    columns: list[MirrorColumn]
    key: list[str]
    reason: str | None = None
    consistent_from: Position | None = None
    exact: bool = False
    foreign_keys: list[ForeignKey] = field(default_factory=list)
    resync: bool = False
    copy_after: Position | None = None
    touched: Touched | None = field(default=None, repr=False)
    read_as_of: Position | None = None
    owed: sql.Identifier | None = field(default=None, repr=False)
    first_plan: int = 0
    copied_after: Position | None = None
    kept: tuple[str, ...] = ()
    held: set[bytes] = field(default_factory=set, repr=False)
    not_before: float = 0.0
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
    def row_end(self) -> str | None:
        """The source name of the column that tells the rows that are there now from history; None without history."""
        return next((column["name"] for column in self.columns if "row_end" in column), None)

    @property
    def overlaps(self) -> bool:
        """True while changes may meet rows that a snapshot already brought."""
        return self.state == "Snapshotting" and not self.exact

    def is_like(self, columns: Sequence[Column]) -> bool:
        """Whether rows with these columns fit the mirror as it is."""
        return [(c["name"], c["mirror_type"]) for c in self.columns] == [(c.name, c.mirror_type) for c in columns]

    def holds(self, at: Position) -> bool:
        """Whether the last copy began, or was read as of a position, behind this one; and is not yet whole."""
        if self.state != "Snapshotting" or self.consistent_from is None:
            return False
        since = self.consistent_from if self.exact else self.copied_after
        return since is not None and since.covers(at)

    def describe_as(self, found: SourceTable) -> list[str]:
        """Take the columns and the key that the source has now; the mirror's names of columns that went."""
        before = [column["mirror_name"] for column in self.columns]
        self.columns, self.key = describe_columns(found.columns), [found.columns[i].name for i in found.key]
        now = {column["mirror_name"] for column in self.columns}
        return [name for name in before if name not in now]

    def is_described_as(self, found: SourceTable) -> bool:
        """Whether columns and key are those that the source has now."""
        return self.columns == describe_columns(found.columns) and self.key == [found.columns[i].name for i in found.key]

    def is_as_described(self, columns: Sequence[Column], key: Sequence[int]) -> bool:
        """Whether the source describes the table as it is known here: columns, types and key."""
        names = [(column.name, column.mirror_type, column.charset) for column in columns]
        known = [(c["name"], c["mirror_type"], c.get("charset")) for c in self.columns]
        return names == known and [columns[i].name for i in key] == self.key


def describe_columns(columns: Sequence[Column]) -> list[MirrorColumn]:
    """Columns as warehouse.tables keeps them."""
    return [
        {
            "name": c.name, "mirror_name": c.mirror_name, "source_type": c.source_type, "mirror_type": str(c.mirror_type),
            "charset": c.charset, **({"generated": "yes"} if c.generated else {}), **({"row_end": "yes"} if c.row_end else {}),
        }
        for c in columns
    ]  # fmt: skip


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
