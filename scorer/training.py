"""From a training query to a READY version.

Owns reading the training rows, fitting, and the state changes PENDING, TRAINING, READY, FAILED. Never scores rows of a mirror.

Training is deterministic: the rows are put into one order (by their values) before the forest sees them, so the same rows
and the same seed give the same forest, whatever order Postgres returns them in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import psycopg
import structlog
from psycopg import sql
from psycopg.types.json import Jsonb

from scorer.arrays import Float8Array, parse_copy, register_arrays
from scorer.errors import BadParameter, BadRows, ForestNotFitted, TrainingFailed, TrainingWaits
from scorer.export import write_nodes
from scorer.fit import Trained, describe_scores, fit_rows
from scorer.judge import Rows, is_plain
from scorer.models import (
    INSTANT_TYPES,
    NUMBER_TYPES,
    QUERIES,
    Model,
    as_number,
    check_mirror,
    drop_superseded,
    read_mirrors,
    read_models,
    set_stage,
    set_state,
    sync_mirrors,
)
from warehouse.db import Connection, lock_number, wrap_errors

log = structlog.get_logger()

LOCK = "training"
_MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


def train_models(
    conn: Connection, threads: int, name: str | None = None
) -> list[tuple[Model, TrainingFailed | TrainingWaits | None]]:
    """Train every version that waits for it, or that a dead trainer left behind; one trainer at a time.

    Args:
        conn: in autocommit mode, of this trainer alone.
        threads: for the forest.
        name: only this model.

    Returns:
        Each version with None where it is READY now, else why it is not.
    """
    register_arrays(conn)
    results: list[tuple[Model, TrainingFailed | TrainingWaits | None]] = []
    with _hold_training(conn) as held:
        if not held:
            return results
        if name is None:
            conn.execute("SELECT scorer.retrain_due()")
        for model in drop_superseded(conn, read_models(conn, "PENDING", "TRAINING")):
            if name is not None and model.name != name:
                continue
            try:
                train_model(conn, model, threads)
            except TrainingWaits as error:
                set_state(conn, model, "PENDING", error.message)
                results.append((model, error))
            except TrainingFailed as error:
                set_state(conn, model, "FAILED", error.message)
                results.append((model, error))
            else:
                results.append((model, None))
    return results


@contextmanager
def _hold_training(conn: Connection) -> Iterator[bool]:
    """Hold the lock of trainers; False where another session has it."""
    number = lock_number(LOCK)
    with wrap_errors():
        row = conn.execute("SELECT pg_try_advisory_lock(%s)", (number,)).fetchone()
    held = bool(row and row[0])
    try:
        yield held
    finally:
        # A broken connection gave the lock back already.
        if held and not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s)", (number,))


def train_model(conn: Connection, model: Model, threads: int) -> None:
    """Train one version and deploy it.

    Raises:
        TrainingWaits: the tables are not there or not complete, or there are too few rows.
        TrainingFailed: the definition does not fit the tables, or the query fails.
    """
    started = time.perf_counter()
    check_relation(conn, model)
    with _explain(model):
        types = check_query(conn, model)
        set_state(conn, model, "TRAINING")
        set_stage(conn, model, "reading rows")
        rows = read_training_rows(conn, model, types)
    set_stage(conn, model, f"fitting {len(rows.features)} rows")
    try:
        trained = fit_rows(rows, model.parameters, threads)
    except (BadRows, BadParameter, ForestNotFitted) as error:
        raise TrainingFailed(error.message, hint=error.hint or "Create the model again.", model=model.name) from error
    set_stage(conn, model, "writing the forest")
    training_ms = (time.perf_counter() - started) * 1000
    if write_trained(conn, model, trained, training_ms):
        # Now, and not when the first rows are looked for: what comes from here on is new.
        sync_mirrors(conn, model)
        log.info(
            "train",
            model=model.name,
            version=model.version,
            rows=len(rows.features),
            threshold=trained.threshold and trained.threshold.value,
            duration_ms=round(training_ms, 1),
        )
    else:
        log.warning("train", model=model.name, version=model.version, outcome="the version was dropped or changed meanwhile")


@contextmanager
def _explain(model: Model) -> Iterator[None]:
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

    def number(column: str) -> sql.Composed:
        return sql.SQL("coalesce({}, 'NaN')").format(as_number(sql.Identifier("training", column), types[column]))

    company = _company(model)
    body = _raw(model.training_query)
    entity: sql.Composable = sql.SQL("''")
    if company and model.entity is not None:
        entity = sql.SQL("coalesce({}::text, '') COLLATE \"C\"").format(sql.Identifier("training", model.entity))
    order: sql.Composable = number(model.order) if company and model.order is not None else sql.SQL("0::float8")
    copy = sql.SQL(
        "COPY (SELECT dense_rank() OVER (ORDER BY {})::float8, {}, {} FROM (\n{}\n) AS training) TO STDOUT (FORMAT binary)"
    )
    features = sql.SQL(", ").join(number(feature) for feature in model.features)
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


def write_trained(conn: Connection, model: Model, trained: Trained, training_ms: float) -> bool:
    """Store what was trained and let this version score, or watch in the shadow of the deployed one, in one transaction.

    Returns:
        False where the version was dropped or changed meanwhile; then nothing is stored.
    """
    values = model.key | {
        "threshold": trained.threshold and trained.threshold.value,
        "threshold_rule": trained.threshold and Jsonb(trained.threshold.to_dict()),
        "scaler": Jsonb(trained.scaler.to_dict()),
        "expected_values": Float8Array(trained.expected),
        "rows_seen": trained.rows,
        "training_scores": Jsonb(describe_scores(trained.scores)),
        "training_ms": training_ms,
        "state": trained.state,
    }
    with wrap_errors(model=model.name), conn.transaction():
        conn.execute(QUERIES["lock_for_deploy"], values)
        if conn.execute(QUERIES["lock_training"], values).rowcount != 1:
            return False
        deployed = conn.execute(QUERIES["read_deployed"], values).fetchone()
        if model.parameters.get("deploy") == "shadow" and deployed is not None:
            conn.execute(QUERIES["retire_shadow"], values)
            conn.execute(QUERIES["begin_behind"], values | {"deployed": deployed[0]})
            conn.execute(QUERIES["set_trained"], values | {"new_state": "SHADOW"})
        else:
            conn.execute(QUERIES["retire_other"], values)
            conn.execute(QUERIES["close_retired_incidents"], values)
            conn.execute(QUERIES["set_trained"], values | {"new_state": "READY"})
        conn.execute(QUERIES["write_checkpoint"], values)
        if trained.forest is not None:
            write_nodes(conn, model, trained.forest)
        conn.execute("SELECT scorer.wake(%(model)s)", values)
    return True
