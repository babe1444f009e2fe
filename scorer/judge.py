"""What a model version says of rows: scores, thresholds, anomalies and why.

Owns the two ways to judge: a plain forest, which nothing changes, and a detector, which rows change. Never reads or writes the
database; whether what a detector took in was committed is the caller's to know.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.detector import Detector
from scorer.features import RobustScaler
from scorer.findings import Findings
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
        and all(parameters.get(name, value) == value for name, value in _NEUTRAL.items())
    )


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

    def take(self, numbers: Ints) -> Rows:
        """Some of the rows."""
        return Rows(
            self.features[numbers],
            None if self.entities is None else [self.entities[i] for i in numbers.tolist()],
            None if self.order is None else self.order[numbers],
        )


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


# The rows of the entity before row n of those given, in order, without those that have no value of the order column.
Neighbours = Callable[[int], Rows]


class FollowingJudge:
    """A detector: it takes in rows that are new, in order, and judges those that come again by what it knows then.

    Attributes:
        detector: modified by `judge`.
        batch: number of the last batch that it took in.
        rows_since: rows that it took in since its checkpoint.
    """

    def __init__(self, detector: Detector, batch: int = 0) -> None:
        self.detector, self.batch, self.rows_since = detector, batch, 0

    def warm_up(self) -> None:
        """Load, or make, compiled code."""
        if self.detector.forest.columns:
            points = np.zeros((1, self.detector.forest.columns))
            self.detector.forest.score_samples(points)
            self.detector.explain_points(points)

    def take_in(self, rows: Rows) -> Findings:
        """Let the detector have rows that are new."""
        self.rows_since += len(rows.features)
        shingled = self.detector.shingler is not None
        return self.detector.process(clip_rows(self.detector, rows.features), rows.entities, rows.order if shingled else None)

    def judge(self, rows: Rows, neighbours: Neighbours) -> Verdicts:
        """Judge rows; what comes out does not depend on how rows are cut into calls."""
        n = len(rows.features)
        again = np.zeros(n, np.bool_) if rows.again is None else rows.again
        parts: list[tuple[Ints, Findings]] = []
        # Runs of rows that are new, and of rows that come again.
        bounds = [0, *(np.flatnonzero(np.diff(again)) + 1).tolist(), n]
        for first, last in itertools.pairwise(bounds):
            numbers = np.arange(first, last)
            if not again[first]:
                parts.append((numbers, self.take_in(rows.take(numbers))))
            elif self.detector.shingler is None:
                found = rows.take(numbers)
                parts.append((numbers, self.detector.rescore(clip_rows(self.detector, found.features), found.entities)))
            else:
                parts += [
                    (numbers[i : i + 1], self._judge_among(neighbours(first + i), rows, first + i)) for i in range(len(numbers))
                ]
        return _join(parts, n, rows.features.shape[1])

    def _judge_among(self, before: Rows, rows: Rows, number: int) -> Findings:
        """Judge one row as the last of its shingle."""
        own = rows.take(np.array([number]))
        features = np.vstack([before.features, own.features])
        entities = None if own.entities is None else [own.entities[0]] * len(features)
        found = self.detector.rescore(clip_rows(self.detector, features), entities)
        kept = found.explained == len(features) - 1
        fields = {
            name: getattr(found, name)[-1:]
            for name in ("scores", "thresholds", "confidences", "grades", "learned", "late", "suppressed")
        }
        return Findings(
            **fields,
            explained=np.zeros(int(kept.sum()), np.int64),
            high=found.high[kept],
            low=found.low[kept],
            expected=found.expected[kept],
        )


def _join(parts: Sequence[tuple[Ints, Findings]], n: int, width: int) -> Verdicts:
    scores, thresholds, grades = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n)
    reasons = np.zeros(n, np.int64)
    abnormal: list[Ints] = [np.empty(0, np.int64)]
    pieces: list[tuple[Floats, Floats, Floats]] = [(np.empty((0, width)),) * 3]
    for numbers, found in parts:
        scores[numbers], thresholds[numbers], grades[numbers] = found.scores, found.thresholds, found.grades
        reasons[numbers] = np.where(found.late, LATE, np.where(np.isnan(found.scores), NOT_READY, 0))
        wanted = found.grades[found.explained] > 0.0
        abnormal.append(numbers[found.explained[wanted]])
        pieces.append((found.high[wanted], found.low[wanted], found.expected[wanted]))
    high, low, expected = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
    return Verdicts(scores, reasons, thresholds, grades, np.concatenate(abnormal), high, low, expected)
