"""What a model version says of rows: scores, thresholds, anomalies and why.

Owns the form of rows and verdicts, what a model's parameters ask for, and the plain forest, which nothing changes.
(`scorer.follow` has the detector, which rows change, `scorer.entities` a detector for each entity.) Never reads or writes the
database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.detector import Detector
from scorer.features import RobustScaler
from scorer.forest import RandomCutForest
from scorer.parameters import DETECTOR_NAMES, KNOWN
from scorer.threshold import METHODS, Threshold

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_BANDS = {"ignore_above": 0, "ignore_below": 0, "ignore_above_share": 0, "ignore_below_share": 0, "direction": "both"}
_NEUTRAL = _BANDS | {"baseline_rows": 0}  # given only where they do something

UNSCALED_CLIP = 1e30  # float32 holds it, and sums of its squares fit float64
LATE, NOT_READY = 1, 2
REASONS = (None, "late", "not ready")


def is_plain(parameters: Mapping[str, Any]) -> bool:
    """Whether rows leave no trace in the model: a row's score depends on the row alone."""
    return (
        parameters.get("policy", "frozen") == "frozen"
        and parameters.get("shingle", 1) == 1
        and parameters["threshold"] in METHODS
        and not has_own_forests(parameters)
        and all(parameters.get(name, value) == value for name, value in _NEUTRAL.items())
    )


def has_own_forests(parameters: Mapping[str, Any]) -> bool:
    """Whether each entity has a forest of its own."""
    return bool(parameters.get("forest_per", "model") == "entity")


def make_detector(parameters: Mapping[str, Any], columns: int, threads: int) -> Detector:
    """The detector that a model's parameters describe, which has seen nothing yet."""
    names = (KNOWN | DETECTOR_NAMES) - {"threads", "columns", "with_directionality"}
    given = {name: parameters[name] for name in names & parameters.keys() if parameters[name] != _NEUTRAL.get(name)}
    return Detector(given, columns, threads=threads)


def clip_rows(detector: Detector, features: Floats) -> Floats:
    """Values as far as float32 holds them, where no scale bounds them."""
    return np.clip(features, -UNSCALED_CLIP, UNSCALED_CLIP) if detector.scale == "none" else features


@dataclass
class Verdicts:
    """What is said of n rows.

    Attributes:
        scores: shape (n,), float64, NaN where a row has none.
        reasons: shape (n,), int64, index into REASONS: why there is none.
        thresholds: shape (n,), float64, NaN where there is no score.
        grades: shape (n,), float64.
        abnormal: shape (k,), int64, ascending: numbers of the anomalies.
        high, low, expected: shape (k, features), float64; expected is NaN where nothing is.
    """

    scores: Floats
    reasons: Ints
    thresholds: Floats
    grades: Floats
    abnormal: Ints
    high: Floats
    low: Floats
    expected: Floats


@dataclass
class Rows:
    """Rows to judge, in order.

    Attributes:
        features: shape (n, features), float64, NaN where there is no value.
        entities: whose row each is; None where the model has no entities.
        order: shape (n,), float64; None where the model has no order.
        again: shape (n,), bool: a row version that replaces one which was judged before.
    """

    features: Floats
    entities: Sequence[str] | None = None
    order: Floats | None = None
    again: NDArray[np.bool_] | None = None

    @property
    def came_before(self) -> NDArray[np.bool_]:
        """`again`, shape (n,), where it is not said none."""
        return np.zeros(len(self.features), np.bool_) if self.again is None else self.again

    def take(self, numbers: Ints) -> Rows:
        """Some of the rows."""
        return Rows(
            self.features[numbers],
            None if self.entities is None else [self.entities[i] for i in numbers.tolist()],
            None if self.order is None else self.order[numbers],
            None if self.again is None else self.again[numbers],
        )


def fit_detector(parameters: Mapping[str, Any], rows: Rows, threads: int) -> tuple[Detector, Floats]:
    """A detector fitted on rows, and their honest scores.

    Raises:
        BadRows: no row makes a point.
    """
    detector = make_detector(parameters, rows.features.shape[1], threads)
    return detector, detector.fit(clip_rows(detector, rows.features), rows.entities, rows.order)


class PlainJudge:
    """A frozen forest with a fixed threshold.

    Args:
        expected: shape (features,), medians of the training rows.
    """

    def __init__(self, forest: RandomCutForest, scaler: RobustScaler, threshold: Threshold, expected: Floats) -> None:
        self.forest, self.scaler, self.threshold, self.expected = forest, scaler, threshold, expected

    def warm_up(self) -> None:
        """Load, or make, compiled code, which happens at its first call: so that no row waits for it."""
        self.forest.score_samples(np.zeros((1, self.forest.columns)))
        self.forest.explain(np.zeros((1, self.forest.columns)))

    def judge(self, rows: Rows) -> Verdicts:
        """Judge rows; the order does not matter."""
        scaled = self.scaler.transform(rows.features)
        scores = self.forest.score_samples(scaled)
        abnormal = np.flatnonzero(scores > self.threshold.value)
        high, low = self.forest.explain(scaled[abnormal]) if len(abnormal) else (np.empty((0, scaled.shape[1])),) * 2
        grades = np.zeros(len(scores))
        grades[abnormal] = self.threshold.grade(scores[abnormal])
        return Verdicts(
            scores,
            np.zeros(len(scores), np.int64),
            np.full(len(scores), self.threshold.value),
            grades,
            abnormal,
            high,
            low,
            np.broadcast_to(self.expected, high.shape),
        )
