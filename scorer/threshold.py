"""From scores to anomalies: a threshold, and a grade of how far beyond it a score lies.

Owns the two rules that are set once on the scores of the training rows. Never sees rows or forests; whether the
training scores are honest is decided where they are made (`RandomCutForest.fit_score`).

A score is anomalous if it is **above** the threshold. Its grade is

    grade = 0                                                  if score <= threshold
          = min(1, (score - threshold) / spread)               otherwise; 1 if spread is 0

where spread is the distance from the centre of the training scores to the threshold: a score twice as far out as the
threshold has grade 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

METHODS = ("sigma", "quantile")


@dataclass(frozen=True)
class Threshold:
    """A threshold on scores.

    Attributes:
        method: `sigma` or `quantile`.
        parameter: k of mean + k sigma, or the quantile.
        value: scores above it are anomalous.
        spread: distance from value at which the grade reaches 1, >= 0.
        rows: training scores that it was set on.
    """

    method: str
    parameter: float
    value: float
    spread: float
    rows: int

    def grade(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Grades in [0, 1], shape as `scores`; above 0 exactly where the score is above the threshold, NaN where it is NaN."""
        beyond = np.asarray(scores, np.float64) - self.value
        steps = np.where(beyond > 0.0, np.inf, beyond) if self.spread == 0.0 else beyond / self.spread
        return np.clip(steps, 0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Threshold:
        """The inverse of `to_dict`."""
        return cls(**values)


def fit_threshold(scores: ArrayLike, method: str = "sigma", parameter: float | None = None) -> Threshold:
    """Set a threshold on training scores.

    Args:
        scores: shape (n,), n >= 1, finite.
        method: `sigma`: mean + k standard deviations (of the population); `quantile`: linear between order statistics.
        parameter: k >= 0 (default 3), or a quantile in (0, 1) (default 0.995: one false alarm in 200 ordinary rows).

    Raises:
        ValueError: no scores, a score that is not finite, an unknown method, a parameter out of range.
    """
    values = np.asarray(scores, np.float64).ravel()
    if not values.size or not np.isfinite(values).all():
        raise ValueError("A threshold needs at least one training score, and finite ones only.")
    if method == "sigma":
        k = 3.0 if parameter is None else float(parameter)
        if not (math.isfinite(k) and k >= 0.0):
            raise ValueError(f"sigma needs k >= 0, not {parameter!r}.")
        spread = k * float(values.std())
        return Threshold(method, k, float(values.mean()) + spread, spread, values.size)
    if method == "quantile":
        quantile = 0.995 if parameter is None else float(parameter)
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile needs a number between 0 and 1, not {parameter!r}.")
        value = float(np.quantile(values, quantile))
        return Threshold(method, quantile, value, max(0.0, value - float(np.median(values))), values.size)
    raise ValueError(f"Unknown method {method!r}: give one of {', '.join(METHODS)}.")
