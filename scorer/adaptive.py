"""Thresholds that follow the stream of scores: adaptive (deviations of the recent scores) and quantile (a budget of false
alarms).

Owns both rules; each takes scores one after the other and says threshold, grade and confidence. Never sees rows or forests.

Source of the adaptive rule: the thresholder of the AWS random cut forest library, in own words. Source of the quantile sketch:
Masson, Rim, Lee, "DDSketch", VLDB 2019.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from scorer.errors import BadParameter

_LEAST_SCORES, _SURE_SCORES = 10, 20  # below the first nothing is known of deviations, from the second on all that is needed
_INITIAL, _ABSOLUTE, _USUAL_MEAN = 1.5, 0.8, 0.9  # scores: threshold at first, least threshold ever, mean of ordinary rows
_HIGHEST = 2.0  # a score above it counts as this in the deviations, so that an anomaly does not hide the next
_DIFFERENCING = 0.5  # weight of score-to-score differences for shingles, whose scores are smooth


@dataclass
class Deviation:
    """Mean and deviation of a stream, the older the less weight. Modified in place.

    Attributes:
        discount: share of the weight that each new value takes from the old ones, >= 0 and < 1.
    """

    discount: float
    weight: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take in one value."""
        keep = 1.0 - self.discount
        self.weight = self.weight * keep + 1.0
        self.total = self.total * keep + value
        self.squares = self.squares * keep + value * value

    @property
    def mean(self) -> float:
        """Weighted mean; 0 before the first value."""
        return self.total / self.weight if self.weight > 0.0 else 0.0

    @property
    def deviation(self) -> float:
        """Weighted standard deviation; 0 before the first value."""
        return math.sqrt(max(0.0, self.squares / self.weight - self.mean**2)) if self.weight > 0.0 else 0.0


@dataclass(frozen=True)
class Verdict:
    """What a threshold says of one score: the threshold, grade in [0, 1] (0: ordinary) and confidence in [0, 1]."""

    threshold: float
    grade: float
    confidence: float


