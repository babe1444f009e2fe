"""The forest as a scikit-learn estimator."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from scorer.outlier import RandomCutOutlier


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([RandomCutOutlier(trees=8, samples=32)])
def test_estimator_checks(estimator, check):
    """All checks that scikit-learn has for outlier detectors."""
    check(estimator)


def test_orientation_and_contamination():
    """Outliers are -1 and score lowest; the share of them is the one that was asked for."""
    rows = np.random.default_rng(0).normal(size=(500, 3))
    rows[:10] += 8.0
    found = RandomCutOutlier(trees=50, contamination=0.02).fit(rows)
    assert (found.predict(rows) == -1).nonzero()[0].tolist() == list(range(10))
    assert found.score_samples(rows).argmin() < 10
    with pytest.raises(ValueError, match="contamination"):
        RandomCutOutlier(contamination=0.0).fit(rows)
