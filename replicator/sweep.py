"""Takes away the rows of a mirror that a copy did not find at the source; see copies.py.

Owns which rows those are, and the statements. They are looked for over a connection of its own, because that may take long, and
deleted by the stream's, a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from replicator.copy_plan import TableCopy
from replicator.mirror import QUERIES, key_object
from warehouse.db import Connection

_MOST_ROWS = 5_000


def find_left(conn: Connection, copy: TableCopy) -> list[str]:
    """Where rows are that neither the copy nor the stream has written since it began, as ctids, the oldest first; some of them.

    Over any connection: it may take long, where what was rewritten is not vacuumed away yet. Only once all is written.
    """
    statement = sql.SQL("SELECT ctid::text FROM {} m WHERE {} ORDER BY _seq LIMIT {}")
    return [ctid for (ctid,) in conn.execute(statement.format(copy.table.identifier, _is_left(copy), sql.Literal(_MOST_ROWS)))]


def sweep(conn: Connection, source: str, copy: TableCopy, seq: int, left: Sequence[str]) -> int:
    """Delete rows that were found to be left, and record their keys, in one transaction; how many.

    Those that something else has replaced or moved since are no longer there.
    """
    table = copy.table
    statement = sql.SQL(
        "WITH gone AS (DELETE FROM {mirror} m WHERE ctid = ANY (%s::tid[]) AND {left} RETURNING {key} AS key)"
        " INSERT INTO warehouse.deleted_rows (source, table_name, key, seq)"
        " SELECT {source}, {table}, key, {seq} + row_number() OVER () FROM gone"
    ).format(
        mirror=table.identifier, left=_is_left(copy), key=key_object(table, sql.SQL("m.")), source=sql.Literal(source),
        table=sql.Literal(table.name), seq=sql.Literal(seq),
    )  # fmt: skip
    with conn.transaction():
        count = conn.execute(statement, [list(left)]).rowcount
        facts = {"source": source, "table": table.name, "rows": -count, "inserted": 0, "raw_rows": 0}
        for name in ("count_copied", "write_seq", "notify") if count else ():
            conn.execute(QUERIES[name], facts | {"seq": seq + count})
    return count


def _is_left(copy: TableCopy) -> sql.Composable:
    """Whether a row should have been written since the copy began, and was not."""
    where: list[sql.Composable] = [sql.SQL("_seq <= {}").format(sql.Literal(copy.base_seq))]
    for bound, sign in ((copy.low, ">="), (copy.high, "<=")):
        if bound:
            where.append(_bound(copy, bound, sign))
    return sql.SQL(" AND ").join(where)


def _bound(copy: TableCopy, bound: dict[str, Any], sign: str) -> sql.Composable:
    described = {column["name"]: column for column in copy.table.columns}
    assert copy.order is not None, "bounds are values of an order"
    columns = [described[each.name] for each in copy.order.columns[: len(bound)]]
    names = sql.SQL(", ").join([sql.Identifier(column["mirror_name"]) for column in columns])
    values = sql.SQL(", ").join(
        [sql.SQL("CAST({} AS {})").format(sql.Literal(str(bound[c["name"]])), sql.SQL(_mirror_type(c))) for c in columns]
    )
    return sql.SQL("ROW({}) {} ROW({})").format(names, sql.SQL(sign), values)


def _mirror_type(column: dict[str, str]) -> Any:
    """A column's type as SQL; the text comes from typemap.py."""
    return column["mirror_type"]
