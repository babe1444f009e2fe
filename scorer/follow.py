"""What is said of rows by a detector, which they change.

Owns runs of rows that are new and of rows that come again, and the face of whatever is changed by rows that it judges. Never
reads or writes the database; whether what was taken in was committed is the caller's to know.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from scorer.detector import Detector
from scorer.findings import Findings
from scorer.judge import LATE, NOT_READY, Rows, Verdicts, clip_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The rows of the entity before row n of those given, in order, without those that have no value of the order column.
Neighbours = Callable[[int], Rows]


class Follower(ABC):
    """What judges rows and is changed by them.

    Attributes:
        batch: number of the last batch that it took in.
        rows_since: rows that it took in since its checkpoint.
        shingle: rows that make a point.
    """

    batch: int
    rows_since: int
    shingle: int

    @abstractmethod
    def warm_up(self) -> None:
        """Load, or make, compiled code, which happens at its first call: so that no row waits for it."""

    @abstractmethod
    def judge(self, rows: Rows, neighbours: Neighbours) -> Verdicts:
        """Judge rows, taking in those that are new; what comes out does not depend on how rows are cut into calls."""

    @abstractmethod
    def taken(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows, about to be judged, leave a trace: a restart has to have them again. Shape (n,)."""

    @abstractmethod
    def checkpoint(self) -> bytes:
        """All that it has taken in, as bytes."""

    @abstractmethod
    def detector_of(self, entity: str) -> Detector:
        """The detector that would judge the entity's next row; not to be modified."""


class FollowingJudge(Follower):
    """A detector: it takes in rows that are new, in order, and judges those that come again by what it knows then.

    Attributes:
        detector: modified by `judge`.
    """

    def __init__(self, detector: Detector, batch: int = 0) -> None:
        self.detector, self.batch, self.rows_since = detector, batch, 0
        self.shingle = 1 if detector.shingler is None else detector.shingler.size

    def warm_up(self) -> None:
        """Load, or make, compiled code."""
        warm_up(self.detector)

    def judge(self, rows: Rows, neighbours: Neighbours) -> Verdicts:
        """Judge rows, taking in those that are new."""
        self.rows_since += int(self.taken(rows).sum())
        return judge_in_order(self.detector, rows, neighbours)

    def taken(self, rows: Rows) -> NDArray[np.bool_]:
        """All rows that are new."""
        return ~rows.came_before

    def checkpoint(self) -> bytes:
        """The detector."""
        return self.detector.to_bytes()

    def detector_of(self, entity: str) -> Detector:
        """The one detector."""
        return self.detector


def warm_up(detector: Detector) -> None:
    """Load, or make, compiled code."""
    if detector.forest.columns:
        points = np.zeros((1, detector.forest.columns))
        detector.forest.score_samples(points)
        detector.explain_points(points)


def take_in(detector: Detector, rows: Rows) -> Findings:
    """Let a detector have rows that are new."""
    order = None if detector.shingler is None else rows.order
    return detector.process(clip_rows(detector, rows.features), rows.entities, order)


def judge_in_order(detector: Detector, rows: Rows, neighbours: Neighbours, *, learn: bool = True) -> Verdicts:
    """Judge rows by one detector, which takes in those that are new, or, without `learn`, none."""
    n = len(rows.features)
    again = rows.came_before if learn else np.ones(n, np.bool_)
    parts: list[tuple[Ints, Verdicts]] = []
    # Runs of rows that are new, and of rows that come again.
    bounds = [0, *(np.flatnonzero(np.diff(again)) + 1).tolist(), n] if n else []
    for first, last in itertools.pairwise(bounds):
        numbers = np.arange(first, last)
        found = rows.take(numbers)
        if not again[first]:
            parts.append((numbers, _as_verdicts(take_in(detector, found))))
        elif detector.shingler is None:
            parts.append((numbers, _as_verdicts(detector.rescore(clip_rows(detector, found.features), found.entities))))
        else:
            parts += [
                (numbers[i : i + 1], _as_verdicts(_judge_among(detector, neighbours(first + i), rows, first + i)))
                for i in range(len(numbers))
            ]
    return merge_verdicts(parts, n, rows.features.shape[1])


def _judge_among(detector: Detector, before: Rows, rows: Rows, number: int) -> Findings:
    """Judge one row as the last of its shingle."""
    own = rows.take(np.array([number]))
    features = np.vstack([before.features, own.features])
    entities = None if own.entities is None else [own.entities[0]] * len(features)
    found = detector.rescore(clip_rows(detector, features), entities)
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


def _as_verdicts(found: Findings) -> Verdicts:
    wanted = found.grades[found.explained] > 0.0
    return Verdicts(
        found.scores,
        np.where(found.late, LATE, np.where(np.isnan(found.scores), NOT_READY, 0)),
        found.thresholds,
        found.grades,
        found.explained[wanted],
        found.high[wanted],
        found.low[wanted],
        found.expected[wanted],
    )


def merge_verdicts(parts: Sequence[tuple[Ints, Verdicts]], n: int, width: int) -> Verdicts:
    """The verdicts on n rows of `width` features from those on parts of them, each with the numbers of its rows."""
    scores, thresholds, grades = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n)
    reasons = np.zeros(n, np.int64)
    for numbers, found in parts:
        scores[numbers], thresholds[numbers], grades[numbers] = found.scores, found.thresholds, found.grades
        reasons[numbers] = found.reasons
    abnormal = np.concatenate([np.empty(0, np.int64), *(numbers[found.abnormal] for numbers, found in parts)])
    order = np.argsort(abnormal)
    high, low, expected = (
        np.concatenate([np.empty((0, width)), *(getattr(found, name) for _, found in parts)])[order]
        for name in ("high", "low", "expected")
    )
    return Verdicts(scores, reasons, thresholds, grades, abnormal[order], high, low, expected)
