"""Why a row scores as it does: the score split over the features.

Owns the lookup of one row and the shape of the answer. Never writes.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from psycopg.types.json import Jsonb

from scorer.errors import BadParameter, BadRows
from scorer.follow import Follower
from scorer.judge import PlainJudge
from scorer.models import Model, as_entity, as_features, check_mirror, read_mirrors
from scorer.restore import read_judge
from warehouse.db import Connection, wrap_errors

Subject = dict[str, Any] | list[float | None]


def parse_subject(text: str) -> Subject:
    """A row's key (a JSON object) or its features (a JSON array of numbers and nulls, in the model's order).

    Raises:
        BadRows: it is neither.
    """
    try:
        subject = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRows(
            f"neither a key nor features: {error.msg}", hint='Give a key {"id": 7} or features [0.1, null, 3].'
        ) from error
    if isinstance(subject, dict) and subject:
        return subject
    if isinstance(subject, list) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in subject
    ):
        return subject
    raise BadRows("neither a key nor features", hint='Give a key {"id": 7} or features [0.1, null, 3].')


def explain_row(conn: Connection, model: Model, subject: Subject, entity: str = "") -> dict[str, Any]:
    """Score one row with a READY model and split the score.

    Args:
        entity: whose features these are, where the subject is no key.

    Returns:
        model, version, score, threshold, grade, direction, and features by rank, as in scorer.anomaly_features.

    Raises:
        BadRows: no such row, or not as many values as the model has features.
        BadParameter: the model was imported.
    """
    values, whose = read_row(conn, model, subject) if isinstance(subject, dict) else (np.array(subject, np.float64), entity)
    if len(values) != len(model.features):
        raise BadRows(
            f"{len(values)} values given, the model has {len(model.features)} features",
            hint=f"In order: {', '.join(model.features)}",
        )
    judge = read_judge(conn, model, 1)
    if not isinstance(judge, PlainJudge | Follower):
        raise BadParameter(
            f"model {model.name} was imported: it predicts and does not score", hint="scorer predict", parameter="model"
        )
    if isinstance(judge, PlainJudge):
        scaled = judge.scaler.transform(values[np.newaxis])
        score, threshold = float(judge.forest.score_samples(scaled)[0]), judge.threshold.value
        high, low = (part[0] for part in judge.forest.explain(scaled))
        grade, expected = float(judge.threshold.grade(score)), judge.expected
    else:
        names = None if model.entity is None else [whose]
        found = judge.detector_of(whose).rescore(values[np.newaxis], names, explain_all=True)
        if not len(found.explained):
            raise BadRows(
                "the row has no score by itself", hint="The model needs more rows of the entity for a shingle or a baseline."
            )
        score, threshold, grade = float(found.scores[0]), float(found.thresholds[0]), float(found.grades[0])
        high, low, expected = found.high[0], found.low[0], found.expected[0]
    attribution = high + low
    order = np.argsort(-attribution, kind="stable")
    return {
        "model": model.name,
        "version": model.version,
        "score": score,
        "threshold": threshold,
        "grade": grade,
        "direction": "high" if high.sum() >= low.sum() else "low",
        "features": [
            {
                "rank": rank,
                "feature": model.features[i],
                "attribution": float(attribution[i]),
                "direction": "high" if high[i] >= low[i] else "low",
                "value": _or_none(values[i]),
                "expected_value": _or_none(expected[i]),
            }
            for rank, i in enumerate(order, start=1)
        ],
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def read_row(conn: Connection, model: Model, key: dict[str, Any]) -> tuple[NDArray[np.float64], str]:
    """The features of the row with this key in the first of the model's tables that has it, NULL as NaN, and its entity.

    Raises:
        BadRows: no table has it.
    """
    for mirror in read_mirrors(conn, model):
        if check_mirror(model, mirror) is not None or set(mirror.key_columns) != key.keys():
            continue
        features = as_features("m", model.features, mirror.columns)
        # The key takes the types of the table's own columns.
        query = sql.SQL(
            "SELECT {features}, {entity} FROM {table} AS m"
            " JOIN jsonb_populate_record(NULL::{table}, %s) AS k ON ({ours}) = ({theirs})"
        ).format(
            features=features,
            entity=as_entity("m", model.entity),
            table=sql.Identifier(mirror.schema, mirror.table),
            ours=sql.SQL(", ").join(sql.Identifier("m", column) for column in mirror.key_columns),
            theirs=sql.SQL(", ").join(sql.Identifier("k", column) for column in mirror.key_columns),
        )
        try:
            with wrap_errors(table=mirror.name):
                row = conn.execute(query, (Jsonb(key),)).fetchone()
        except psycopg.errors.DataError as error:
            raise BadRows(f"the key does not fit {mirror.name}: {error.diag.message_primary}") from error
        if row is not None:
            return np.array(row[:-1], np.float64), row[-1]
    raise BadRows("no table of the model has a row with this key", hint=f"Tables: {', '.join(model.patterns)}")
