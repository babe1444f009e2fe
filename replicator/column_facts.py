"""What the source says now about a table's columns, their defaults included.

Now may be later than the stream stands, so every answer comes with the position up to which it may hold something newer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from replicator.position import Position
from replicator.source import Source
from replicator.typemap import Column, Kind

_NUMBERS = frozenset({Kind.TINY, Kind.SHORT, Kind.INT24, Kind.LONG, Kind.LONGLONG, Kind.YEAR, Kind.DECIMAL})
_TEXTS = frozenset({Kind.TEXT, Kind.ENUM, Kind.SET, Kind.UUID, Kind.INET})
_LITERAL = re.compile(r"'(?:[^']|'')*'|[-+]?[0-9.]+(?:e[-+]?[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Default:
    """A column's default.

    Attributes:
        text: as the source lists it, without quotes; None where it is no constant.
        value: as Postgres reads it; None where it cannot be had.
    """

    text: str | None
    value: str | None


@dataclass(frozen=True)
class Facts:
    """A table as it is now.

    Attributes:
        columns: by name, in the source's order. key: names of the columns that identify a row.
        defaults: of the columns that have one other than NULL.
        position: read after all of it; nothing behind it had been committed then.
    """

    columns: Mapping[str, Column]
    key: tuple[str, ...]
    defaults: Mapping[str, Default]
    position: Position

    def is_current(self, at: Position) -> bool:
        """True where nothing was written to the binlog between that position and the answers."""
        return (at.file, at.pos) == (self.position.file, self.position.pos)


def read_facts(source: Source, name: str) -> Facts | None:
    """The facts about a table; None where there is no such table."""
    found = source.describe(name)
    if found is None:
        return None
    columns = {column.name: column for column in found.columns}
    texts = _default_texts(source, name)
    constant = [columns[column] for column, text in texts.items() if text is not None and column in columns]
    values = _default_values(source, name, constant)
    defaults = {column: Default(text, values.get(column)) for column, text in texts.items()}
    return Facts(columns, tuple(found.columns[i].name for i in found.key), defaults, source.position())


def _default_texts(source: Source, name: str) -> dict[str, str | None]:
    """The defaults as information_schema lists them; None for expressions and counters."""
    mariadb = source.flavor == "mariadb"
    texts: dict[str, str | None] = {}
    for column, text, extra in source.query(
        "SELECT COLUMN_NAME, COLUMN_DEFAULT, LOWER(EXTRA) FROM information_schema.COLUMNS"
        " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND COLUMN_DEFAULT IS NOT NULL",
        name.split(".", 1),
    ):
        if mariadb and text == "NULL":
            continue
        is_constant = "default_generated" not in extra and "generated" not in extra and "auto_increment" not in extra
        if mariadb:
            # which lists an expression, where a constant is a quoted text or a number
            is_constant = is_constant and _LITERAL.fullmatch(text) is not None
            text = text[1:-1].replace("''", "'") if text.startswith("'") else text
        elif "on update" in extra and text.upper().startswith("CURRENT_TIMESTAMP"):
            is_constant = False
        texts[str(column)] = str(text) if is_constant else None
    return texts


def _default_values(source: Source, name: str, columns: list[Column]) -> dict[str, str]:
    """The defaults' values, evaluated by the server; without a row at the source there are none."""
    if not columns:
        return {}
    quoted = [f"DEFAULT(`{column.name.replace('`', '``')}`)" for column in columns]
    # A FLOAT is printed with fewer digits than it has.
    parts = [part + " + 0e0" if column.kind is Kind.FLOAT else part for part, column in zip(quoted, columns, strict=True)]
    table = ".".join(f"`{part.replace('`', '``')}`" for part in name.split(".", 1))
    rows = source.query(f"SELECT {', '.join(parts)} FROM {table} LIMIT 1")  # noqa: S608 - identifiers only, quoted
    values = [_as_text(column.kind, value) for column, value in zip(columns, rows[0], strict=True)] if rows else []
    return {column.name: value for column, value in zip(columns, values, strict=False) if value is not None}


def _as_text(kind: Kind, value: Any) -> str | None:
    """A value as Postgres reads it; None for kinds and values that are left to a copy."""
    if kind in _NUMBERS and isinstance(value, int | Decimal):
        return format(value, "f") if isinstance(value, Decimal) else str(value)
    if kind in (Kind.FLOAT, Kind.DOUBLE) and isinstance(value, float):
        return repr(value)
    if kind in _TEXTS and isinstance(value, str) and "\0" not in value:
        return value
    if kind is Kind.BYTES and isinstance(value, bytes):
        return "\\x" + value.hex()
    if kind is Kind.DATE and isinstance(value, date):
        return value.isoformat()
    if kind in (Kind.DATETIME, Kind.TIMESTAMP) and isinstance(value, datetime):
        return value.isoformat(" ")
    return None
