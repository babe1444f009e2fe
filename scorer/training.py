"""From a training query to a READY version.

Owns fitting, and the state changes PENDING, TRAINING, READY, FAILED. Never reads training rows itself (`scorer.history` does),
never scores rows of a mirror.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from psycopg.types.json import Jsonb

from scorer.arrays import Float8Array, register_arrays
from scorer.errors import BadParameter, BadRows, ForestNotFitted, TrainingFailed, TrainingWaits
from scorer.export import write_nodes
from scorer.fit import Trained, describe_scores, fit_entities, fit_rows
from scorer.history import check_query, check_relation, explain_errors, read_training_rows
from scorer.judge import Rows, has_own_forests
from scorer.models import QUERIES, Model, drop_superseded, read_models, set_stage, set_state, sync_mirrors
from scorer.restore import TrainingStore
from scorer.results import close_retired
from warehouse.db import Connection, lock_number, wrap_errors

log = structlog.get_logger()

LOCK = "training"


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
    with explain_errors(model):
        types = check_query(conn, model)
        set_state(conn, model, "TRAINING")
        set_stage(conn, model, "reading rows")
        rows = read_training_rows(conn, model, types)
    set_stage(conn, model, f"fitting {len(rows.features)} rows")
    try:
        trained = _fit(conn, model, rows, threads)
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


def _fit(conn: Connection, model: Model, rows: Rows, threads: int) -> Trained:
    if not has_own_forests(model.parameters):
        return fit_rows(rows, model.parameters, threads)

    def note(done: int, wanted: int) -> None:
        set_stage(conn, model, f"fitting {len(rows.features)} rows, {done} of {wanted} entities")

    with wrap_errors(model=model.name):
        # What a trainer left behind that did not come to its end.
        conn.execute(QUERIES["clear_entity_forests"], model.key)
    return fit_entities(rows, model.parameters, threads, TrainingStore(conn, model), note)


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
            close_retired(conn, values, tell=False)
            conn.execute(QUERIES["begin_behind"], values | {"deployed": deployed[0]})
            conn.execute(QUERIES["set_trained"], values | {"new_state": "SHADOW"})
        else:
            conn.execute(QUERIES["retire_other"], values)
            close_retired(conn, values, tell=True)
            conn.execute(QUERIES["set_trained"], values | {"new_state": "READY"})
        conn.execute(QUERIES["write_checkpoint"], values)
        if trained.forest is not None:
            write_nodes(conn, model, trained.forest)
        conn.execute("SELECT scorer.wake(%(model)s)", values)
    return True
