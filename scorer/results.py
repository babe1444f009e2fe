"""What a batch writes besides scores: incidents, anomalies with their features, and the notifications.

Owns these writes, inside the caller's transaction. Never judges a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.arrays import Float8Array, Int4Array, Int8Array
from scorer.decisions import DecisionForest
from scorer.incidents import Incident, Row, follow_rows
from scorer.judge import Verdicts
from scorer.models import QUERIES, Model
from warehouse.db import Connection

Floats = NDArray[np.float64]

PAYLOAD_BYTES = 7900  # Postgres takes less than 8000


@dataclass
class Batch:
    """What one batch did.

    Attributes:
        more: whether it was cut off at its size, so that there may be more.
        rows, deletes, anomalies, cleared: how many.
        opened, closed: incidents that were opened, and closed.
    """

    more: bool = False
    rows: int = 0
    deletes: int = 0
    anomalies: int = 0
    cleared: int = 0
    opened: list[Incident] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)


def follow_incidents(conn: Connection, batch: Batch, values: dict[str, Any], model: Model, verdicts: Verdicts) -> list[int]:
    """Open, continue and close incidents; returns the id of each abnormal row's incident."""
    known = {row[1]: Incident(*row) for row in conn.execute(QUERIES["read_open_incidents"], values).fetchall()}
    if not known and not len(verdicts.abnormal):
        return []
    asked = {"entities": list(known), "abnormal": Int4Array(verdicts.abnormal + 1)}
    found = conn.execute(QUERIES["read_batch_rows"], asked).fetchall()
    numbers = np.array([row[0] for row in found], np.int64) - 1
    scores, thresholds = verdicts.scores[numbers], verdicts.thresholds[numbers]
    abnormal = np.isin(numbers, verdicts.abnormal)
    # A row above the threshold that is no anomaly (a dead band) is not ordinary either.
    ordinary = ~abnormal & (scores <= (1.0 - model.parameters.get("hysteresis", 0.0)) * thresholds)
    rows = (
        Row(entity, seq, order_value, score, is_abnormal, is_ordinary, committed_at)
        for (_, entity, seq, order_value, committed_at), score, is_abnormal, is_ordinary in zip(
            found, scores.tolist(), abnormal.tolist(), ordinary.tolist(), strict=True
        )
        if score == score
    )
    changed, of_anomalies = follow_rows(known, rows, model.parameters["close_after_rows"])
    batch.opened = [incident for incident in changed if incident.id is None]
    ids = conn.execute(QUERIES["reserve_incidents"], {"count": len(batch.opened)}).fetchall()
    for incident, (number,) in zip(batch.opened, ids, strict=True):
        incident.id = number
    if changed:
        conn.execute(QUERIES["write_incidents"], values | _as_columns(changed))
    batch.closed = [incident.id for incident in changed if incident.closed and incident.id is not None]
    return [incident.id for incident in of_anomalies if incident.id is not None]


def _as_columns(incidents: Sequence[Incident]) -> dict[str, Any]:
    def whole(name: str) -> Int8Array:
        return Int8Array(np.array([getattr(incident, name) or 0 for incident in incidents], np.int64))

    def real(name: str) -> Float8Array:
        return Float8Array(np.array([getattr(incident, name) for incident in incidents], np.float64))

    return {
        "ids": whole("id"),
        "entities": [incident.entity for incident in incidents],
        "first_seqs": whole("first_seq"),
        "last_seqs": whole("last_seq"),
        "first_orders": real("first_order_value"),
        "last_orders": real("last_order_value"),
        "anomalies": whole("anomalies"),
        "ordinary_rows": whole("ordinary_rows"),
        "peaks": real("peak_score"),
        "peak_seqs": whole("peak_seq"),
        "peak_orders": real("peak_order_value"),
        "first_commits": [incident.first_committed_at for incident in incidents],
        "last_commits": [incident.last_committed_at for incident in incidents],
        "closed": whole("closed"),
    }


