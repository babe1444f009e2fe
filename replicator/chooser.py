"""What becomes of the rows behind a table map: they fit their mirror, or are passed over, or the table is copied afresh.

The stream's thread asks here, while the main one applies. Owns no state; that of the tables is in schema.py.
"""

from __future__ import annotations

from replicator.difference import describe_difference
from replicator.errors import MissingMetadata, SchemaChanged, TableProblem, UnsupportedColumn
from replicator.items import Choice
from replicator.mirror import LIVE
from replicator.position import Position
from replicator.schema import Registry
from replicator.tablemap import TableMap
from replicator.typemap import OLD_LAYOUT, recognize


class TableChooser:
    """Chooses for the stream, as items.Chooser asks for.

    Args:
        registry: the tables.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def choose(self, table_map: TableMap, at: Position) -> Choice | None:
        """What to do with the rows behind a table map; see items.Chooser."""
        with self._registry.lock:
            return self._choose(table_map, at)

    def reject(self, table: int, problem: TableProblem) -> None:
        """The rows of a chosen table cannot be read; see items.Chooser."""
        self._registry.reject(table, problem)

    def distrust(self, problem: TableProblem) -> None:
        """Rows are missing, and of which tables is not known: copy all of them afresh."""
        # Not while a commit counts the states as written that it wrote before.
        with self._registry.lock:
            for table in self._registry.by_number:
                if table.state in LIVE:
                    self._registry.require_resync(table, problem)

    def _choose(self, table_map: TableMap, at: Position) -> Choice | None:
        registry = self._registry
        name = f"{table_map.database}.{table_map.table}"
        if not registry.matches(name):
            return None
        table = registry.tables.get(name) or registry.discover(name)
        if table is None or table.state not in LIVE or table.resync:
            return None
        if table_map.columns is None:
            hint = "Set binlog_row_metadata = FULL, then resync the table."
            registry.reject(table.number, MissingMetadata("a table map lacks the columns' names", hint=hint))
            return None
        columns = recognize(table_map.columns, {column["name"]: column["mirror_type"] for column in table.columns})
        types = {column["name"]: column["source_type"] for column in table.columns}
        old = [column.name for column in columns if column.kind in OLD_LAYOUT and "(" in types.get(column.name, "")]
        if old:
            hint = "They were written before ALTER TABLE ... FORCE; resync the table once the stream is past them."
            what = "rows with fractional digits in MariaDB's layout of version 5.3 cannot be read: column "
            registry.reject(table.number, UnsupportedColumn(what + ", ".join(old), hint=hint))
            return None
        if not table.is_like(columns):
            if table.holds(at):
                # an ALTER lies between them and the copy, and no row changes while a table is altered
                return None
            registry.require_resync(table, SchemaChanged(describe_difference(table, columns)))
            return None
        for known, column in zip(table.columns, columns, strict=True):
            known["charset"] = known.get("charset") or column.charset
        names = [column.name for column in columns]
        unmet = registry.find_unmet(name, names, table.key)
        if unmet is not None:
            registry.reject(table.number, unmet)
            return None
        return Choice(table.number, tuple(names.index(column) for column in table.key), columns)
