"""Thresholds and grades."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from scorer.threshold import Threshold, fit_threshold


def test_sigma_is_mean_plus_k_deviations():
    """Value, and a grade that rises from the threshold to twice its distance from the mean."""
    scores = np.array([1.0, 2.0, 3.0, 2.0])
    threshold = fit_threshold(scores, "sigma", 2.0)
    assert threshold.value == pytest.approx(2.0 + 2.0 * math.sqrt(0.5))
    assert threshold.spread == pytest.approx(2.0 * math.sqrt(0.5))
    asked = threshold.value + threshold.spread * np.array([-5.0, 0.0, 0.25, 1.0, 9.0])
    assert threshold.grade(asked) == pytest.approx([0.0, 0.0, 0.25, 1.0, 1.0])


def test_quantile_leaves_its_share_of_training_rows_above():
    """Half a per cent of 10,000 training scores lie above the default quantile."""
    scores = np.random.default_rng(0).gamma(3.0, size=10_000)
    threshold = fit_threshold(scores, "quantile")
    assert (scores > threshold.value).sum() == 50
    assert threshold.value - threshold.spread == pytest.approx(np.median(scores))
    assert ((threshold.grade(scores) > 0) == (scores > threshold.value)).all()


def test_constant_scores():
    """No spread: at the threshold grade 0, anything above it grade 1."""
    threshold = fit_threshold([0.5, 0.5, 0.5])
    assert (threshold.value, threshold.spread) == (0.5, 0.0)
    assert threshold.grade([0.4, 0.5, np.nextafter(0.5, 1.0), 2.0]).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_unknown_scores_get_unknown_grades():
    """NaN in, NaN out, also where there is no spread."""
    for scores in ([1.0, 2.0], [1.0, 1.0]):
        assert np.isnan(fit_threshold(scores).grade([math.nan])).all()


def test_round_trip_through_json_is_exact():
    """A threshold survives JSON."""
    threshold = fit_threshold(np.random.default_rng(1).normal(size=100), "quantile", 0.9)
    assert Threshold.from_dict(json.loads(json.dumps(threshold.to_dict()))) == threshold


@pytest.mark.parametrize(
    ("scores", "method", "parameter", "message"),
    [
        ([], "sigma", None, "at least one"),
        ([1.0, math.nan], "sigma", None, "finite"),
        ([1.0], "sigma", -1.0, "k >= 0"),
        ([1.0], "quantile", 1.0, "between 0 and 1"),
        ([1.0], "quantile", math.nan, "between 0 and 1"),
        ([1.0], "mad", None, "sigma, quantile"),
    ],
)
def test_bad_input_is_refused(scores, method, parameter, message):
    """No scores, unknown methods, parameters out of range."""
    with pytest.raises(ValueError, match=message):
        fit_threshold(scores, method, parameter)
