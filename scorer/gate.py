"""Which rows a gated forest learns: those that look ordinary to it, so that a fault that goes on is not learnt as normal.

Owns the rule and its few numbers. Never sees rows, trees or entities, only scores in order.

A row is learnt if its score is at most mean + sigma deviations of the scores of the rows learnt before it, the older the less
weight. The first rows are all learnt, until there are scores enough to judge by. A long run of refused rows, with no ordinary
row between, is no fault but a new normal: drift. The gate then opens, and closes again when it has learnt as many rows as at
its start. In a fleet, rows of sound engines break every run, so that a failing engine never opens the gate.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOW_ROWS = 64  # rows that are scored and judged before those of them that pass are learnt


@dataclass
class Gate:
    """The gate's state; plain numbers, modified in place.

    Attributes:
        sigma: deviations above the mean from which on a row is refused.
        opening_rows: rows that are learnt unseen, at the start and after drift.
        drift_rows: length of the run of refused rows that is taken for drift.
        learnt: rows learnt since the gate opened.
        run: rows refused in a row just now.
        refused, drifts: how often in all.
    """

    sigma: float
    opening_rows: int
    drift_rows: int
    learnt: int = 0
    run: int = 0
    refused: int = 0
    drifts: int = 0
    moments: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # sum of weights, of scores, of squares

    @property
    def open(self) -> bool:
        """Whether every row is learnt."""
        return self.learnt < self.opening_rows

    @property
    def limit(self) -> float:
        """The highest score that passes; infinite while the gate is open or nothing is known."""
        weight, total, squares = self.moments
        if self.open or weight <= 0.0:
            return math.inf
        mean = total / weight
        return mean + self.sigma * math.sqrt(max(0.0, squares / weight - mean * mean))

    def pass_open(self, scores: ArrayLike) -> None:
        """Note rows that were learnt while the gate was open; a score of 0, because nothing was known yet, says nothing."""
        for score in np.asarray(scores, np.float64).tolist():
            self.learnt += 1
            if score > 0.0:
                self._note(score)

    def judge(self, scores: ArrayLike) -> tuple[NDArray[np.bool_], int]:
        """Judge rows by their scores, in order, until the gate opens.

        Returns:
            (passed, rows): passed has `rows` entries; fewer rows than scores if the last of them made it drift.
        """
        passed = []
        for score in np.asarray(scores, np.float64).tolist():
            good = score <= self.limit
            passed.append(good)
            if good:
                self.learnt += 1
                self.run = 0
                self._note(score)
                continue
            self.refused += 1
            self.run += 1
            if self.run >= self.drift_rows:
                self.drifts += 1
                self.run, self.learnt, self.moments = 0, 0, [0.0, 0.0, 0.0]
                break
        return np.array(passed, np.bool_), len(passed)

    def prime(self, scores: ArrayLike) -> None:
        """Close the gate on the scores of rows that were fitted."""
        self.run, self.learnt, self.moments = 0, self.opening_rows, [0.0, 0.0, 0.0]
        for score in np.asarray(scores, np.float64).tolist():
            self._note(score)

    def _note(self, score: float) -> None:
        keep = 1.0 - 1.0 / self.opening_rows
        for i, value in enumerate((1.0, score, score * score)):
            self.moments[i] = self.moments[i] * keep + value

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON, exact."""
        return asdict(self)
