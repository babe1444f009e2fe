"""What a model learns from: whether its query will do, and the rows that it yields.

Owns everything that is asked of a training query before it runs, and reading its rows. Never fits anything.

The rows are put into one order (by their values) before a forest sees them, so the same rows and the same seed give the same
forest, whatever order Postgres returns them in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import psycopg
from psycopg import sql

from scorer.arrays import parse_copy
from scorer.errors import TrainingFailed, TrainingWaits
from scorer.judge import Rows, is_plain
from scorer.models import INSTANT_TYPES, NUMBER_TYPES, QUERIES, Model, as_entity, as_features, check_mirror, read_mirrors
from warehouse.db import Connection, wrap_errors

_MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


@contextmanager
def explain_errors(model: Model) -> Iterator[None]:
    """Turn what Postgres says of the query into waiting or failing; a server in trouble stays that."""
    try:
        with wrap_errors(model=model.name):
            yield
    except _MISSING as error:
        raise TrainingWaits(f"waits: {error.diag.message_primary}", model=model.name) from error
    except psycopg.Error as error:
        raise TrainingFailed(
            f"the training query fails: {error.diag.message_primary}",
            hint="Create the model again with a query that works.",
            model=model.name,
            sqlstate=error.sqlstate,
        ) from error


def check_relation(conn: Connection, model: Model) -> None:
    """See that there is something to score, where the model names tables.

    Raises:
        TrainingWaits: no mirror table matches.
        TrainingFailed: no table that matches can be scored.
    """
    if not model.patterns:
        return
    mirrors = read_mirrors(conn, model)
    if not mirrors:
        raise TrainingWaits(f"waits: no mirror table matches {', '.join(model.patterns)}", model=model.name)
    reasons = {mirror.name: check_mirror(model, mirror) for mirror in mirrors}
    if all(reasons.values()):
        table, reason = next(iter(reasons.items()))
        raise TrainingFailed(
            f"no table of the relation can be scored; {table}: {reason}", hint="Create the model again.", model=model.name
        )


def check_query(conn: Connection, model: Model) -> dict[str, str]:
    """See that the query is one SELECT with the features as numbers, over complete tables, with enough rows.

    Returns:
        The type of each feature.

    Raises:
        TrainingWaits, TrainingFailed: as train_model.
        psycopg.Error: what Postgres has against the query.
    """
    # A statement is only prepared as a whole: what is two statements, or not a query, is refused before anything runs.
    body = model.training_query.encode()
    for result in (conn.pgconn.prepare(b"", body), conn.pgconn.describe_prepared(b"")):
        if result.error_message:
            raise psycopg.errors.error_from_result(result)
    columns = {(result.fname(i) or b"").decode(): result.ftype(i) for i in range(result.nfields)}
    named = [*model.features, *_company(model)]
    missing = [column for column in named if column not in columns]
    if missing:
        raise TrainingFailed(f"the training query yields no column {', '.join(missing)}", model=model.name)
    types: list[tuple[str, str]] = conn.execute(
        "SELECT f, format_type(o, NULL) FROM unnest(%s::text[], %s::oid[]) AS t (f, o)",
        (named, [columns[column] for column in named]),
    ).fetchall()
    textual = [f"{column} ({kind})" for column, kind in types[: len(model.features)] if kind not in NUMBER_TYPES]
    if _company(model) and model.order is not None and dict(types)[model.order] not in NUMBER_TYPES | INSTANT_TYPES:
        textual.append(f"{model.order} (the order column)")
    if textual:
        raise TrainingFailed(f"not a number in the training query: {', '.join(textual)}", model=model.name)
    with conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        plan = conn.execute(sql.SQL("EXPLAIN (VERBOSE, FORMAT JSON) {}").format(_raw(model.training_query))).fetchone()
        assert plan is not None, "EXPLAIN yields a row"
        unfinished = conn.execute(QUERIES["tables_not_synced"], {"tables": sorted(_find_tables(plan[0]))}).fetchall()
        if unfinished:
            table, state, reason = unfinished[0]
            raise TrainingWaits(f"waits: {table} is {state}{f' ({reason})' if reason else ''}", model=model.name)
        wanted = model.parameters["min_rows"]
        count = conn.execute(
            sql.SQL("SELECT count(*) FROM (SELECT FROM (\n{}\n) AS training LIMIT {}) AS first_rows").format(
                _raw(model.training_query), sql.Literal(wanted)
            )
        ).fetchone()
    if count is None or count[0] < wanted:
        raise TrainingWaits(
            f"waits: the training query yields {count[0] if count else 0} rows, the parameter min_rows asks for {wanted}",
            model=model.name,
        )
    return dict(types)


def _raw(query: str) -> sql.SQL:
    """The training query as it stands: SQL is what a model is defined by; Postgres has parsed it as one statement."""
    return sql.SQL(cast(Any, query))


def _find_tables(plan: Any) -> Iterator[str]:
    """schema.table of every scan in a plan."""
    if isinstance(plan, list):
        for part in plan:
            yield from _find_tables(part)
    elif isinstance(plan, dict):
        if "Relation Name" in plan:
            yield f"{plan.get('Schema')}.{plan['Relation Name']}"
        for part in plan.values():
            if isinstance(part, list | dict):
                yield from _find_tables(part)


def _company(model: Model) -> list[str]:
    """The entity and the order column, where the model needs them of its training rows."""
    if is_plain(model.parameters):
        return []
    return [column for column in (model.entity, model.order) if column is not None]


def read_training_rows(conn: Connection, model: Model, types: Mapping[str, str]) -> Rows:
    """The training rows, NULL as NaN, in an order that follows from their values only; entities and order where needed."""
    company = _company(model)
    body = _raw(model.training_query)
    entity = sql.SQL('{} COLLATE "C"').format(as_entity("training", model.entity if company else None))
    order: sql.Composable = sql.SQL("0::float8")
    if company and model.order is not None:
        order = as_features("training", [model.order], types)
    copy = sql.SQL(
        "COPY (SELECT dense_rank() OVER (ORDER BY {})::float8, {}, {} FROM (\n{}\n) AS training) TO STDOUT (FORMAT binary)"
    )
    features = as_features("training", model.features, types)
    with conn.transaction(), conn.cursor() as cursor:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        names = conn.execute(sql.SQL("SELECT DISTINCT {} FROM (\n{}\n) AS training ORDER BY 1").format(entity, body)).fetchall()
        with cursor.copy(copy.format(entity, order, features, body)) as stream:
            data = b"".join(bytes(part) for part in stream)
    found = parse_copy(data, 2 + len(model.features))
    # By the order column, then by entity, then by the values; the last key given to lexsort counts first.
    found = found[np.lexsort((*found[:, :1:-1].T, found[:, 0], found[:, 1]))]
    whose, times = found[:, 0].astype(np.int64) - 1, found[:, 1]
    return Rows(
        found[:, 2:],
        [names[i][0] for i in whose.tolist()] if company and model.entity is not None else None,
        np.where(np.isnan(times), -np.inf, times) if company and model.order is not None else None,
    )
