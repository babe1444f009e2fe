"""What a statement of the stream does to the tables: made, dropped, renamed, emptied, altered.

Owns the way from a statement's intents to the tables' states. Reads no statement itself; see statements.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import structlog

from replicator.alterations import follow_alter
from replicator.apply import Applier
from replicator.errors import SchemaChanged
from replicator.items import Statement
from replicator.locks import MirrorLocked
from replicator.mirror import LIVE, MirrorTable
from replicator.renames import find_plain_renames, rename_mirrors
from replicator.schema import Registry
from replicator.source import Source
from replicator.statements import Intent, parse_intents

log = structlog.get_logger()

_FOREIGN_KEY = re.compile("foreign|constraint|references", re.IGNORECASE)


@dataclass(frozen=True)
class Followed:
    """What following a statement did: its intents, and the last _seq given out."""

    intents: list[Intent]
    seq: int


def follow_statement(
    statement: Statement, source: Source, registry: Registry, applier: Applier, seq: int, refusal: MirrorLocked | None = None
) -> Followed:
    """Carry out what a statement means for the tables.

    Args:
        seq: the last _seq given out before. A TRUNCATE gives one to each row that goes, and commits the position with them.
        refusal: a mirror that would have to be altered cannot be locked, and that was tried for long enough.

    Raises:
        MirrorLocked: a mirror that is to be altered cannot be locked now; nothing of the statement is carried out.
    """
    intents = parse_intents(statement.query.text, statement.query.database)
    plain = {} if refusal is not None else find_plain_renames(intents, registry, applier.conn)
    if plain:
        rename_mirrors(plain, statement, registry, applier, seq)
    renamed = {intent.table for intent in intents if intent.action == "rename"}
    origins: dict[str, str] = {}
    for intent in intents:
        if intent.action == "alter" and intent.table in renamed:
            # what it was altered to comes with the copy under the other name
            continue
        if intent.action == "rename":
            origins[intent.new_name] = origins.pop(intent.table, intent.table)
            if origins[intent.new_name] in plain:
                continue
        seq = _carry_out(intent, statement, source, registry, applier, seq, refusal)
    if intents:
        may_alter = _FOREIGN_KEY.search(statement.query.text)
        registry.read_foreign_keys({i.table for i in intents if i.action == "alter" and may_alter})
        log.info("statement", intents=[f"{i.action} {i.table}" for i in intents], position=str(statement.position))
    return Followed(intents, seq)


def _carry_out(
    intent: Intent, statement: Statement, source: Source, registry: Registry, applier: Applier, seq: int,
    refusal: MirrorLocked | None,
) -> int:  # fmt: skip
    table = registry.tables.get(intent.table)
    if intent.action == "create" and registry.matches(intent.table):
        if table is None:
            registry.discover(intent.table, created_at=statement.position)
        elif table.state in LIVE:
            # CREATE TABLE IF NOT EXISTS is logged for a table that is there, too.
            _compare(table, source, registry)
        else:
            registry.require_resync(table, SchemaChanged("the source created the table anew"))
    elif intent.action == "drop database":
        for name, each in registry.tables.items():
            if name.partition(".")[0] == intent.table:
                registry.set_state(each, "DroppedSource", "the source dropped the database")
    elif intent.action == "drop" and table is not None:
        registry.set_state(table, "DroppedSource", "the source dropped the table")
    elif intent.action == "rename":
        if table is not None:
            registry.set_state(table, "DroppedSource", f"the source renamed the table to {intent.new_name}")
        if registry.matches(intent.new_name):
            target = registry.tables.get(intent.new_name)
            if target is None:
                registry.discover(intent.new_name)
            else:
                registry.require_resync(target, SchemaChanged(f"the source renamed {intent.table} to this name"))
    elif intent.action == "truncate" and table is not None and table.state in LIVE:
        if table.holds(statement.position):
            # Of the changes before the copy some were replayed and some may be passed over, so that neither emptying it nor
            # leaving it is right; one that was read as of a position holds none of them.
            if not table.exact:
                registry.require_resync(table, SchemaChanged("the source emptied the table before its copy was read"))
            return seq
        seq = applier.empty(table, statement.position, seq, statement.commit_us)
        if table.touched is not None:
            # what was read of it before must not be written any more
            registry.require_resync(table, SchemaChanged("the source emptied the table while it was copied"))
        return seq
    elif intent.action == "alter" and table is not None and table.touched is not None:
        found = source.describe(table.name)
        if found is None or not table.is_described_as(found):
            registry.require_resync(table, SchemaChanged("the source's table was altered while it was copied"))
    elif intent.action == "alter" and table is not None:
        return follow_alter(statement, table, source, registry, applier, seq, refusal)
    elif intent.action == "alter rows" and table is not None and table.state in LIVE:
        registry.require_resync(table, SchemaChanged("rows came or went with a partition or a tablespace"))
    return seq


def _compare(table: MirrorTable, source: Source, registry: Registry) -> None:
    """A table that was found before its CREATE came by is copied where its columns or its key are others now."""
    found = source.describe(table.name)
    if found is not None and not table.is_as_described(found.columns, found.key):
        registry.require_resync(table, SchemaChanged("the source created the table"))
