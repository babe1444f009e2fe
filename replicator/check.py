"""Preflight: everything about the source and the warehouse that would stop or endanger replication, found at once.

Only asks; changes nothing. Each finding names the statement that mends it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from replicator.cascades import find_foreign_keys
from replicator.errors import PreflightFailed, SourceRefused, TableProblem
from replicator.schema import Registry
from replicator.selection import Selection
from replicator.source import Source
from warehouse.db import Connection
from warehouse.errors import SchemaOutdated
from warehouse.migrate import require_migrations
from warehouse.settings import Settings

Severity = Literal["fatal", "warning"]
Variables = Mapping[str, str]

OLDEST_POSTGRES = 15
SHORTEST_EXPIRY_S = 24 * 3600


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        severity: a fatal one keeps `replicator run` from starting.
        what: what is wrong, and where.
        mend: the statement or setting that mends it.
    """

    severity: Severity
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}\n    {self.mend}"


def find_problems(source: Source, conn: Connection, settings: Settings) -> list[Finding]:
    """All problems of both sides.

    Raises:
        SourceUnavailable, SourceRefused: the source cannot be asked at all.
    """
    variables = source.variables()
    findings = [*_check_binlog(source, variables), *_check_rights(source, settings), *check_server_id(source, settings)]
    findings += _check_tables(source, conn, settings)
    findings += _check_warehouse(conn, settings)
    return sorted(findings, key=lambda finding: finding.severity != "fatal")


def refuse_if_fatal(findings: Sequence[Finding]) -> None:
    """Raise PreflightFailed with the whole list where one finding is fatal."""
    if any(finding.severity == "fatal" for finding in findings):
        listing = "\n  ".join(str(finding) for finding in findings)
        raise PreflightFailed(
            f"replication cannot start:\n  {listing}",
            hint="`replicator check` shows the same list. See operations.md, 'Preflight'.",
        )


def _check_binlog(source: Source, variables: Variables) -> Iterator[Finding]:
    mariadb = source.flavor == "mariadb"
    if variables.get("log_bin", "OFF") not in ("ON", "1"):
        yield Finding("fatal", "the source writes no binlog", "Start the server with --log-bin (a restart is needed).")
    wanted = {"binlog_format": "ROW", "binlog_row_image": "FULL", "binlog_row_metadata": "FULL"}
    for name, value in wanted.items():
        given = variables.get(name)
        # MySQL 9.x keeps binlog_format only as a deprecated variable, and may drop it: then it is ROW.
        if given is None and name == "binlog_format":
            continue
        if given is None:
            yield Finding("fatal", f"the source knows no {name}", "Use MySQL 8.0.14 or MariaDB 10.5, or later.")
        elif given.upper() != value:
            persist = f"SET GLOBAL {name} = {value};" if mariadb else f"SET PERSIST {name} = '{value}';"
            yield Finding("fatal", f"{name} is {given}", f"{persist} (sessions that are open keep the old value)")
    if "PARTIAL_JSON" in variables.get("binlog_row_value_options", ""):
        yield Finding("fatal", "binlog_row_value_options has PARTIAL_JSON", "SET PERSIST binlog_row_value_options = '';")
    if not mariadb and not source.has_gtids():
        yield Finding(
            "warning",
            "gtid_mode is OFF: after a failover the position cannot be found again",
            "SET PERSIST gtid_mode step by step to ON (OFF_PERMISSIVE, ON_PERMISSIVE, ON), with enforce_gtid_consistency = ON.",
        )
    expire_s = float(variables.get("binlog_expire_logs_seconds", "0") or 0)
    if 0 < expire_s < SHORTEST_EXPIRY_S:
        scope = "GLOBAL" if mariadb else "PERSIST"
        yield Finding(
            "warning",
            f"the source keeps its binlog for {expire_s / 3600:.1f} hours only: a longer stop loses the position",
            f"SET {scope} binlog_expire_logs_seconds = {7 * 24 * 3600};",
        )


