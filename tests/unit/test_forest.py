"""RandomCutForest as its users meet it: parameters, bad rows, what it finds, and what it says about it."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import scorer
from scorer import RandomCutForest
from scorer.errors import BadParameter, BadRows, ForestNotFitted


def normal_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows of independent standard normal numbers, shape (n, d)."""
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trees", 0),
        ("trees", 1001),
        ("samples", 9),
        ("samples", 2049),
        ("time_decay", 0),
        ("time_decay", 2**31),
        ("seed", -1),
        ("seed", 2**63),
        ("threads", 0),
        ("trees", 10.0),
        ("samples", "256"),
        ("trees", True),
        ("seed", None),
    ],
)
def test_parameters_out_of_range_are_refused(name, value):
    """The message names the parameter, what was given and what is allowed."""
    with pytest.raises(BadParameter, match=rf"(?s){name}.*{value}.*Give \d+ to \d+"):
        RandomCutForest(**{name: value})


def test_extreme_parameters_work():
    """One tree, the fewest and the most samples, the longest decay, numpy integers."""
    X = normal_rows(60, 3)
    for parameters in ({"trees": 1, "samples": np.int64(10)}, {"trees": 2, "samples": 2048, "time_decay": 2**31 - 1}):
        forest = RandomCutForest(**parameters, seed=2**63 - 1).fit(X)
        assert np.isfinite(forest.update(X)).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(3), "two dimensions"),
        (np.zeros((2, 2, 2)), "two dimensions"),
        (np.zeros((3, 0)), "no columns"),
        (np.zeros((0, 3)), "no rows"),
        ([["a", "b"]], "not numbers"),
        ([[1.0], [1.0, 2.0]], "not numbers"),
        ([[0.0, 1.0], [math.inf, 0.0]], "(?s)infinite.*row 1, column 0"),
        ([[0.0, -math.inf]], "(?s)infinite.*row 0, column 1"),
        ([[1e39]], "does not fit float32"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    """Wrong shapes, text, infinities: a typed error that says where, and a forest that is what it was."""
    forest = RandomCutForest(trees=2).fit(normal_rows(20, 2))
    before = forest.to_bytes()
    with pytest.raises(BadRows, match=message):
        forest.fit(rows)
    assert forest.to_bytes() == before


def test_a_bad_row_late_in_a_call_leaves_the_forest_as_it_was():
    """An infinity in the last of many rows: none of them is learnt."""
    X = normal_rows(5000, 2)
    X[-1, 1] = math.inf
    forest = RandomCutForest(trees=2).fit(normal_rows(20, 2))
    before = forest.to_bytes()
    for method in (forest.update, forest.partial_fit, forest.score_samples):
        with pytest.raises(BadRows, match="row 4999, column 1"):
            method(X)
    assert forest.to_bytes() == before


def test_empty_forest_and_wrong_number_of_columns():
    """Questions to an empty forest, or with other columns, are errors; no rows is a fair question."""
    forest = RandomCutForest(trees=2)
    for ask in (forest.score_samples, forest.explain):
        with pytest.raises(ForestNotFitted):
            ask(np.zeros((1, 2)))
    with pytest.raises(ForestNotFitted):
        forest.to_bytes()
    assert forest.state_bytes == 0
    forest.fit(np.zeros((5, 2)))
    for ask in (forest.score_samples, forest.explain, forest.update):
        with pytest.raises(BadRows, match="3 columns where 2"):
            ask(np.zeros((1, 3)))
    assert forest.score_samples(np.zeros((0, 2))).shape == (0,)
    assert forest.explain(np.zeros((0, 2)))[0].shape == (0, 2)
    assert forest.update(np.zeros((0, 2))).shape == (0,)


def test_one_point():
    """A forest of one row: that row scores 1/2, any other 1 (= log2(1 + 1)); left out of itself, 0."""
    forest = RandomCutForest(trees=3)
    assert forest.fit_score([[1.0, 2.0]]).tolist() == [0.0]
    assert forest.score_samples([[1.0, 2.0], [1.0, 2.5]]).tolist() == [0.5, 1.0]
    high, low = forest.explain([[1.0, 2.5]])
    assert high.tolist() == [[0.0, 1.0]]
    assert low.tolist() == [[0.0, 0.0]]


def test_constant_rows_and_columns():
    """Rows that are all the same make one leaf; the first other row stands out, and is explained by the column that moved."""
    forest = RandomCutForest(trees=10, samples=64).fit(np.full((500, 3), 7.0))
    same, other = forest.score_samples([[7.0, 7.0, 7.0], [7.0, 6.0, 7.0]])
    assert same < 0.6
    assert other == pytest.approx(math.log2(65))
    high, low = forest.explain([[7.0, 6.0, 7.0]])
    assert low[0].tolist() == [0.0, other, 0.0]
    assert not high.any()


def test_outliers_score_high_and_ordinary_rows_near_one():
    """Gaussian rows stay below 1 on average, planted ones above 1.5, for any of several seeds."""
    X, planted = normal_rows(4000, 8), normal_rows(50, 8, 1) + 4.0
    for seed in range(4):
        forest = RandomCutForest(seed=seed).fit(X)
        assert forest.score_samples(normal_rows(500, 8, 2)).mean() < 1.0
        assert forest.score_samples(planted).min() > 1.5


def test_explanation_names_column_and_direction():
    """The column that was moved carries most of the attribution, on the side that it was moved to."""
    forest = RandomCutForest().fit(normal_rows(2000, 6))
    for column, shift in [(0, 8.0), (3, -8.0), (5, 8.0)]:
        rows = normal_rows(20, 6, 3)
        rows[:, column] = shift
        high, low = forest.explain(rows)
        assert (np.argmax(high + low, axis=1) == column).all()
        sides = (high, low) if shift > 0 else (low, high)
        assert (sides[0][:, column] > 5 * sides[1][:, column]).all()


def test_known_outlier_is_still_explained():
    """A row that sits in every tree is explained by its own columns, not evenly."""
    X = normal_rows(200, 5)
    X[17] = [0.0, 0.0, 9.0, 0.0, 0.0]
    high, low = RandomCutForest(samples=256).fit(X).explain(X[17:18])
    assert high[0, 2] > 0.5 * (high + low).sum()


def test_training_scores_are_not_flattered():
    """Scored as seen, training rows look more ordinary than fresh rows of the same kind; scored without themselves, alike."""
    X, fresh = normal_rows(250, 6), normal_rows(2000, 6, 1)
    forest = RandomCutForest()
    honest = forest.fit_score(X)
    flattered, expected = forest.score_samples(X), forest.score_samples(fresh)
    assert flattered.mean() < 0.92 * expected.mean()
    assert honest.mean() == pytest.approx(expected.mean(), rel=0.02)
    assert honest.std() == pytest.approx(expected.std(), rel=0.25)
    assert forest.score_samples(fresh).tobytes() == RandomCutForest().fit(X).score_samples(fresh).tobytes()


def test_missing_values_lower_nothing_and_raise_little():
    """Rows with a third of their values missing score about like whole rows, and outliers among the rest still show."""
    forest = RandomCutForest().fit(normal_rows(3000, 9))
    whole = normal_rows(500, 9, 1)
    holes = np.where(np.random.default_rng(2).random(whole.shape) < 1 / 3, np.nan, whole)
    assert forest.score_samples(holes).mean() == pytest.approx(forest.score_samples(whole).mean(), rel=0.15)
    holes[:, 0] = 8.0
    assert (forest.score_samples(holes) > 1.2).all()


def test_stream_is_silent_at_first_then_scores():
    """The first samples / 4 rows of a new stream score 0; after a fit every row gets a score."""
    X = normal_rows(200, 3)
    assert np.flatnonzero(RandomCutForest(trees=5, samples=64, policy="streaming").update(X))[0] == 16
    assert RandomCutForest(trees=5, samples=64, policy="streaming").fit(X).update(X).min() > 0.0


def test_stream_forgets_with_time_decay():
    """After a level shift, a short decay makes the new level ordinary and a long one does not."""
    old, new = normal_rows(1500, 4), normal_rows(1500, 4, 1) + 6.0
    short = RandomCutForest(trees=30, time_decay=200).fit(old).partial_fit(new)
    long = RandomCutForest(trees=30, time_decay=10**9).fit(old).partial_fit(new[:50])
    assert short.score_samples(new).mean() < 1.0 < short.score_samples(old).mean()
    assert long.score_samples(new).mean() > 1.5 > 1.0 > long.score_samples(old).mean()


def test_reservoir_is_uniform_without_decay():
    """In a batch, every row has the same chance to be sampled, wherever it stands."""
    forest = RandomCutForest(trees=400, samples=50).fit(normal_rows(1000, 1))
    thirds = np.histogram(forest._slots["row"], bins=4, range=(0, 1000))[0]
    assert thirds.sum() == 400 * 50
    assert abs(thirds - 5000).max() < 5 * math.sqrt(5000)


def test_forest_is_a_function_of_rows_and_seed():
    """Same seed, same forest; another seed, another forest."""
    X = normal_rows(300, 3)
    assert RandomCutForest(seed=1).fit(X).to_bytes() == RandomCutForest(seed=1).fit(X).to_bytes()
    assert RandomCutForest(seed=1).fit(X).to_bytes() != RandomCutForest(seed=2).fit(X).to_bytes()


def test_import_is_lazy():
    """`import scorer` alone loads neither numpy nor numba, and unknown names are told apart."""
    code = """import scorer, sys
assert not {'numpy', 'numba'} & set(sys.modules)
scorer.RandomCutForest
assert 'numba' in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = scorer.nothing_of_the_kind
