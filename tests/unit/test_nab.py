"""The rules by which detectors are rated, against the example that is worked out where the rules were published."""

from __future__ import annotations

import numpy as np
import pytest

from bench.nab import PROFILES, best_score, normalise, score_alarms, weigh


def test_the_published_example():
    """One false alarm before the window, two detections in it, two false alarms behind it, near and far: Lavin and Ahmad give
    -1.0 A_FP + 0.9999 A_TP - 0.8093 A_FP - 1.0 A_FP, 0.6909 with the standard profile.
    """
    first, last = 3000, 3600
    near, far = last + 270, last + 1900  # 0.45 and more than 3 windows behind it
    assert weigh(0.45) == pytest.approx(-0.8093, abs=5e-5)
    assert weigh((far - last) / (last - first)) == -1.0
    assert weigh(-600 / 601) / weigh(-1.0) == pytest.approx(0.9999, abs=5e-5)
    alarms = np.zeros(10_000, bool)
    alarms[[2000, first + 1, first + 300, near, far]] = True
    assert score_alarms(alarms, [(first, last)]) == pytest.approx(0.6909, abs=5e-5)


def test_what_is_missed_and_what_is_on_probation():
    """A missed window costs its weight; alarms in the first 15 % cost nothing; 100 is perfect, 0 is silence."""
    windows = [(3000, 3600), (7000, 7600)]
    silent, perfect = np.zeros(10_000, bool), np.zeros(10_000, bool)
    perfect[[3000, 7000]] = True
    early = perfect.copy()
    early[:700] = True
    for profile, (_, _, miss) in PROFILES.items():
        assert score_alarms(silent, windows, profile) == -2 * miss
        assert normalise(score_alarms(silent, windows, profile), 2, profile) == 0.0
        assert normalise(score_alarms(perfect, windows, profile), 2, profile) == pytest.approx(100.0)
        assert score_alarms(early, windows, profile) == score_alarms(perfect, windows, profile)


def test_the_best_threshold_is_found():
    """Scores that stand out in the windows alone are rated near 100."""
    scores = np.random.default_rng(0).random(10_000)
    scores[[3000, 7000]] = 5.0
    rated, threshold = best_score(scores, [(3000, 3600), (7000, 7600)])
    assert rated > 99.0
    assert 1.0 <= threshold <= 5.0
