"""What is replicated: tables and columns, by the settings and by what was chosen since in SQL.

The newest choice in warehouse.table_choices that matches a table decides about it, and where none does the settings do; so it
is for columns. Owns the filters on mirrors: a trigger that leaves excluded columns NULL, whichever way a row comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import structlog
from psycopg import sql

from replicator.mirror import QUERIES, MirrorTable
from replicator.typemap import mirror_identifier
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()

_TRIGGER = sql.Identifier("tailrace_filter")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """database.table with LIKE's wildcards, as a regular expression over the whole name."""
    parts = [".*" if char == "%" else "." if char == "_" else re.escape(char) for char in pattern]
    return re.compile("".join(parts), re.DOTALL)


class Selection:
    """The tables and columns that are wanted.

    Args:
        patterns: database.table with LIKE's wildcards, of the settings.
        excluded_columns: database.table.column, of the settings.
    """

    def __init__(self, patterns: Sequence[str], excluded_columns: Iterable[str] = ()) -> None:
        self._patterns = [compile_pattern(pattern) for pattern in patterns]
        self._choices: list[tuple[re.Pattern[str], bool]] = []
        self._given = {tuple(name.rsplit(".", 1)) for name in excluded_columns}
        self._columns: dict[tuple[str, ...], bool] = {}

    def read(self, conn: Connection, source: str) -> None:
        """Read what was chosen in SQL."""
        with wrap_errors():
            tables = conn.execute(QUERIES["read_table_choices"], {"source": source}).fetchall()
            columns = conn.execute(QUERIES["read_column_choices"], {"source": source}).fetchall()
        self._choices = [(compile_pattern(pattern), wanted) for pattern, wanted in tables]
        self._columns = {(table, column): excluded for table, column, excluded in columns}

    def matches(self, name: str) -> bool:
        """Whether a table's rows are wanted; name: database.table."""
        for pattern, wanted in self._choices:
            if pattern.fullmatch(name):
                return wanted
        return any(pattern.fullmatch(name) for pattern in self._patterns)

    def excluded(self, name: str) -> list[str]:
        """The source names of a table's columns that are left out, sorted."""
        chosen = {column for (table, column), excluded in self._columns.items() if table == name and excluded}
        given = {column for table, column in self._given if table == name and self._columns.get((table, column), True)}
        return sorted(chosen | given)

    def find_unmet(self, name: str, columns: Sequence[str], key: Sequence[str]) -> str | None:
        """Why columns of a table cannot be left out as asked; None where they can.

        One that is not there may have got another name, and would come in under it; so that is for somebody to say.
        """
        for column in self.excluded(name):
            if column not in columns:
                return f"column {column}, which is to be left out, is not there: was it renamed or dropped?"
            if column in key:
                return f"column {column}, which is to be left out, is part of the key"
            if not key:
                return f"column {column} cannot be left out: without a key, rows are found by all of their columns"
        return None


def read_filters(conn: Connection, source: str) -> dict[str, list[str]]:
    """Of every table with a filter, the columns that its mirror leaves out now."""
    with wrap_errors():
        return {name: list(columns) for name, columns in conn.execute(QUERIES["read_filters"], {"source": source})}


def fit_filter(conn: Connection, source: str, table: MirrorTable, excluded: Sequence[str]) -> None:
    """Let a mirror leave out these columns and no others, inside the caller's transaction; values that are there go."""
    facts = {"source": source, "table": table.name, "mirror": table.mirror}
    row = conn.execute(QUERIES["read_filter"], facts).fetchone()
    names = {column["name"]: column["mirror_name"] for column in table.columns}
    wanted = [name for name in excluded if name in names and table.key and name not in table.key]
    if row is None or not row[1] or (sorted(row[0]) == wanted and bool(row[2]) == bool(wanted)):
        return
    schema, _, bare = table.mirror.partition(".")
    function = sql.Identifier(schema, mirror_identifier(f"{bare}__filter"))
    conn.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(_TRIGGER, table.identifier))
    conn.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(function))
    if wanted:
        columns = [sql.Identifier(names[name]) for name in wanted]
        raw = sql.SQL("nullif({0} - {1}, '{{}}'::jsonb)")
        listed = sql.SQL("{}::text[]").format(sql.Literal([names[name] for name in wanted]))
        body = sql.SQL("BEGIN {}; NEW._raw := {}; RETURN NEW; END").format(
            sql.SQL("; ").join(sql.SQL("NEW.{} := NULL").format(column) for column in columns),
            raw.format(sql.SQL("NEW._raw"), listed),
        )
        conn.execute(
            sql.SQL("CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}").format(
                function, sql.Literal(body.as_string(conn))
            )
        )
        conn.execute(
            sql.SQL("CREATE TRIGGER {} BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION {}()").format(
                _TRIGGER, table.identifier, function
            )
        )
        # The trigger does the work. A column that the mirror is still to get has no values yet.
        there = {name for (name,) in conn.execute(QUERIES["read_mirror_columns"], facts)}
        columns = [sql.Identifier(names[name]) for name in wanted if names[name] in there]
        anything = sql.SQL(" OR ").join(
            [*(sql.SQL("{} IS NOT NULL").format(column) for column in columns), sql.SQL("_raw ?| {}").format(listed)]
        )
        blanked = conn.execute(sql.SQL("UPDATE {} SET _seq = _seq WHERE {}").format(table.identifier, anything)).rowcount
        log.info("columns left out", table=table.name, columns=wanted, rows=blanked)
    conn.execute(QUERIES["write_filter"], facts | {"excluded": wanted})