def _check_rights(source: Source, settings: Settings) -> Iterator[Finding]:
    user, account, grants = _grants(source)
    of_server = [grant.partition(" ON *.* ")[0].removeprefix("GRANT ") for grant in grants if " ON *.* " in grant]
    rights = {right.strip() for part in of_server for right in part.split(",")}

    def has(*names: str) -> bool:
        return not rights.isdisjoint(("ALL PRIVILEGES", *names))

    if not has("REPLICATION SLAVE", "REPLICATION REPLICA"):
        yield Finding("fatal", f"{user} may not read the binlog", f"GRANT REPLICATION SLAVE ON *.* TO {account};")
    if not has("REPLICATION CLIENT", "BINLOG MONITOR", "SUPER"):
        right = "BINLOG MONITOR" if source.flavor == "mariadb" else "REPLICATION CLIENT"
        yield Finding("fatal", f"{user} may not ask for the binlog's position", f"GRANT {right} ON *.* TO {account};")
    databases = sorted({pattern.partition(".")[0] for pattern in settings.source.tables})
    for database in databases:
        # A user without any right on a database does not even see its name.
        seen = source.query("SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA LIKE %s", (database,))
        if not seen[0][0]:
            yield Finding(
                "warning",
                f"no table of {database} is visible to {user}",
                f"GRANT SELECT ON `{database}`.* TO {account};  (nothing to do where the tables are still to be made)",
            )


def _grants(source: Source) -> tuple[str, str, list[str]]:
    """The user, the same as GRANT takes it, and the grants in upper case."""
    user = str(source.query("SELECT CURRENT_USER()")[0][0])
    account = "@".join(f"'{part}'" for part in user.rsplit("@", 1))
    return user, account, [str(row[0]).upper() for row in source.query("SHOW GRANTS")]


def check_server_id(source: Source, settings: Settings) -> Iterator[Finding]:
    """Whether the id is the server's own, or another replica's that is connected now."""
    wanted = settings.source.server_id
    if int(source.query("SELECT @@server_id")[0][0]) == wanted:
        yield Finding(
            "fatal", f"source.server_id {wanted} is the source's own", "Set source.server_id to a number that is free."
        )
        return
    taken = _find_namesake(source, wanted)
    if taken is not None:
        # It may be what is left of a process that ended just now; the server notices with its next heartbeat.
        time.sleep(min(source.settings.heartbeat_s, 5) + 0.5)
        taken = _find_namesake(source, wanted)
    if taken is not None:
        yield Finding(
            "fatal",
            f"source.server_id {wanted} is taken by the replica {taken}",
            "Set source.server_id to a number that is free.",
        )


def _find_namesake(source: Source, server_id: int) -> str | None:
    """Another replica of the server with this id; None where there is none, or the right to list replicas is missing."""
    mariadb = source.flavor == "mariadb"
    try:
        replicas = source.query("SHOW SLAVE HOSTS" if mariadb else "SHOW REPLICAS")
    except SourceRefused:
        # _check_rights reports it.
        return None
    for row in replicas:
        own = row[1] == source.replica_name if mariadb else row[4] == source.replica_uuid
        if int(row[0]) == server_id and not own:
            return str(row[1])
    return None


def _check_tables(source: Source, conn: Connection, settings: Settings) -> Iterator[Finding]:
    selection = Selection(settings.source.tables, settings.source.excluded_columns)
    # a warehouse that is not migrated is reported by _check_warehouse
    if conn.execute("SELECT to_regclass('warehouse.table_choices') IS NOT NULL").fetchone() == (True,):
        selection.read(conn, settings.source.name)
    registry = Registry(source, settings.source.name, selection, settings.source.schema_prefix)
    names = [name for name in sorted(source.table_names()) if registry.matches(name)]
    if not names:
        yield Finding(
            "warning", f"no table matches {', '.join(settings.source.tables)} yet", "They are picked up when they appear."
        )
    for name in names:
        found = source.describe(name)
        problem = None if found is None else registry.find_problem(found)
        if problem is not None:
            yield Finding("warning", f"{name} will be Failed: {problem.message}", _mend_table(problem))
        elif found is not None and not found.key:
            yield from _check_lock(source, name, "has no key")
    yield from _check_cascades(source, registry, names)
    yield from _check_versions(source)


def _check_versions(source: Source) -> Iterator[Finding]:
    """Tables of any database whose changes MariaDB logs as statements."""
    for (name,) in source.query(
        "SELECT CONCAT(TABLE_SCHEMA, '.', TABLE_NAME) FROM information_schema.COLUMNS"
        " WHERE GENERATION_EXPRESSION = 'ROW END' AND DATA_TYPE = 'bigint' ORDER BY 1"
    ):
        yield Finding(
            "warning",
            f"{name} is versioned by transaction ids: its changes are logged as statements, and the first one stops the source",
            "Version it by TIMESTAMP(6) columns, or not at all.",
        )


