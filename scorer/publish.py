"""Forests as rows, for whoever asks in SQL: there for the versions that may be asked, and not too old.

Owns when scorer.forest_nodes is written afresh and when it is cleared. Never changes a checkpoint.
"""

from __future__ import annotations

import structlog

from scorer.arrays import register_arrays
from scorer.decisions import DecisionForest
from scorer.detector import Detector
from scorer.export import write_nodes
from scorer.forest import RandomCutForest
from scorer.imports import write_imported_nodes
from scorer.judge import has_own_forests, is_plain
from scorer.models import QUERIES, Model, read_models
from scorer.restore import read_state
from warehouse.db import Connection, wrap_errors

log = structlog.get_logger()


def write_missing_nodes(conn: Connection, model: Model) -> None:
    """Write the forest of a version that has none as rows: it was retired for long, and is deployed again.

    Forests of single entities are never rows: a hundred of them would be a hundred times 23 MB.
    """
    if has_own_forests(model.parameters):
        return
    with wrap_errors(model=model.name):
        if conn.execute(QUERIES["has_nodes"], model.key).fetchone() is None:
            _write(conn, model)


def publish_forests(conn: Connection) -> int:
    """Write the forests of models that learn afresh from their checkpoints, and clear those of versions long retired.

    Returns:
        How many forests were written.
    """
    register_arrays(conn)
    written = 0
    with wrap_errors():
        for model in read_models(conn, "READY", "SHADOW"):
            stale = conn.execute(QUERIES["stale_nodes"], model.key).fetchone() is not None
            if stale and not has_own_forests(model.parameters):
                _write(conn, model)
                written += 1
        cleared = conn.execute(QUERIES["prune_nodes"]).rowcount
    if written or cleared:
        log.info("publish", forests=written, nodes_cleared=cleared)
    return written


def _write(conn: Connection, model: Model) -> None:
    with conn.transaction():
        state, batch, _ = read_state(conn, model)
        conn.execute(QUERIES["clear_nodes"], model.key)
        if model.kind == "imported":
            write_imported_nodes(conn, model.name, model.version, DecisionForest.from_json(state.decode()))
        elif is_plain(model.parameters):
            write_nodes(conn, model, RandomCutForest.from_bytes(state))
        elif state:
            write_nodes(conn, model, Detector.from_bytes(state).forest)
        conn.execute(QUERIES["note_nodes"], model.key | {"batch": batch})
