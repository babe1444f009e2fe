"""The detector: every stage in one stream, whatever the cuts, and what it says of the rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scorer.detector import Detector
from scorer.errors import BadParameter, BadRows, CheckpointRefused, ForestNotFitted

SMALL = {"trees": 12, "samples": 32, "time_decay": 50}
STREAM = [
    {"policy": "streaming", "threshold": "adaptive", "scale": "none"},
    {"policy": "streaming", "shingle": 4, "threshold": "budget", "threshold_value": 0.02, "baseline_rows": 6},
    {"policy": "gated", "shingle": 2, "threshold": "adaptive", "gate_sigma": 1.5},
    {"policy": "frozen", "baseline_rows": 3, "ignore_above": 4.0, "ignore_below_share": 0.5, "direction": "low"},
    {"policy": "gated", "threshold": "quantile", "threshold_value": 0.9},
]
ARRAYS = (
    "scores",
    "thresholds",
    "confidences",
    "grades",
    "learned",
    "late",
    "suppressed",
    "explained",
    "high",
    "low",
    "expected",
)


def make_fleet(rows: int, seed: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(rows, entities, order): five engines with levels of their own, spikes, holes, and some late rows."""
    rng = np.random.default_rng(seed)
    engines = rng.integers(0, 5, rows)
    values = rng.normal(size=(rows, 3)) + engines[:, np.newaxis] * 2.0
    values[rng.random(rows) < 0.04, 1] += 9.0
    values[rng.random(values.shape) < 0.02] = np.nan
    order = np.arange(rows, dtype=float) + 1000 * seed
    order[rng.random(rows) < 0.03] -= 60.0
    return values, [f"engine {i}" for i in engines], order


def make_detector(parameters: dict) -> Detector:
    """A detector with a history where it needs one, or half the times that it does not."""
    detector = Detector(SMALL | parameters, 3)
    if parameters.get("scale") != "none":
        detector.fit(*make_fleet(400, 0))
    return detector


@pytest.mark.parametrize("parameters", STREAM)
def test_findings_do_not_depend_on_calls_threads_or_restores(parameters):
    """One call, or many with restores and other threads between them: every array of the findings and the state, to the bit."""
    rows, entities, order = make_fleet(500, 1)
    whole, parts = make_detector(parameters), make_detector(parameters)
    expected = whole.process(rows, entities, order)
    assert expected.anomalous.any()
    pieces = []
    for a, b in itertools.pairwise([0, 1, 2, 30, 64, 65, 200, 330, 331, 500]):
        pieces.append((a, parts.process(rows[a:b], entities[a:b], order[a:b])))
        parts = Detector.from_bytes(parts.to_bytes(), threads=1 + a % 2)
    for name in ARRAYS:
        found = np.concatenate([piece.explained + a if name == "explained" else getattr(piece, name) for a, piece in pieces])
        assert found.tobytes() == getattr(expected, name).tobytes(), name
    assert parts.to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("parameters", STREAM)
def test_findings_fit_together(parameters):
    """Parts add up to the score; only rows above the threshold are explained; late and unready rows have no score."""
    detector = make_detector(parameters)
    rows, entities, order = make_fleet(500, 1)
    found = detector.process(rows, entities, order)
    np.testing.assert_allclose((found.high + found.low).sum(axis=1), found.scores[found.explained], rtol=1e-9)
    above = np.flatnonzero((found.scores > 0) & (found.scores > found.thresholds))
    assert set(found.explained) <= set(above)
    assert (found.anomalous | found.suppressed)[found.explained].all()
    assert not (found.anomalous & found.suppressed).any()
    assert np.isnan(found.scores[found.late]).all()
    assert (found.late.any()) == ("shingle" in parameters)
    assert not found.learned[np.isnan(found.scores)].any()
    policy = parameters["policy"]
    scored = ~np.isnan(found.scores)
    assert found.learned[scored].mean() == {"streaming": 1.0, "frozen": 0.0}.get(policy, pytest.approx(0.85, abs=0.15))
    everything = make_detector(parameters).process(rows, entities, order, explain_all=True)
    assert everything.scores.tobytes() == found.scores.tobytes()
    assert everything.explained.tolist() == np.flatnonzero(found.scores > 0).tolist()


def test_expected_values_are_in_the_units_of_the_columns():
    """Columns that go together, one is off: what was expected follows from the others and from the engine's own level."""
    rng = np.random.default_rng(0)
    hidden, engine = rng.normal(size=1500), np.arange(1500) % 3
    units = np.array([10.0, 400.0, 1.0, 0.01])
    rows = 50 * units + hidden[:, np.newaxis] * units + engine[:, np.newaxis] * 100 * units
    detector = Detector({"policy": "frozen", "baseline_rows": 100}, 4)
    detector.fit(rows, engine)
    row = (50 + 200 + 1.0) * units
    row[1] += 15 * units[1]
    found = detector.process(row[np.newaxis], [2])
    assert found.explained.tolist() == [0]
    assert (found.high + found.low)[0].argmax() == 1
    assert found.high[0, 1] > found.low[0, 1]
    assert found.expected[0, 1] / units[1] == pytest.approx(251.0, abs=1.5)


