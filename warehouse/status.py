"""What `warehouse status` shows: sources, tables, models and derived views, from the views that SQL users read too.

Owns the choice of columns and their layout. Reads only; computes nothing that a SQL user could not see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TextIO

from psycopg import sql
from psycopg.rows import dict_row
from rich.console import Console
from rich.table import Table

from warehouse.db import Connection, qualified, wrap_errors
from warehouse.errors import SchemaOutdated
from warehouse.service import print_json

Row = dict[str, Any]

GOOD = {"Streaming", "Synced", "READY", "Ready"}
WAITING = {
    "Starting",
    "Snapshotting",
    "Paused",
    "PENDING",
    "TRAINING",
    "Pending",
    "Incomplete",
    "Stopped",
    "RETIRED",
    "Orphaned",
    "Removed",
}


@dataclass(frozen=True)
class Part:
    """One table of the status: what a row is called in JSON, where rows come from, the columns shown to people, the order.

    optional: shown only when asked for; passing: only where it has rows.
    """

    kind: str
    title: str
    relation: str
    columns: tuple[str, ...]
    order: tuple[str, ...]
    optional: bool = False
    passing: bool = False


PARTS = (
    Part(
        "source",
        "Sources",
        "warehouse.status",
        (
            "source",
            "state",
            "lag_ms",
            "committed_at",
            "binlog_runway",
            "tables",
            "tables_synced",
            "position",
            "warning",
            "reason",
        ),
        ("source",),
    ),
    Part(
        "table",
        "Tables",
        "warehouse.table_status",
        ("table_name", "state", "rows", "inserted", "updated", "deleted", "committed_at", "reason"),
        ("source", "table_name"),
        optional=True,
    ),
    Part(
        "copy",
        "Copies",
        "warehouse.copy_status",
        ("table_name", "percent", "rows_done", "rows_estimate", "rows_per_s", "time_left", "waits_for"),
        ("source", "table_name"),
        passing=True,
    ),
    Part(
        "model",
        "Models",
        "scorer.model_info",
        ("name", "version", "state", "rows_scored", "open_anomalies", "open_incidents", "scored_at", "reason"),
        ("name", "version"),
    ),
    Part(
        "view",
        "Derived views",
        "warehouse.view_watermarks",
        ("view", "state", "complete_to", "refreshed_at", "duration_ms", "refreshes", "reason"),
        ("view",),
    ),
)


def read_status(conn: Connection, *, tables: bool) -> Iterator[tuple[Part, list[Row]]]:
    """Each part with its rows, all columns; parts whose relation this schema lacks are left out.

    Raises:
        SchemaOutdated: the warehouse was never migrated.
    """
    with wrap_errors(), conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for part in PARTS:
            if part.optional and not tables:
                continue
            found = conn.execute("SELECT to_regclass(%s) IS NOT NULL", (part.relation,)).fetchone()
            if found == (True,):
                query = sql.SQL("SELECT * FROM {} ORDER BY {}").format(
                    qualified(part.relation), sql.SQL(", ").join(map(sql.Identifier, part.order))
                )
                with conn.cursor(row_factory=dict_row) as cursor:
                    yield part, cursor.execute(query).fetchall()
            elif part.kind == "source":
                raise SchemaOutdated("the warehouse has no schema of Tailrace yet", hint="Run: warehouse migrate")


def print_status(parts: Sequence[tuple[Part, list[Row]]], out: TextIO, *, as_json: bool) -> None:
    """One JSON object for each row, or the parts as people read them."""
    if not as_json:
        show_status(parts, out)
        return
    for part, rows in parts:
        for row in rows:
            print_json({"kind": part.kind, **row}, file=out)


def show_status(parts: Sequence[tuple[Part, list[Row]]], out: TextIO) -> None:
    """Draw the parts: coloured tables on a terminal, aligned plain text elsewhere."""
    console = Console(file=out) if out.isatty() else None
    for part, rows in parts:
        if part.passing and not rows:
            continue
        # A column that is empty in every row only costs width.
        columns = [column for column in part.columns if column == "state" or any(row.get(column) is not None for row in rows)]
        if not rows:
            columns = []
        if console is not None:
            console.print(_draw(part, columns, rows))
        else:
            out.write(_align(part, columns, rows))


def _draw(part: Part, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=part.title, title_justify="left", caption=None if rows else "none")
    for column in columns:
        number = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="ellipsis" if column == "position" else "fold")
    for row in rows:
        table.add_row(*(_colour(column, format_value(row[column])) for column in columns))
    return table


def _colour(column: str, text: str) -> str:
    escaped = text.replace("[", r"\[")
    if column != "state":
        return escaped
    return f"[{'green' if text in GOOD else 'yellow' if text in WAITING else 'bold red'}]{escaped}[/]"


def _align(part: Part, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"{part.title}: none\n"
    cells = [list(columns), *([format_value(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([part.title, *(f"  {line}" for line in lines)]) + "\n"


def format_value(value: object) -> str:
    """A value as people read it: instants to the second in UTC, spans in two units, numbers with few digits."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    if isinstance(value, timedelta):
        hours = value.total_seconds() / 3600
        if 0 <= hours < 1:
            return f"{int(60 * hours)} min {int(value.total_seconds() % 60)} s"
        return f"{value.days} d {int(hours % 24)} h" if hours >= 24 else f"{hours:.1f} h"
    if isinstance(value, float):
        return f"{value:.1f}"
    return " ".join(str(value).split())
