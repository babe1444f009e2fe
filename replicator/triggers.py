"""Which changes of a batch cascade without a trace in the binlog, and where the batch is cut for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from replicator import decode
from replicator.cascades import ACTIONS, ForeignKey
from replicator.changes import Batch
from replicator.errors import SchemaChanged
from replicator.mirror import MirrorTable
from replicator.schema import Registry

Rows = NDArray[np.int64]
_NONE: Rows = np.empty(0, np.int64)


def find_triggers(batch: Batch, tables: Rows, registry: Registry) -> Rows:
    """The indexes of the changes of a batch that cascade.

    Children whose changes cannot be derived are marked to be copied afresh.

    Args:
        tables: (n,) int64, the number of each change's table.
    """
    changes = batch.changes
    found = []
    for parent in {key.parent for table in registry.by_number for key in table.foreign_keys}:
        table = registry.tables.get(parent)
        if table is None:
            continue
        cascades = changes["rows_flags"] & decode.NO_FOREIGN_KEY_CHECKS == 0
        rows = np.nonzero((tables == table.number) & (changes["op"] > decode.INSERT) & cascades)[0]
        lost = (tables == table.number) & (changes["op"] == decode.INSERT) & cascades
        if (changes["rows_flags"][lost] & decode.HARD_OLD_KEY).any():
            for _, child in registry.children(table.name):
                # an update of a row that was in the quarantine, so that nobody knows what it was
                reason = f"rows changed by a foreign-key cascade from {table.name} that cannot be derived"
                registry.require_resync(child, SchemaChanged(reason))
        if len(rows):
            found.append(_cascading(batch, table, rows, registry))
    return np.sort(np.concatenate(found)) if found else _NONE


def _cascading(batch: Batch, table: MirrorTable, rows: Rows, registry: Registry) -> Rows:
    children = registry.children(table.name)
    updating = [key for key, _ in children if key.on_update in ACTIONS]
    is_deletion = batch.changes["op"][rows] == decode.DELETE
    deletions = rows[is_deletion & any(key.on_delete in ACTIONS for key, _ in children)]
    updates = rows[~is_deletion] if updating else _NONE
    in_key = {name.lower() for name in table.key}
    if all({name.lower() for name in key.referenced} <= in_key for key in updating):
        updates = np.array([i for i in updates.tolist() if _changes_key(batch, i)], np.int64)
    triggers = np.concatenate([deletions, updates])
    if not len(triggers):
        return _NONE
    if not _give_up(table, registry):
        return triggers
    # What is left may still be derived.
    return triggers if table.key and registry.children(table.name) else _NONE


def _changes_key(batch: Batch, index: int) -> bool:
    change = batch.changes[index]
    old = batch.keys[change["old_key"] : change["old_key"] + change["old_key_bytes"]]
    new = batch.keys[change["key"] : change["key"] + change["key_bytes"]]
    return old.tobytes() != new.tobytes()


def _give_up(table: MirrorTable, registry: Registry) -> bool:
    """Mark the tables below this one whose changes cannot be derived; whether there are such."""
    seen = {table.name}
    waiting = [table]
    given_up = False
    while waiting:
        parent = waiting.pop()
        for key, child in registry.children(parent.name):
            if not _is_derivable(key, parent, child):
                given_up = True
                reason = f"rows changed by a foreign-key cascade from {key.parent} that cannot be derived"
                registry.require_resync(child, SchemaChanged(reason))
            elif child.name not in seen:
                seen.add(child.name)
                waiting.append(child)
    return given_up


def _is_derivable(key: ForeignKey, parent: MirrorTable, child: MirrorTable) -> bool:
    # a row that a copy brought too early would be taken for one that is there at this point
    return key.is_plain and bool(parent.key) and not parent.overlaps and not child.overlaps


def cut_runs(triggers: Rows, tables: Rows, changes: NDArray[np.void]) -> Iterator[tuple[int, int]]:
    """The triggers as ranges: each alone, but deletions from one table that follow each other together."""
    at = 0
    while at < len(triggers):
        start = end = int(triggers[at])
        op, table = changes["op"][start], tables[start]
        while at < len(triggers) and triggers[at] == end and changes["op"][end] == op and tables[end] == table:
            at, end = at + 1, end + 1
            if op != decode.DELETE:
                break
        yield start, end
