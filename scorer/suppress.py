"""Anomalies that nobody wants to hear of: near what was expected, or in a direction that does no harm.

Owns the dead bands and the direction filter. Never changes a score: what is suppressed stays in the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer.errors import BadParameter, BadRows

DIRECTIONS = ("both", "high", "low")


@dataclass(frozen=True)
class Suppression:
    """When an anomaly is not worth an alarm: if every column is within its dead band, or the score points the wrong way.

    A column is within its dead band if it is at most `above` (or `above_share` of the expected value's magnitude) over what was
    expected, and at most `below` (`below_share`) under it; the wider of the two bands counts.

    Attributes:
        above, below: in units of the columns, >= 0.
        above_share, below_share: relative to the magnitude of the expected value, >= 0.
        direction: `both`, `high` (only rows whose score is owed to values that are too high), `low`.
    """

    above: float = 0.0
    below: float = 0.0
    above_share: float = 0.0
    below_share: float = 0.0
    direction: str = "both"

    def __post_init__(self) -> None:
        bands = (self.above, self.below, self.above_share, self.below_share)
        if not all(math.isfinite(band) and band >= 0.0 for band in bands):
            raise BadParameter("A dead band must be finite and not below 0.", parameter="above, below, ...")
        if self.direction not in DIRECTIONS:
            raise BadParameter(f"Unknown direction {self.direction!r}.", hint=f"Give one of {', '.join(DIRECTIONS)}.")

    def keep(self, values: ArrayLike, expected: ArrayLike, high: ArrayLike, low: ArrayLike) -> NDArray[np.bool_]:
        """Which anomalies are worth an alarm.

        Args:
            values: the rows, shape (n, d); NaN is within every band.
            expected: shape (n, d) or (d,), in the same units; NaN: nothing was expected, the column is within every band.
            high, low: shape (n, d), the parts of the score as `RandomCutForest.explain` gives them.

        Returns:
            Shape (n,).

        Raises:
            BadRows: the shapes do not fit.
        """
        rows, above, below = (np.asarray(part, np.float64) for part in (values, high, low))
        if rows.ndim != 2 or above.shape != rows.shape or below.shape != rows.shape:
            raise BadRows("values, high and low must have one shape (n, d).", shape=rows.shape)
        distance = rows - np.asarray(expected, np.float64)
        magnitude = np.abs(rows - distance)
        over = distance > np.maximum(self.above, self.above_share * magnitude)
        under = -distance > np.maximum(self.below, self.below_share * magnitude)
        kept: NDArray[np.bool_] = np.asarray((over | under).any(axis=1))
        upwards = above.sum(axis=1) >= below.sum(axis=1)
        if self.direction == "high":
            kept &= upwards
        elif self.direction == "low":
            kept &= ~upwards
        return kept
