"""Which of some tuples Postgres refuses by themselves: tried in a temporary table like the mirror, which is all it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from replicator.copy_binary import copy_into, copy_tuples
from replicator.mirror import MirrorTable
from replicator.quarantine import MOST_REFUSED, ROW_REFUSALS
from warehouse.db import Connection, wrap_errors


def find_refused(
    conn: Connection, table: MirrorTable, count: int, tuples: Callable[[NDArray[np.int64]], Any]
) -> dict[int, str]:
    """Which tuples are refused, and why; empty where these are too many to be single rows, or all are welcome.

    Args:
        count: how many tuples there are. tuples: the bytes of the tuples with these numbers, from 0 on.
    """
    refused: dict[int, str] = {}
    if not count:
        return refused
    with wrap_errors(table=table.name), conn.transaction(force_rollback=True):
        make_probe(conn, table, with_indexes=True)
        pending: list[NDArray[np.int64]] = [np.arange(count)]
        while pending and len(refused) <= MOST_REFUSED:
            part = pending.pop()
            try:
                with conn.transaction(force_rollback=True):
                    copy_tuples(conn, copy_into_probe(table), tuples(part))
            except (*ROW_REFUSALS, psycopg.errors.UniqueViolation) as error:
                if len(part) > 1:
                    pending += [part[: len(part) // 2], part[len(part) // 2 :]]
                elif not isinstance(error, psycopg.errors.UniqueViolation):
                    refused[int(part[0])] = explain(error)
    return refused if len(refused) <= MOST_REFUSED else {}


def make_probe(conn: Connection, table: MirrorTable, *, with_indexes: bool = False) -> None:
    """Make pg_temp.probe, with the columns of a mirror."""
    conn.execute("DROP TABLE IF EXISTS pg_temp.probe")
    parts = (table.identifier, sql.SQL("INCLUDING INDEXES" if with_indexes else ""))
    conn.execute(sql.SQL("CREATE TEMP TABLE probe (LIKE {} {}) ON COMMIT DROP").format(*parts))


def copy_into_probe(table: MirrorTable) -> sql.Composed:
    """The statement that fills pg_temp.probe with tuples."""
    return copy_into(sql.Identifier("pg_temp", "probe"), [*(c["mirror_name"] for c in table.columns), *table.own_columns])


def explain(error: BaseException) -> str:
    """Why, in one line."""
    return f"Postgres refuses the row: {str(error).strip().splitlines()[0]}"
