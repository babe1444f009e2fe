"""Learning policies: frozen, streaming, gated; what a gate lets through, and that a new normal is learnt in the end."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scorer import RandomCutForest
from scorer.errors import BadParameter
from scorer.gate import WINDOW_ROWS, Gate


def normal_rows(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Rows of independent normal numbers, shape (n, 4)."""
    return np.random.default_rng(seed).normal(size=(n, 4)) + shift


def test_frozen_forest_learns_nothing():
    """Scores of `update` are those of `score_samples`, before and after."""
    forest = RandomCutForest(trees=10, policy="frozen").fit(normal_rows(500, 0))
    rows = normal_rows(300, 1, 3.0)
    expected = forest.score_samples(rows)
    assert forest.update(rows).tobytes() == expected.tobytes() == forest.score_samples(rows).tobytes()
    assert forest.rows_seen == 800


def test_gate_keeps_a_fault_out_that_streaming_learns():
    """A fault shorter than a run of drift scores high to its end behind the gate; a streaming forest gets used to it."""
    history, fault = normal_rows(2000, 0), normal_rows(900, 1, 5.0)
    gated = RandomCutForest(trees=50, time_decay=300).fit(history)
    streaming = RandomCutForest(trees=50, time_decay=300, policy="streaming").fit(history)
    assert gated.update(fault)[-100:].mean() > 2.0
    assert streaming.update(fault)[-100:].mean() < 1.2
    assert gated.gate.refused == 900
    assert gated.gate.drifts == 0


def test_a_real_level_shift_is_learnt_in_the_end():
    """A shift that goes on becomes drift, and the new level ordinary, even with a decay that forgets nothing by itself."""
    forest = RandomCutForest(trees=50, samples=128, time_decay=10**9).fit(normal_rows(3000, 0))
    new = normal_rows(4000, 1, 5.0)
    scores = forest.update(new)
    assert forest.gate.drifts == 1
    assert scores[:400].mean() > 2.0
    assert scores[-400:].mean() < 1.2
    assert forest.score_samples(normal_rows(200, 2, 10.0)).mean() > 1.5


def test_one_failing_engine_of_many_never_opens_the_gate():
    """Rows of the sound engines break every run."""
    forest = RandomCutForest(trees=20, samples=64).fit(normal_rows(2000, 0))
    rows = normal_rows(5000, 1)
    rows[::3] += 6.0
    scores = forest.update(rows)
    assert forest.gate.drifts == 0
    assert scores[::3][-100:].mean() > 2.0


def test_gated_results_do_not_depend_on_calls_threads_or_restores():
    """One call, many calls, restores between them, two threads: the same scores and the same bytes; drift included."""
    rows = np.concatenate([normal_rows(700, 0), normal_rows(500, 1, 5.0), normal_rows(100, 2)])
    parameters = {"trees": 6, "samples": 32, "time_decay": 100}
    whole, parts = RandomCutForest(**parameters), RandomCutForest(**parameters, threads=2)
    expected = whole.update(rows)
    found = []
    for a, b in itertools.pairwise([0, 1, 10, 255, 256, 300, 333, 390, 800, 801, 1299, 1300]):
        found.append(parts.update(rows[a:b]))
        parts = RandomCutForest.from_bytes(parts.to_bytes(), threads=1 + a % 2)
    assert np.concatenate(found).tobytes() == expected.tobytes()
    assert parts.to_bytes() == whole.to_bytes()
    assert whole.gate.drifts > 0


def test_rows_of_a_window_are_judged_before_any_is_learnt():
    """Rows wait until their window is full, and are no part of the forest before."""
    forest = RandomCutForest(trees=5).fit(normal_rows(WINDOW_ROWS * 4, 0))
    probe = normal_rows(20, 3)
    before = forest.score_samples(probe)
    forest.update(normal_rows(WINDOW_ROWS - 1, 1))
    assert forest.score_samples(probe).tobytes() == before.tobytes()
    forest.update(normal_rows(1, 2))
    assert forest.score_samples(probe).tobytes() != before.tobytes()


def test_gate_by_hand():
    """Mean and deviation of what passed; a run of refusals opens it and forgets."""
    gate = Gate(sigma=2.0, opening_rows=4, drift_rows=3)
    assert gate.limit == math.inf
    gate.pass_open([0.0, 1.0, 3.0, 1.0])
    assert not gate.open
    weights, scores = np.array([0.75**2, 0.75, 1.0]), np.array([1.0, 3.0, 1.0])
    mean = np.average(scores, weights=weights)
    deviation = math.sqrt(np.average((scores - mean) ** 2, weights=weights))
    assert gate.limit == pytest.approx(mean + 2 * deviation)
    passed, judged = gate.judge([9.0, 9.0, 1.0, 9.0, 9.0, 9.0, 1.0])
    assert passed.tolist() == [False, False, True, False, False, False]
    assert (judged, gate.drifts, gate.refused, gate.open) == (6, 1, 5, True)


@pytest.mark.parametrize("parameters", [{"policy": "none"}, {"gate_sigma": 0.0}, {"gate_sigma": math.nan}])
def test_bad_parameters_are_refused(parameters):
    """Unknown policy, impossible sigma."""
    with pytest.raises(BadParameter):
        RandomCutForest(**parameters)