def write_anomalies(
    conn: Connection, values: dict[str, Any], model: Model, rows: Floats, verdicts: Verdicts, incidents: Sequence[int | None]
) -> None:
    """Write the anomalies and, for each, what every feature contributed; `rows`: features of all rows of the batch."""
    abnormal, high, low = verdicts.abnormal, verdicts.high, verdicts.low
    directions = np.where(high.sum(axis=1) >= low.sum(axis=1), "high", "low").tolist()
    given = {
        "rows": Int4Array(abnormal + 1),
        "scores": Float8Array(verdicts.scores[abnormal]),
        "thresholds": Float8Array(verdicts.thresholds[abnormal]),
        "grades": Float8Array(verdicts.grades[abnormal]),
        "directions": directions,
        "incidents": list(incidents),
    }
    placed = conn.execute(QUERIES["write_anomalies"], values | given).fetchall()
    ids = np.array([anomaly for _, anomaly in placed], np.int64)
    attribution = high + low
    # Ties go to the column that the model names first.
    ranks = np.argsort(np.argsort(-attribution, axis=1, kind="stable"), axis=1) + 1
    at, feature = np.nonzero(attribution > 0)
    conn.execute(QUERIES["clear_features"], {"anomalies": Int8Array(ids)})
    conn.execute(
        QUERIES["write_features"],
        {
            "names": list(model.features),
            "anomalies": Int8Array(ids[at]),
            "features": Int4Array(feature + 1),
            "ranks": Int4Array(ranks[at, feature]),
            "attributions": Float8Array(attribution[at, feature]),
            "strengths": Float8Array(np.abs(high - low)[at, feature]),
            "highs": Int4Array((high >= low)[at, feature]),
            "values": Float8Array(rows[abnormal][at, feature]),
            "expected": Float8Array(verdicts.expected[at, feature]),
        },
    )


def write_predictions(conn: Connection, values: dict[str, Any], forest: DecisionForest, rows: Floats) -> None:
    """Write what an imported forest predicts of the rows of the batch."""
    outputs = forest.predict(rows)
    given = {"outputs": Float8Array(outputs.ravel()), "width": outputs.shape[1], "classes": forest.classes, "labels": None}
    if forest.classes is not None:
        given["labels"] = Int4Array(outputs.argmax(axis=1) + 1)
    conn.execute(QUERIES["write_predictions"], values | given)


def notify(conn: Connection, model: Model, batch: Batch) -> None:
    """Tell who listens of the anomalies and incidents of a batch."""
    if batch.anomalies or batch.cleared:
        conn.execute(QUERIES["notify"], {"payload": make_payload(model, batch)})
    opened = [incident.id for incident in batch.opened]
    if opened or batch.closed:
        conn.execute(QUERIES["notify_incidents"], {"opened": opened, "closed": batch.closed})


def close_retired(conn: Connection, values: dict[str, Any], *, tell: bool) -> None:
    """Close what retired versions of a model left open; with `tell`, say so to who listens: a shadow's were never told of."""
    closed = [number for (number,) in conn.execute(QUERIES["close_retired_incidents"], values).fetchall()]
    if closed and tell:
        conn.execute(QUERIES["notify_incidents"], {"opened": [], "closed": closed})


def make_payload(model: Model, batch: Batch) -> str:
    """The JSON text of NOTIFY anomalies: counts, and the incidents that were opened, worst first, as many as fit."""
    body: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "anomalies": batch.anomalies,
        "cleared": batch.cleared,
        "incidents_opened": len(batch.opened),
        "incidents": [],
    }
    room = PAYLOAD_BYTES - len(json.dumps(body))
    for incident in sorted(batch.opened, key=lambda incident: -incident.peak_score):
        item = {
            "id": incident.id,
            "entity": incident.entity,
            "score": incident.peak_score,
            "order_value": incident.first_order_value,
        }
        room -= len(json.dumps(item)) + 2
        if room < 0:
            break
        body["incidents"].append(item)
    return json.dumps(body)
