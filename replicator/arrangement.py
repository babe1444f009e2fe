"""A table's columns after an ALTER, in the order that the server gives them; what becomes of their values is evolution.py's.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replicator.alter import Clause
from replicator.definition import Definition
from replicator.mirror import MirrorColumn, MirrorTable


class CopyNeeded(Exception):
    """A change whose outcome for the rows that are there cannot be told from here; the text says why."""


@dataclass
class Entry:
    """A column on its way: as it was, and as it is defined anew."""

    name: str
    old: MirrorColumn | None = None
    definition: Definition | None = None
    charset: str = ""


def arrange_columns(table: MirrorTable, clauses: Sequence[Clause]) -> tuple[list[Entry], list[MirrorColumn]]:
    """The columns in the order that the server gives them, and those that are gone.

    Raises:
        CopyNeeded: the clauses do not fit what is known of the table.
    """
    known = {column["name"].lower(): column for column in table.columns}
    changes: dict[str, Clause] = {}
    dropped: set[str] = set()
    for clause in clauses:
        if clause.verb not in ("drop", "change", "rename"):
            continue
        name = clause.name.lower()
        if name not in known:
            if clause.tolerant:
                continue
            raise CopyNeeded(f"a statement changed column {clause.name}, which the mirror does not know")
        if name in dropped or name in changes:
            raise CopyNeeded(f"a statement changed column {clause.name} twice")
        if clause.verb == "drop":
            dropped.add(name)
        else:
            changes[name] = clause
    charset = next((clause.new_name for clause in clauses if clause.verb == "charset"), "")
    gone: list[MirrorColumn] = []
    entries: list[Entry] = []
    moved: list[tuple[Clause, Entry]] = []
    for column in table.columns:
        name = column["name"].lower()
        if name in dropped:
            if column["name"] in table.key:
                raise CopyNeeded(f"column {column['name']} of its key was dropped")
            gone.append(column)
            continue
        change = changes.get(name)
        entry = Entry(column["name"], column, charset=charset)
        if change is not None:
            if change.verb == "change" and change.new_name == change.name != column["name"]:
                raise CopyNeeded(f"column {column['name']} was written as {change.name}")
            entry.name, entry.definition = change.new_name, change.definition
            if change.place is not None:
                moved.append((change, entry))
                continue
        entries.append(entry)
    for clause in clauses:
        if clause.verb == "add":
            if clause.name.lower() in known.keys() - dropped and clause.name.lower() not in changes:
                if clause.tolerant:
                    continue
                raise CopyNeeded(f"a statement added column {clause.name}, which the mirror has")
            _insert(entries, Entry(clause.name, definition=clause.definition), clause.place)
        for change, entry in moved:
            if change is clause:
                _insert(entries, entry, clause.place)
    return entries, gone


def _insert(entries: list[Entry], entry: Entry, place: str | None) -> None:
    if place is None:
        entries.append(entry)
    elif place == "":
        entries.insert(0, entry)
    else:
        at = next((i for i, each in enumerate(entries) if each.name.lower() == place.lower()), None)
        if at is None:
            raise CopyNeeded(f"a column stands behind {place}, which the mirror does not know")
        entries.insert(at + 1, entry)
