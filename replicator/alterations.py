"""ALTER TABLE, followed: in place where that is exact, else by asking for a fresh copy.

Owns the way from a logged statement to the changed mirror, in one transaction with the position behind the statement. What a
statement means for the rows is decided in evolution.py.
"""

from __future__ import annotations

from dataclasses import replace

import psycopg
import structlog

from replicator.alter import parse_alter
from replicator.apply import REFUSALS, Applier
from replicator.arrangement import CopyNeeded
from replicator.column_facts import read_facts
from replicator.errors import SchemaChanged
from replicator.evolution import Evolution, plan_evolution
from replicator.history import find_kept
from replicator.items import Statement
from replicator.locks import MirrorLocked
from replicator.mirror import LIVE, MirrorTable
from replicator.reshape import reshape
from replicator.schema import Registry
from replicator.source import Source

log = structlog.get_logger()

# What Postgres answers where the mirror is not as it was left, or somebody else's objects are in the way.
_REFUSALS = (
    *REFUSALS,
    psycopg.errors.DependentObjectsStillExist,
    psycopg.errors.SyntaxErrorOrAccessRuleViolation,
    psycopg.errors.ObjectNotInPrerequisiteState,
)


def follow_alter(
    statement: Statement, table: MirrorTable, source: Source, registry: Registry, applier: Applier, seq: int,
    refusal: MirrorLocked | None,
) -> int:  # fmt: skip
    """Bring a mirror to what an ALTER TABLE made of its source, or ask for a copy; the last _seq given out.

    Args:
        refusal: its mirror cannot be locked, and that was tried for long enough.

    Raises:
        MirrorLocked: its mirror cannot be locked now.
    """
    if table.state not in LIVE or table.resync:
        return seq
    mariadb = source.flavor == "mariadb"
    clauses = parse_alter(statement.query.text, mariadb=mariadb)
    if clauses is not None and all(clause.verb == "nothing" for clause in clauses):
        return seq
    if table.state != "Synced":
        _follow_in_doubt(statement, table, source, registry)
        return seq
    try:
        if clauses is None:
            raise CopyNeeded("the source's table was altered")
        evolution = plan_evolution(table, clauses, lambda: read_facts(source, table.name), statement.position, mariadb=mariadb)
        unmet = registry.find_unmet(table.name, [column["name"] for column in evolution.columns], evolution.key)
        if unmet is not None:
            raise CopyNeeded(f"{unmet}")
        if refusal is not None and _needs_lock(evolution, registry):
            raise CopyNeeded(f"the mirror could not be altered: {refusal.message}")
        return _carry_out(evolution, statement, table, registry, applier, seq)
    except CopyNeeded as needed:
        registry.require_resync(table, SchemaChanged(str(needed)))
    except _REFUSALS as error:
        answer = str(error).strip().splitlines()[0]
        registry.require_resync(table, SchemaChanged(f"the mirror could not be altered: {answer}"))
    return seq


def _follow_in_doubt(statement: Statement, table: MirrorTable, source: Source, registry: Registry) -> None:
    """The mirror may already hold what this statement did, because it was copied, or the source asked, behind it."""
    found = source.describe(table.name)
    if not (table.holds(statement.position) and found is not None and table.is_as_described(found.columns, found.key)):
        registry.require_resync(table, SchemaChanged("the source's table was altered again"))


def _needs_lock(evolution: Evolution, registry: Registry) -> bool:
    """Whether the mirror is altered; a column that is kept is only not written to any more."""
    dropped = evolution.gone if registry.drops_columns else ()
    return bool(dropped or evolution.renamed or evolution.retyped or evolution.added or evolution.moves_key)


def _carry_out(
    evolution: Evolution, statement: Statement, table: MirrorTable, registry: Registry, applier: Applier, seq: int
) -> int:
    before = replace(table)

    def change(last: int) -> int:
        if evolution.touches_mirror:
            last = reshape(
                applier.conn, registry.name, table, evolution, last, statement.commit_us, drops=registry.drops_columns
            )
        table.columns, table.key, table.dirty = evolution.columns, evolution.key, True
        table.kept = find_kept(applier.conn, table)
        if evolution.doubtful_until is not None:
            registry.set_state(table, "Snapshotting", "an ALTER is being confirmed")
            table.consistent_from, table.exact = evolution.doubtful_until, False
        return last

    try:
        lock = _needs_lock(evolution, registry)
        seq = applier.change_mirrors(statement.position, seq, statement.commit_us, change, [table], lock=lock)
    except BaseException:
        for name in ("columns", "key", "state", "reason", "consistent_from", "exact", "kept"):
            setattr(table, name, getattr(before, name))
        raise
    log.info(
        "altered in place", table=table.name, gone=evolution.gone, renamed=evolution.renamed, retyped=evolution.retyped,
        added=[name for name, _, _ in evolution.added], key=evolution.moves_key,
    )  # fmt: skip
    return seq
