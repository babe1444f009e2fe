"""RENAME TABLE, followed: the mirror takes the new name where that is exact, else the table is copied under it.

A mirror that is Synced holds at the statement's place what the source's table holds, whatever that is called. So it may take
the new name, with its place in warehouse.tables, where nobody can have read anything else under that name, and nothing of
somebody's own means the old one. Owns which renames these are, and their statements.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from psycopg import sql

from replicator.apply import Applier
from replicator.items import Statement
from replicator.mirror import QUERIES, MirrorTable
from replicator.mirror_ddl import index_names
from replicator.schema import Registry
from replicator.statements import Intent
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()


def find_plain_renames(intents: Sequence[Intent], registry: Registry, conn: Connection) -> dict[str, str]:
    """The tables that one statement renames, and whose mirrors can take the new names as they are: old name -> new name.

    Not where the new name had another mirror before: whoever reads it by _seq or by key would not learn that its rows are
    others. Not where the old name goes to another table at once, as in the swaps of online schema changes: views, rights and
    indexes hang on the mirror of that name, which stays readable until the other table's copy takes its place.
    """
    renames = [intent for intent in intents if intent.action == "rename"]
    if not all(intent.alone for intent in renames) or registry.source.variables().get("lower_case_table_names", "0") != "0":
        return {}
    # what several renames of one statement come to
    origins: dict[str, str] = {}
    for intent in renames:
        origins[intent.new_name] = origins.pop(intent.table, intent.table)
    found = {}
    for new, old in origins.items():
        table = registry.tables.get(old)
        if table is None and not registry.matches(new):
            continue
        # All of them or none, because they commit together.
        if table is None or old in origins or not _is_plain(registry, table, new):
            return {}
        facts = {"source": registry.name, "mirror": table.mirror, "new_mirror": registry.mirror_of(new)}
        ours = {"indexes": [name for name, _ in index_names(table)]}
        with wrap_errors(table=old):
            row = conn.execute(QUERIES["can_rename"], facts | ours).fetchone()
        if row is None or not row[0]:
            return {}
        found[old] = new
    return found


def _is_plain(registry: Registry, table: MirrorTable, new: str) -> bool:
    if table.state != "Synced" or table.resync or table.reason is not None:
        return False
    if new in registry.tables or not registry.matches(new) or registry.find_schema_problem(new) is not None:
        return False
    if registry.selection.excluded(table.name) or registry.selection.excluded(new):
        return False
    keys = [key for each in registry.by_number for key in each.foreign_keys]
    return not any(table.name in (key.child, key.parent) for key in keys)


def rename_mirrors(plain: dict[str, str], statement: Statement, registry: Registry, applier: Applier, seq: int) -> None:
    """Give mirrors the new names of their tables, and commit that with the position behind the statement.

    Raises:
        MirrorLocked: somebody reads one of them.
    """
    tables = [registry.tables[old] for old in plain]
    before = [(table.name, table.mirror) for table in tables]
    known = (dict(registry.tables), list(registry.by_number))

    def change(last: int) -> int:
        for table, (name, _) in zip(tables, before, strict=True):
            _rename(applier.conn, registry, table, plain[name])
        return last

    try:
        applier.change_mirrors(statement.position, seq, statement.commit_us, change, tables)
    except BaseException:
        for table, names in zip(tables, before, strict=True):
            table.name, table.mirror = names
        registry.tables, registry.by_number[:] = known
        raise
    log.info("renamed in place", tables=plain)


def _rename(conn: Connection, registry: Registry, table: MirrorTable, new: str) -> None:
    facts = {"source": registry.name, "table": table.name, "new": new, "mirror": registry.mirror_of(new)}
    old_indexes = index_names(table)
    (schema, _, _), (new_schema, _, new_name) = table.mirror.partition("."), facts["mirror"].partition(".")
    between = sql.Identifier("tailrace renames")
    conn.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(table.identifier, between))
    if schema != new_schema:
        conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(new_schema)))
        statement = sql.SQL("ALTER TABLE {}.{} SET SCHEMA {}")
        conn.execute(statement.format(sql.Identifier(schema), between, sql.Identifier(new_schema)))
    statement = sql.SQL("ALTER TABLE {}.{} RENAME TO {}")
    conn.execute(statement.format(sql.Identifier(new_schema), between, sql.Identifier(new_name)))
    for name in ("forget_copy", "rename_table", "rename_quarantined", "note_rename"):
        conn.execute(QUERIES[name], facts)
    registry.rename(table, new)
    for (old_index, _), (new_index, _) in zip(old_indexes, index_names(table), strict=True):
        statement = sql.SQL("ALTER INDEX IF EXISTS {}.{} RENAME TO {}")
        conn.execute(statement.format(sql.Identifier(new_schema), sql.Identifier(old_index), sql.Identifier(new_index)))
