"""Which tables of the source no mirror can hold, and why. Pure."""

from __future__ import annotations

from replicator.charsets import Charsets
from replicator.errors import TableProblem, UnsupportedColumn
from replicator.source import MIRRORED, SourceTable
from replicator.typemap import OWN_COLUMNS, ROW_HASH, Kind


def find_unsupported(found: SourceTable, charsets: Charsets) -> TableProblem | None:
    """Why a table as the source describes it cannot be mirrored; None where it can."""
    if found.table_type not in MIRRORED:
        return UnsupportedColumn(f"it is no plain table, but: {found.table_type.lower()}")
    if any(column.row_end and column.kind is not Kind.TIMESTAMP for column in found.columns):
        what = "it is versioned by transaction ids, and MariaDB logs its changes as statements"
        return UnsupportedColumn(what, hint="Version it by TIMESTAMP(6) columns: the first change stops the source.")
    for column in found.columns:
        if column.mirror_type is None:
            return UnsupportedColumn(f"column {column.name} has the type {column.source_type}, which is not covered")
        if column.kind in (Kind.TEXT, Kind.ENUM, Kind.SET) and not charsets.covers(column.charset):
            return UnsupportedColumn(f"column {column.name} has the character set {column.charset}, which is not covered")
        if column.mirror_name in OWN_COLUMNS or (column.mirror_name == ROW_HASH and not found.key):
            return UnsupportedColumn(f"column {column.name} has a name that the mirror needs for itself")
    return None
