"""The verbs that the warehouse offers as SQL functions, called from the command line.

Owns the call and what its refusals mean. The functions themselves stand in the migrations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from warehouse.db import Connection, wrap_errors
from warehouse.errors import SchemaOutdated, SettingsError


def call_verb(conn: Connection, function: str, *arguments: str | float | Jsonb | Sequence[str] | None) -> object:
    """Call warehouse.FUNCTION and give what it returns.

    Args:
        arguments: numbers, JSON, lists of texts, or text, of which the third one is an interval.

    Raises:
        SettingsError: an argument names nothing that there is.
        SchemaOutdated: the warehouse has not been migrated.
    """
    types = [_type_of(each, i) for i, each in enumerate(arguments)]
    places = sql.SQL(", ").join([sql.SQL("%s::{}").format(sql.SQL(name)) for name in types])
    try:
        with wrap_errors():
            row = conn.execute(
                sql.SQL("SELECT {}({})").format(sql.Identifier("warehouse", function), places), arguments
            ).fetchone()
    except psycopg.errors.RaiseException as error:
        # The functions raise only for arguments that name nothing.
        raise SettingsError(error.diag.message_primary or str(error), hint=error.diag.message_hint or "") from error
    except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName) as error:
        raise SchemaOutdated("the warehouse has no schema of Tailrace yet", hint="Run: warehouse migrate") from error
    return None if row is None else row[0]


def request_copy(conn: Connection, table: str, low: str | None, high: str | None) -> None:
    """Ask for a copy of a table, or of the keys between two bounds, each the text of a JSON object.

    Raises:
        SettingsError: there is no such table, or a bound is none of its key.
    """
    try:
        bounds = [Jsonb(None if text is None else json.loads(text)) for text in (low, high)]
    except json.JSONDecodeError as error:
        hint = """A bound is an object of the key's first columns: '{"unit": 7}'"""
        raise SettingsError(f"a bound is no JSON: {error}", hint=hint) from None
    call_verb(conn, "resync", table, *bounds)


def add_bounds(parser: argparse.ArgumentParser) -> None:
    """The options for a range of keys."""
    what = "only from this key on, a JSON object of the key's first columns, as '{\"unit\": 7}'"
    parser.add_argument("--from", dest="low", metavar="KEY", help=what)
    parser.add_argument("--to", dest="high", metavar="KEY", help="only up to this key, which is included")


def _type_of(argument: object, place: int) -> LiteralString:
    if isinstance(argument, Jsonb):
        return "jsonb"
    if isinstance(argument, bool):
        return "bool"
    if isinstance(argument, float):
        return "float8"
    if isinstance(argument, int):
        return "int8"
    if argument is None or isinstance(argument, list | tuple):
        return "text[]"
    return "interval" if place == 2 else "text"
