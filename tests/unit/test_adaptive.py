"""Thresholds that follow the scores, dead bands, direction filters."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from scorer.adaptive import AdaptiveThreshold, Deviation, QuantileThreshold
from scorer.errors import BadParameter, BadRows
from scorer.suppress import Suppression


def ordinary_scores(n: int, seed: int = 0) -> np.ndarray:
    """Scores as a forest gives them to ordinary rows."""
    return 0.8 + 0.1 * np.random.default_rng(seed).gamma(2.0, size=n)


def test_deviation_is_the_weighted_one():
    """Against numpy's weighted average."""
    values, deviation = np.array([1.0, 4.0, 2.0, 8.0]), Deviation(0.25)
    for value in values:
        deviation.add(value)
    weights = 0.75 ** np.arange(4)[::-1]
    mean = np.average(values, weights=weights)
    assert deviation.mean == pytest.approx(mean)
    assert deviation.deviation == pytest.approx(math.sqrt(np.average((values - mean) ** 2, weights=weights)))


@pytest.mark.parametrize("shingle", [1, 8])
def test_adaptive_threshold_finds_spikes_and_little_else(shingle):
    """Ordinary scores seldom pass; a spike gets grade 1 or nearly, at any level of the scores, and does not hide the next."""
    for level in (0.5, 1.0):
        threshold = AdaptiveThreshold(time_decay=1000, shingle=shingle)
        grades = [threshold.judge(score).grade for score in level * ordinary_scores(2000)]
        assert np.mean(np.array(grades[100:]) > 0) < 0.1
        assert threshold.judge(3.0 * level).grade > 0.9
        threshold.judge(level)
        assert threshold.judge(3.0 * level).grade > 0.9


def test_adaptive_threshold_starts_careful_and_grows_confident():
    """Before ten scores the threshold is 1.5; zeros say nothing; confidence rises from 0 towards 1."""
    threshold = AdaptiveThreshold(time_decay=100, output_after=5)
    assert threshold.judge(0.0).grade == 0.0
    assert threshold.seen == 0
    verdicts = [threshold.judge(score) for score in ordinary_scores(600)]
    assert verdicts[0].threshold == 1.5
    confidences = [verdict.confidence for verdict in verdicts]
    assert confidences[:6] == [0.0] * 6
    assert (np.diff(confidences) >= 0).all()
    assert confidences[-1] > 0.9
    assert AdaptiveThreshold().judge(1.55).grade == 1.0


def test_equal_scores_make_any_higher_one_an_anomaly():
    """No deviation: grade 1 above the threshold."""
    threshold = AdaptiveThreshold()
    for _ in range(50):
        assert threshold.judge(1.0).grade <= 1.0
    assert threshold.judge(1.5).grade == 1.0


def test_quantile_threshold_keeps_its_budget():
    """One false alarm in 200 is asked for and comes; a spike has grade 1; nothing is said before there are scores enough."""
    threshold = QuantileThreshold(0.005)
    alarms = [threshold.judge(score).grade > 0 for score in ordinary_scores(20_000)]
    assert not any(alarms[:2000])
    assert 0.003 < np.mean(alarms[2000:]) < 0.007
    assert threshold.judge(9.0).grade == 1.0
    assert 0.0 < threshold.judge(0.9).confidence < 1.0


def test_quantile_threshold_forgets_the_order():
    """The same scores in another order, in two parts merged, or through JSON: the same threshold to the bit."""
    scores = ordinary_scores(3000)
    whole, first, second = (QuantileThreshold(0.01) for _ in range(3))
    for score in scores:
        whole.judge(score)
    for i, score in enumerate(scores[::-1]):
        (first if i % 3 else second).judge(score)
    first.merge(second)
    restored = QuantileThreshold.from_dict(json.loads(json.dumps(first.to_dict())))
    assert whole.value == first.value == restored.value
    assert whole.value == pytest.approx(np.quantile(scores, 0.99), rel=0.02)
    assert restored.to_dict() == whole.to_dict()
    with pytest.raises(BadParameter):
        first.merge(QuantileThreshold(0.01, accuracy=0.01))


def test_adaptive_threshold_survives_json():
    """Both go on alike."""
    threshold = AdaptiveThreshold(shingle=4)
    for score in ordinary_scores(100):
        threshold.judge(score)
    restored = AdaptiveThreshold.from_dict(json.loads(json.dumps(threshold.to_dict())))
    assert restored == threshold
    assert [restored.judge(s) for s in ordinary_scores(50, 1)] == [threshold.judge(s) for s in ordinary_scores(50, 1)]


@pytest.mark.parametrize("score", [-1.0, math.nan, math.inf])
def test_impossible_scores_are_refused(score):
    """By both rules."""
    for threshold in (AdaptiveThreshold(), QuantileThreshold()):
        with pytest.raises(BadParameter):
            threshold.judge(score)


def test_bad_parameters_are_refused():
    """Of both rules and of the dead bands."""
    for wrong in ({"z": 1.0}, {"anomaly_rate": 0.0}, {"time_decay": 0.0}):
        with pytest.raises(BadParameter):
            AdaptiveThreshold(**wrong)
    for wrong in ({"budget": 0.0}, {"accuracy": 0.7}):
        with pytest.raises(BadParameter):
            QuantileThreshold(**wrong)
    for wrong in ({"above": -1.0}, {"below_share": math.nan}, {"direction": "up"}):
        with pytest.raises(BadParameter):
            Suppression(**wrong)


def test_dead_bands_and_directions():
    """Absolute and relative bands, the wider one counts; each side has its own; missing values are within."""
    values, expected = np.array([[100.0, 5.0], [112.0, 5.0], [80.0, 5.0], [np.nan, 5.0]]), np.array([100.0, 5.0])
    high = np.array([[0.0, 0.1], [1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    low = np.array([[0.0, 0.2], [0.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    assert Suppression().keep(values, expected, high, low).tolist() == [False, True, True, False]
    assert Suppression(above=12.0).keep(values, expected, high, low).tolist() == [False, False, True, False]
    assert Suppression(above_share=0.2, below_share=0.1).keep(values, expected, high, low).tolist() == [
        False,
        False,
        True,
        False,
    ]
    assert Suppression(below_share=0.2).keep(values, expected, high, low).tolist() == [False, True, False, False]
    assert Suppression(direction="high").keep(values, expected, high, low).tolist() == [False, True, False, False]
    assert Suppression(direction="low").keep(values, expected, high, low).tolist() == [False, False, True, False]
    with pytest.raises(BadRows):
        Suppression().keep(values, expected, high[:, :1], low)