def _check_cascades(source: Source, registry: Registry, names: Sequence[str]) -> Iterator[Finding]:
    """Tables that change by foreign-key cascades without a trace in the binlog."""
    for key in find_foreign_keys(source):
        if key.child not in names:
            continue
        if not registry.matches(key.parent):
            yield Finding(
                "warning",
                f"{key.child} will be Failed: it changes by foreign-key cascades from {key.parent}, which this server does not"
                " log, and that table is not replicated",
                f"Add {key.parent} to source.tables, or make the foreign key RESTRICT.",
            )
            continue
        how = "they are derived from that table's changes" if key.is_plain else "each one makes the table be copied afresh"
        yield Finding(
            "warning",
            f"{key.child} changes by foreign-key cascades from {key.parent}, which this server does not log: {how}",
            "Nothing to do. MySQL 9.6 and later log these changes.",
        )
        yield from _check_lock(source, key.child, "changes by foreign-key cascades that are not logged")


def _check_lock(source: Source, name: str, why: str) -> Iterator[Finding]:
    """A copy as of one position locks its tables for a moment."""
    user, account, grants = _grants(source)
    database = name.partition(".")[0]
    if not may_lock(grants, database):
        yield Finding(
            "warning",
            f"{name} will be Failed: it {why}, and {user} may not lock it for the moment that a copy of it needs",
            f"GRANT LOCK TABLES ON `{database}`.* TO {account};  (or RELOAD ON *.*), or give the table a primary key",
        )


def may_lock(grants: Sequence[str], database: str) -> bool:
    """Whether grants, as SHOW GRANTS prints them in upper case, are enough to lock the tables of a database."""
    for grant in grants:
        rights, _, rest = grant.partition(" ON ")
        scope = rest.partition(".")[0].strip("`").replace("``", "`")
        words = {word.strip() for word in rights.removeprefix("GRANT ").split(",")}
        if scope == "*" and words & {"RELOAD", "ALL PRIVILEGES", "ALL"}:
            return True
        if words & {"LOCK TABLES", "ALL PRIVILEGES", "ALL"} and rest.partition(".")[2].startswith("* "):
            # a grant's scope has LIKE's wildcards, and backslashes before what is none
            pattern = re.sub(r"\\(.)|([%_])|(.)", _as_pattern, scope)
            if scope == "*" or re.fullmatch(pattern, database.upper(), re.DOTALL):
                return True
    return False


def _as_pattern(piece: re.Match[str]) -> str:
    if piece[2]:
        return ".*" if piece[2] == "%" else "."
    return re.escape(piece[1] or piece[3])


def _mend_table(problem: TableProblem) -> str:
    return "Leave the table out of source.tables, or change the column; the other tables are replicated."


def _check_warehouse(conn: Connection, settings: Settings) -> Iterator[Finding]:
    ask: Callable[..., Any] = lambda text, *arguments: conn.execute(text, arguments).fetchone()[0]  # type: ignore[index]  # noqa: E731
    version = int(ask("SELECT current_setting('server_version_num')::int / 10000"))
    if version < OLDEST_POSTGRES:
        yield Finding("fatal", f"Postgres {version} is too old", f"Use Postgres {OLDEST_POSTGRES} or later.")
    user, database = ask("SELECT current_user"), ask("SELECT current_database()")
    if not ask("SELECT has_database_privilege(current_database(), 'CREATE')"):
        yield Finding("fatal", f"{user} may not create schemas", f'GRANT CREATE ON DATABASE "{database}" TO "{user}";')
    if not ask("SELECT has_database_privilege(current_database(), 'TEMP')"):
        yield Finding("fatal", f"{user} may not create temporary tables", f'GRANT TEMP ON DATABASE "{database}" TO "{user}";')
    if not ask("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'cube')"):
        yield Finding("fatal", "the extension cube is not available", "Install Postgres' contrib modules on the server.")
    if ask("SELECT current_setting('server_encoding')") != "UTF8":
        yield Finding(
            "fatal", "the warehouse's encoding is not UTF8", f'CREATE DATABASE "{database}" ENCODING UTF8 TEMPLATE template0;'
        )
    try:
        require_migrations(conn)
    except SchemaOutdated as error:
        yield Finding("fatal", error.message, "warehouse migrate")
