"""From training rows to what a version needs to score: forest or detector, scale, threshold.

Owns the fit. Never reads or writes the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.detector import Detector
from scorer.entities import EntityJudge, Store, Waiting
from scorer.errors import BadRows
from scorer.features import RobustScaler
from scorer.forest import RandomCutForest
from scorer.judge import UNSCALED_CLIP, Rows, fit_detector, is_plain, make_detector
from scorer.threshold import Threshold, fit_threshold

Floats = NDArray[np.float64]

_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.995, 0.999)


@dataclass(frozen=True)
class Trained:
    """What training yields.

    Attributes:
        state: the checkpoint; empty for a detector that begins with nothing.
        forest: None where it knows no row yet, or where each entity has one.
        expected: shape (features,), medians of the training rows.
        threshold: None where it follows the stream.
        scores: honest scores of the training rows, shape (n,), float64, without those that make no point.
        rows: training rows.
    """

    state: bytes
    forest: RandomCutForest | None
    scaler: RobustScaler
    expected: Floats
    threshold: Threshold | None
    scores: Floats
    rows: int


def fit_rows(rows: Rows, parameters: Mapping[str, Any], threads: int) -> Trained:
    """Fit a plain forest, or a detector where the parameters ask for more.

    Args:
        rows: training rows, NaN where there is no value.
        parameters: as scorer.default_parameters() in the database.
        threads: for the forest; the result does not depend on it.

    Raises:
        BadRows, BadParameter, ForestNotFitted: the rows do not fit the parameters.
    """
    if is_plain(parameters):
        return fit_model(rows.features, parameters, threads)
    detector = make_detector(parameters, rows.features.shape[1], threads)
    scores = np.empty(0)
    if len(rows.features):
        detector, scores = fit_detector(parameters, rows, threads)
    else:
        # Whether it can begin like this is told now, not by the first row.
        detector.process(rows.features, rows.entities, rows.order)
    known = detector.forest.columns > 0
    return _as_trained(detector, rows, scores, detector.to_bytes() if known else b"", detector.forest if known else None)


def fit_entities(
    rows: Rows, parameters: Mapping[str, Any], threads: int, store: Store, note: Callable[[int, int], None]
) -> Trained:
    """Fit the pooled forest, and one for each entity with rows enough, which goes to the store before the next is fitted.

    Args:
        rows: training rows with their entities, at least one.
        parameters: with forest_per `entity`.
        threads: for the forests; the result does not depend on it.
        store: takes the forests of entities.
        note: told before each of them how many are done, of how many.

    Raises:
        BadRows, BadParameter, ForestNotFitted: the rows do not fit the parameters.
    """
    if rows.entities is None or not len(rows.features):
        raise BadRows("Forests of entities need training rows with their entities.", hint="Name the entity column.")
    pool, scores = fit_detector({**parameters, "policy": "frozen"}, rows, threads)
    judge = EntityJudge(parameters, pool, store, in_memory=1, ordered=rows.order is not None, threads=threads)
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(rows.entities):
        numbers.setdefault(name, []).append(number)
    judge.own = {name for name, own in numbers.items() if len(own) >= judge.entity_rows}
    for done, name in enumerate(sorted(judge.own)):
        note(done, len(judge.own))
        store.keep(name, fit_detector(parameters, rows.take(np.array(numbers[name])), threads)[0], 0)
    for name, own in numbers.items():
        if name not in judge.own:
            times = [0.0] * len(own) if rows.order is None else rows.order[own].tolist()
            judge.waiting[name] = Waiting(list(rows.features[own]), times)
    return _as_trained(pool, rows, scores, judge.to_bytes(), None)


def _as_trained(detector: Detector, rows: Rows, scores: Floats, state: bytes, forest: RandomCutForest | None) -> Trained:
    return Trained(
        state,
        forest,
        detector.scaler or unscaled(rows.features.shape[1]),
        median_columns(rows.features),
        detector.rule.threshold if isinstance(detector.rule.threshold, Threshold) else None,
        scores[~np.isnan(scores)],
        len(rows.features),
    )


def fit_model(rows: Floats, parameters: Mapping[str, Any], threads: int) -> Trained:
    """Scale, fit and set the threshold of a plain forest.

    Args:
        rows: training rows, shape (n, d), n >= 1, NaN where there is no value.
        parameters, threads: as `fit_rows`.
    """
    if not len(rows):
        raise BadRows("There is nothing to fit: no rows.")
    robust = RobustScaler.fit(rows)
    scaler = unscaled(rows.shape[1]) if parameters["scale"] == "none" else robust
    forest = RandomCutForest(trees=parameters["trees"], samples=parameters["samples"], seed=parameters["seed"], threads=threads)
    scores = forest.fit_score(scaler.transform(rows))
    threshold = fit_threshold(scores, parameters["threshold"], parameters["threshold_value"])
    return Trained(forest.to_bytes(), forest, scaler, np.array(robust.center), threshold, scores, len(rows))


def unscaled(columns: int) -> RobustScaler:
    """The scaler that leaves values as they are, as far as float32 holds them."""
    return RobustScaler(np.zeros(columns), np.ones(columns), UNSCALED_CLIP)


def median_columns(rows: Floats) -> Floats:
    """Median of each column, shape (d,), NaN where it has no value."""
    return np.array(RobustScaler.fit(rows).center) if len(rows) else np.full(rows.shape[1], np.nan)


def describe_scores(scores: Floats) -> dict[str, Any]:
    """Count, mean, sigma, minimum, maximum and quantiles, fit for JSON; of no scores only the count."""
    if not len(scores):
        return {"rows": 0}
    return {
        "rows": len(scores),
        "mean": float(scores.mean()),
        "sigma": float(scores.std()),
        "minimum": float(scores.min()),
        "maximum": float(scores.max()),
        "quantiles": {str(q): float(value) for q, value in zip(_QUANTILES, np.quantile(scores, _QUANTILES), strict=True)},
    }