@dataclass
class AdaptiveThreshold:
    """Threshold from the deviations of recent scores. Modified in place by `judge`.

    Attributes:
        time_decay: scores after which one's weight has fallen to 1/e, as that of the forest.
        shingle: of the forest; with more than 1, differences between scores that follow each other count too.
        z: deviations above the mean, 2 or more.
        anomaly_rate: share of anomalies that is expected, in (0, 1); pace of the differences' deviation.
        output_after: scores before which the confidence is 0.
        seen: scores so far that were above 0.
    """

    time_decay: float = 100_000.0
    shingle: int = 1
    z: float = 3.0
    anomaly_rate: float = 0.01
    output_after: int = 0
    seen: int = 0
    last: float = 0.0
    score: Deviation = field(default_factory=lambda: Deviation(0.0))
    difference: Deviation = field(default_factory=lambda: Deviation(0.0))
    below: Deviation = field(default_factory=lambda: Deviation(0.0))

    def __post_init__(self) -> None:
        if not (self.time_decay >= 1.0 and self.z >= 2.0 and 0.0 < self.anomaly_rate < 1.0 and self.shingle >= 1):
            raise BadParameter(
                "time_decay and shingle must be 1 or more, z 2 or more, anomaly_rate between 0 and 1.",
                parameter="time_decay, shingle, z, anomaly_rate",
            )
        if not self.seen:
            self.score.discount = 1.0 / self.time_decay
            self.difference.discount = self.anomaly_rate
            self.below.discount = 0.5 / self.time_decay

    def judge(self, score: float) -> Verdict:
        """Judge a score, then take it in. A score of 0 (the forest knows too little) is ordinary and says nothing.

        Raises:
            BadParameter: the score is not finite or below 0.
        """
        verdict = self.look(score)
        if score > 0.0:
            capped = min(score, _HIGHEST)
            if score < self.score.mean:
                self.below.add(self.score.mean - score)
            self.score.add(capped)
            if self.seen:
                self.difference.add(score - self.last)
            self.last = score
            self.seen += 1
        return verdict

    def look(self, score: float) -> Verdict:
        """Judge a score without taking it in; raises as `judge`."""
        if not (math.isfinite(score) and score >= 0.0):
            raise BadParameter(f"A score must be finite and not below 0, not {score!r}.", parameter="score")
        threshold, scale = self._threshold()
        return Verdict(threshold, self._grade(score, threshold, scale), self.confidence)

    @property
    def confidence(self) -> float:
        """Share of what a full memory would know that has been seen since `output_after`."""
        rate, waited = 1.0 / self.time_decay, min(self.seen, self.output_after)
        if self.seen <= waited:
            return 0.0
        return math.expm1(-rate * (self.seen - waited)) / math.expm1(-rate * self.seen)

    def _threshold(self) -> tuple[float, float]:
        """Threshold, and the distance above it that counts as one whole anomaly."""
        mean = self.score.mean
        ramp = min(1.0, max(0.0, (self.seen - _LEAST_SCORES) / (_SURE_SCORES - _LEAST_SCORES)))
        least = _ABSOLUTE * mean / _USUAL_MEAN if ramp == 1.0 and mean < _USUAL_MEAN else _ABSOLUTE
        if self.seen < _LEAST_SCORES:
            return max(_INITIAL, least), 0.0
        primary, low = self.score.deviation, math.sqrt(2.0) * self.below.deviation
        if self.shingle == 1:
            long = min(low, primary)
        else:
            steps = self.difference.deviation
            long = _DIFFERENCING * min(primary, max(steps, low)) + (1.0 - _DIFFERENCING) * steps
        factor = max(2.0, self.z * mean / _USUAL_MEAN if mean < _USUAL_MEAN else self.z)
        scale = (factor - 1.0) * long + primary
        return max(least, ramp * (mean + scale) + (1.0 - ramp) * _INITIAL), scale

    def _grade(self, score: float, threshold: float, scale: float) -> float:
        if score < threshold or score == 0.0:
            return 0.0
        share = 1.0
        if self.seen < _LEAST_SCORES:
            share = min(1.0, max(0.0, (score - _ABSOLUTE) / _ABSOLUTE))
        elif scale > 0.0:
            share = min(1.0, (score - threshold) / scale)
        return min(1.0, math.floor(20.0 * share) / 16.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON, exact."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdaptiveThreshold:
        """The inverse of `to_dict`."""
        parts = {name: Deviation(**values[name]) for name in ("score", "difference", "below")}
        return cls(**{**values, **parts})


class QuantileThreshold:
    """Threshold that a given share of ordinary rows exceeds: a budget of false alarms.

    The scores are kept in a DDSketch: its quantiles are exact to a relative error, it does not depend on the order of the
    scores, and its size does not grow with their number. Those are the reasons to have it and not a t-digest or KLL: the same
    scores give the same threshold, bit for bit, however they came.

    Args:
        budget: share of ordinary rows that may exceed the threshold, in (0, 1).
        least_scores: scores before which nothing is an anomaly; default 10 / budget.
        accuracy: relative error of the threshold.
    """

    def __init__(self, budget: float = 0.001, least_scores: int | None = None, accuracy: float = 0.001) -> None:
        from ddsketch.ddsketch import BaseDDSketch
        from ddsketch.mapping import LogarithmicMapping
        from ddsketch.store import DenseStore

        if not 0.0 < budget < 1.0 or not 0.0 < accuracy < 0.5:
            raise BadParameter("budget must lie between 0 and 1, accuracy between 0 and 0.5.", parameter="budget, accuracy")
        self.budget, self.accuracy = budget, accuracy
        self.least_scores = math.ceil(10.0 / budget) if least_scores is None else least_scores
        self._mapping, self._store, self._zeros = LogarithmicMapping(accuracy), DenseStore(), 0
        self._sketch = BaseDDSketch(self._mapping, self._store, DenseStore(), zero_count=0.0)

    @property
    def seen(self) -> int:
        """Scores so far."""
        return int(self._sketch.count)

    @property
    def value(self) -> float:
        """Scores above it are anomalous; infinite before `least_scores`."""
        if self.seen < max(1, self.least_scores):
            return math.inf
        return self._quantile(1.0 - self.budget) * (1.0 + self.accuracy)

    def judge(self, score: float) -> Verdict:
        """Judge a score, then take it in. The grade reaches 1 at twice the distance of the threshold from the median.

        Raises:
            BadParameter: the score is not finite or below 0.
        """
        verdict = self.look(score)
        self._add(score, 1)
        return verdict

    def look(self, score: float) -> Verdict:
        """Judge a score without taking it in; raises as `judge`."""
        if not (math.isfinite(score) and score >= 0.0):
            raise BadParameter(f"A score must be finite and not below 0, not {score!r}.", parameter="score")
        threshold, grade = self.value, 0.0
        if score > threshold:
            spread = threshold - self._quantile(0.5)
            grade = min(1.0, (score - threshold) / spread) if spread > 0.0 else 1.0
        confidence = 1.0 - 1.0 / math.sqrt(1.0 + self.budget * self.seen)
        return Verdict(threshold, grade, confidence)

    def _quantile(self, share: float) -> float:
        found = self._sketch.get_quantile_value(share)
        assert found is not None, "there are scores"
        return float(found)

    def merge(self, other: QuantileThreshold) -> None:
        """Take in all scores of another one with the same accuracy, as if they had come here.

        Raises:
            BadParameter: the accuracies differ.
        """
        if other.accuracy != self.accuracy:
            raise BadParameter("Only sketches of the same accuracy can be merged.", parameter="accuracy")
        self._sketch.merge(other._sketch)
        self._zeros += other._zeros

    def _add(self, score: float, count: float) -> None:
        self._sketch.add(score, count)
        self._zeros += int(count) if score == 0.0 else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: scores as counts by bin."""
        bins = {i + self._store.offset: n for i, n in enumerate(self._store.bins) if n}
        head = {"budget": self.budget, "least_scores": self.least_scores, "accuracy": self.accuracy}
        return head | {"zeros": self._zeros, "bins": sorted(bins.items())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantileThreshold:
        """The inverse of `to_dict`."""
        made = cls(values["budget"], values["least_scores"], values["accuracy"])
        if values["zeros"]:
            made._add(0.0, values["zeros"])
        for number, count in values["bins"]:
            made._add(made._mapping.value(number), count)
        return made
