"""The four kinds of threshold behind one face: set on training scores, then asked about scores in order.

Owns which kind is meant by a model's parameters. The rules themselves are in `scorer.threshold` (set once) and
`scorer.adaptive` (following the stream). Never sees rows or forests.

    sigma      mean + k sigma of the training scores; `threshold_value` is k (default 3)
    quantile   a quantile of the training scores; `threshold_value` is the quantile (default 0.995)
    adaptive   deviations of the recent scores; `threshold_value` is the number of deviations (default 3, at least 2)
    budget     the share of ordinary rows that may be anomalies, over all scores so far; `threshold_value` is that share
               (default 0.001)
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scorer.adaptive import AdaptiveThreshold, QuantileThreshold, Verdict
from scorer.errors import BadParameter, ForestNotFitted
from scorer.threshold import METHODS, Threshold, fit_threshold

Floats = NDArray[np.float64]
KINDS = (*METHODS, "adaptive", "budget")


class Rule:
    """A threshold of one of `KINDS`. Modified in place by `fit` and `judge`.

    Args:
        kind: of KINDS.
        value: its number, None for its default.
        options: of the adaptive kind: those of `AdaptiveThreshold`.

    Attributes:
        threshold: the rule itself; None for `sigma` and `quantile` until `fit`.

    Raises:
        BadParameter: no such kind, or a number out of its range.
    """

    def __init__(self, kind: str = "sigma", value: float | None = None, **options: Any) -> None:
        if kind not in KINDS:
            raise BadParameter(f"Unknown threshold {kind!r}.", hint=f"Give one of {', '.join(KINDS)}.", parameter="threshold")
        self.kind, self.value = kind, value
        self.threshold: Threshold | AdaptiveThreshold | QuantileThreshold | None = None
        if kind == "adaptive":
            self.threshold = AdaptiveThreshold(z=3.0 if value is None else float(value), **options)
        elif kind == "budget":
            self.threshold = QuantileThreshold(0.001 if value is None else float(value))
        else:
            self._fit_fixed(np.ones(1))  # refuses a bad number now, not after the forest was fitted

    def _fit_fixed(self, scores: Floats) -> Threshold:
        try:
            return fit_threshold(scores, self.kind, self.value)
        except ValueError as error:
            raise BadParameter(str(error), parameter="threshold_value") from error

    def fit(self, scores: Floats) -> None:
        """Set the threshold on honest training scores, shape (n,), n >= 1; the kinds that follow the stream begin with them."""
        if self.kind in METHODS:
            self.threshold = self._fit_fixed(scores)
        else:
            self.judge(scores)

    def judge(self, scores: Floats, *, take_in: bool = True) -> tuple[Floats, Floats, Floats]:
        """Thresholds, grades and confidences of scores in order, each of shape (n,), float64; a grade above 0 is an anomaly.

        With `take_in` the kinds that follow the stream learn each score after they have judged it.

        Raises:
            ForestNotFitted: `sigma` or `quantile` before `fit`.
            BadParameter: a score is not finite or below 0.
        """
        if self.threshold is None:
            raise ForestNotFitted(
                f"The threshold {self.kind!r} is set on training rows, and there were none.",
                hint="Call fit first, or take the threshold adaptive or budget.",
            )
        if isinstance(self.threshold, Threshold):
            return np.full(len(scores), self.threshold.value), self.threshold.grade(scores), np.ones(len(scores))
        judge, look = self.threshold.judge, self.threshold.look
        # A score of 0 comes from a forest that knows too little to speak.
        verdicts: list[Verdict] = [judge(score) if take_in and score > 0.0 else look(score) for score in scores.tolist()]
        found = np.array([(v.threshold, v.grade, v.confidence) for v in verdicts], np.float64).reshape(-1, 3)
        return found[:, 0], found[:, 1], found[:, 2]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON, exact."""
        return {
            "kind": self.kind,
            "value": self.value,
            "state": None if self.threshold is None else self.threshold.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        made, state = cls(values["kind"], values["value"]), values["state"]
        kinds: dict[str, Any] = {"adaptive": AdaptiveThreshold, "budget": QuantileThreshold}
        if state is not None:
            made.threshold = kinds.get(made.kind, Threshold).from_dict(state)
        return made
