"""Scores of anomaly detectors by the rules of the Numenta Anomaly Benchmark.

Owns the rules for one file: probation, windows, the scaled sigmoid, profiles, the best threshold, normalisation. Source: Lavin
and Ahmad, "Evaluating real-time anomaly detection algorithms - the Numenta Anomaly Benchmark", ICMLA 2015, section II.
"""

from __future__ import annotations

import math

import numpy as np

PROBATION = 0.15
# Weights of a detection, a false alarm, a missed window.
PROFILES = {"standard": (1.0, 0.11, 1.0), "low_fp": (1.0, 0.22, 1.0), "low_fn": (1.0, 0.11, 2.0)}


def weigh(place: float) -> float:
    """Scaled sigmoid of a detection's place: -1 at the start of its window, 0 at the end, above 0 behind it."""
    return -1.0 if place > 3.0 else 2.0 / (1.0 + math.exp(5.0 * place)) - 1.0


def score_alarms(alarms: np.ndarray, windows: list[tuple[int, int]], profile: str = "standard") -> float:
    """Score of one file, not normalised: first detection in each window, all false alarms, missed windows.

    Args:
        alarms: shape (n,), bool; those on probation are left out.
        windows: (first, last) row of each.
        profile: of PROFILES.
    """
    hit, false_alarm, miss = PROFILES[profile]
    found: dict[int, float] = {}
    total = 0.0
    for row in np.flatnonzero(alarms).tolist():
        if row < probation_rows(len(alarms)):
            continue
        inside = next((i for i, (first, last) in enumerate(windows) if first <= row <= last), None)
        if inside is not None:
            first, last = windows[inside]
            place = -(last - row + 1) / (last - first + 1)
            found.setdefault(inside, weigh(place) * hit / weigh(-1.0))
            continue
        before = [window for window in windows if window[1] < row]
        place = math.inf
        if before:
            first, last = before[-1]
            place = (row - last) / max(1, last - first)
        total += weigh(place) * false_alarm
    return total + sum(found.values()) - miss * (len(windows) - len(found))


def normalise(score: float, windows: int, profile: str = "standard") -> float:
    """100 for a perfect detector, 0 for one that never raises an alarm."""
    hit, _, miss = PROFILES[profile]
    return 100.0 * (score + miss * windows) / ((hit + miss) * windows)


def best_score(scores: np.ndarray, windows: list[tuple[int, int]], profile: str = "standard") -> tuple[float, float]:
    """(normalised score, threshold) at the best threshold for these scores, as NAB sets it."""
    candidates = np.unique(np.quantile(scores[probation_rows(len(scores)) :], np.linspace(0.5, 1.0, 400)))
    rated = [(score_alarms(scores >= value, windows, profile), float(value)) for value in candidates]
    score, threshold = max([*rated, (score_alarms(np.zeros(len(scores), bool), windows, profile), math.inf)])
    return normalise(score, len(windows), profile), threshold


def probation_rows(rows: int) -> int:
    """Rows at the start on which nothing counts."""
    return int(min(math.floor(PROBATION * rows), PROBATION * 5000))