def test_an_entity_without_a_level_is_not_scored_until_it_has_one():
    """A new engine's first rows make its level; the next is judged by it."""
    detector = Detector(SMALL | {"policy": "frozen", "baseline_rows": 4}, 3)
    rows, entities, order = make_fleet(300, 0)
    detector.fit(rows, entities, order)
    new = np.nan_to_num(rows[:6]) * 0.1 + 500.0
    found = detector.process(new, ["new"] * 6)
    assert np.isnan(found.scores).tolist() == [True] * 4 + [False] * 2
    assert not found.anomalous[4:].any()
    assert detector.process(new[:1] - 400.0, ["new"]).anomalous.all()


def test_dead_bands_and_directions_take_the_grade_and_leave_the_score():
    """A spike within the dead band, or in the direction that nobody asked about, is suppressed and still explained."""
    history, rows = np.random.default_rng(0).normal(size=(500, 3)), np.full((1, 3), 0.1)
    rows[0, 1] = 15.0
    for extra, suppressed in [
        ({}, False),
        ({"ignoreNearExpectedFromAbove": 20.0}, True),
        ({"direction": "low"}, True),
        ({"direction": "high"}, False),
    ]:
        detector = Detector(SMALL | extra, 3)
        detector.fit(history)
        found = detector.process(rows)
        assert (found.suppressed[0], found.anomalous[0]) == (suppressed, not suppressed)
        assert found.scores[0] > found.thresholds[0]
        assert found.explained.tolist() == [0]


def test_rescoring_changes_nothing():
    """Rows that were updated are scored by what is known now; with a shingle, late rows in their place; the state stays."""
    for parameters in STREAM:
        detector = make_detector(parameters)
        rows, entities, order = make_fleet(300, 1)
        detector.process(rows, entities, order)
        before = detector.to_bytes()
        found = detector.rescore(rows, entities, order)
        assert detector.to_bytes() == before
        assert not found.learned.any()
        assert not found.late.any()
        if parameters["policy"] == "frozen":
            again = detector.process(rows, entities, order)
            assert again.scores.tobytes() == found.scores.tobytes()


def test_a_stream_goes_on_where_the_history_ends():
    """The first row after the history has a whole shingle, of the history's newest rows and itself."""
    rows = np.random.default_rng(0).normal(size=(300, 2))
    detector = Detector(SMALL | {"shingle": 5, "policy": "frozen", "scale": "none"}, 2)
    training = detector.fit(rows[::-1], order=np.arange(300)[::-1])
    assert np.isnan(training).sum() == 4
    found = detector.process(rows[:1], order=[300.0])
    window = np.concatenate([rows[-4:], rows[:1]]).ravel()
    assert found.scores[0] == detector.forest.score_samples(window[np.newaxis])[0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nTrees": 5}, "Unknown parameter nTrees"),
        ({"scale": "max"}, "Unknown scale"),
        ({"threshold": "mean"}, "Unknown threshold"),
        ({"threshold": "quantile", "threshold_value": 2.0}, "quantile"),
        ({"threshold": "budget", "threshold_value": 0.0}, "budget"),
        ({"threshold": "adaptive", "threshold_value": 1.0}, "z 2 or more"),
        ({"baseline_rows": -1}, "baseline_rows"),
        ({"direction": "up"}, "Unknown direction"),
        ({"ignore_above": -1.0}, "dead band"),
        ({"dimensions": 4}, "3 columns"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    """Before any row is seen."""
    with pytest.raises(BadParameter, match=message):
        Detector(parameters, 3)


def test_bad_rows_are_refused_before_anything_is_taken_in():
    """An infinity, a wrong width, entities or order of another length: the state is what it was."""
    detector = make_detector(STREAM[0])
    detector.process(*make_fleet(50, 0))
    before = detector.to_bytes()
    rows = np.zeros((3, 3))
    for arguments in [
        (rows[:, :2],),
        (np.full((3, 3), np.inf),),
        (rows, ["a"]),
        (rows, None, [1.0, np.nan, 2.0]),
        (rows, None, ["x", "y", "z"]),
    ]:
        with pytest.raises(BadRows):
            detector.process(*arguments)
    assert detector.to_bytes() == before


def test_what_needs_a_history_says_so():
    """Scale and fixed thresholds are set on training rows."""
    rows = np.zeros((3, 3))
    for parameters in [{}, {"policy": "streaming", "threshold": "adaptive"}, {"policy": "frozen", "threshold": "adaptive"}]:
        with pytest.raises(ForestNotFitted):
            Detector(parameters, 3).process(rows)
    with pytest.raises(ForestNotFitted):
        Detector({"policy": "streaming", "threshold": "adaptive", "scale": "none"}, 3).rescore(rows)
    with pytest.raises(BadRows, match="make a point"):
        Detector({"shingle": 4}, 3).fit(rows)


def test_other_bytes_are_refused():
    """A forest's checkpoint is not a detector's, nor the other way round."""
    detector = make_detector(STREAM[4])
    with pytest.raises(CheckpointRefused):
        Detector.from_bytes(detector.forest.to_bytes())
    with pytest.raises(CheckpointRefused):
        type(detector.forest).from_bytes(detector.to_bytes())
