"""What a detector finds, and how it is put together while a forest goes through the points.

Owns the arrays that come out. Never scores, learns or judges by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scorer.detector import Detector

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass
class Findings:
    """What was found about n rows; arrays with one entry per row, and of k rows that are explained.

    Attributes:
        scores: float64; NaN where a row makes no point: it is late, or its entity's baseline or shingle is not complete.
        thresholds, confidences: float64, as of the row; NaN where the score is.
        grades: float64 in [0, 1]; above 0 is an anomaly, 0 where it was suppressed.
        learned: bool, whether the policy lets the forest learn the row.
        late, suppressed: bool.
        explained: shape (k,), int64, ascending: the rows whose score is above the threshold, suppressed ones too; every
            scored row if asked for.
        high, low: shape (k, columns), float64, parts of the score owed to values that are too high and too low; their sum is
            the score to 1e-9. Of a shingle: added up over its rows.
        expected: shape (k, columns), float64, in the units of the columns: what the other values let expect, for the columns
            with the largest parts; else the row's own value.
    """

    scores: Floats
    thresholds: Floats
    confidences: Floats
    grades: Floats
    learned: Flags
    late: Flags
    suppressed: Flags
    explained: NDArray[np.int64]
    high: Floats
    low: Floats
    expected: Floats

    @property
    def anomalous(self) -> Flags:
        """Rows with a grade above 0."""
        return self.grades > 0.0


@dataclass
class Points:
    """Rows on their way: base rows, the levels taken off them, the points made of them, the row and entity of each point."""

    rows: Floats
    levels: Floats
    points: Floats
    at: NDArray[np.int64]
    names: list[str] | None
    late: Flags


@dataclass
class Watch:
    """Collects verdicts and explanations of points while the forest goes through them."""

    detector: Detector
    points: Floats
    everything: bool
    take_in: bool = True
    scores: Floats = field(init=False)
    verdicts: list[tuple[Floats, Floats, Floats]] = field(default_factory=list)
    explained: list[NDArray[np.int64]] = field(default_factory=list)
    parts: list[tuple[Floats, Floats, Floats]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scores = np.empty(len(self.points))

    def judge(self, first: int, scores: Floats) -> Flags:
        """Note the verdicts on the points from number `first` on; the anomalies among them are to be explained."""
        self.scores[first : first + len(scores)] = scores
        self.verdicts.append(self.detector.rule.judge(scores, take_in=self.take_in))
        return (scores > 0.0) & (self.everything | (self.verdicts[-1][1] > 0.0))

    def explain(self, numbers: NDArray[np.int64]) -> None:
        """Explain these points by the forest as it is."""
        self.explained.append(numbers)
        self.parts.append(self.detector.explain_points(self.points[numbers]))


def gather(detector: Detector, found: Points, watch: Watch, learned: Flags) -> Findings:
    """Verdicts and explanations of points as findings about their rows."""
    n, columns = len(found.rows), found.rows.shape[1]
    scores, thresholds, confidences = (np.full(n, np.nan) for _ in range(3))
    grades, suppressed = np.zeros(n), np.zeros(n, np.bool_)
    scores[found.at] = watch.scores
    if watch.verdicts:
        verdicts = [np.concatenate(parts) for parts in zip(*watch.verdicts, strict=True)]
        thresholds[found.at], grades[found.at], confidences[found.at] = verdicts
    explained = found.at[np.concatenate([np.empty(0, np.int64), *watch.explained])]
    parts = [np.concatenate([np.empty((0, columns)), *pieces]) for pieces in zip(*watch.parts, strict=True)]
    high, low, expected = parts or [np.empty((0, columns)) for _ in range(3)]
    known = ~np.isnan(expected)
    if detector.scaler is not None:
        expected = detector.scaler.inverse_transform(expected)
    expected = np.where(known, expected + found.levels[explained], found.rows[explained])
    if detector.suppression is not None and len(explained):
        kept = detector.suppression.keep(found.rows[explained], expected, high, low)
        suppressed[explained] = ~kept & (grades[explained] > 0.0)
        grades[suppressed] = 0.0
    return Findings(scores, thresholds, confidences, grades, learned, found.late, suppressed, explained, high, low, expected)
