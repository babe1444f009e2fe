"""Laws of the random cut forest that hold for any rows, seeds and cuts into calls."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scorer import RandomCutForest, kernels
from tests.naive_forest import NaiveForest, plain, unfold

# Few distinct values give duplicates and touching boxes; the rest are the awkward ones of float32.
_VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, math.nan]),
    st.floats(-100.0, 100.0, width=32),
    st.sampled_from([1e-45, 1e-30, 1.0000001, 3e38, -3e38, 16777216.0, 16777217.0]),
)


@st.composite
def rows(draw, low: int = 1, high: int = 40) -> np.ndarray:
    """Rows of shape (n, d), low <= n <= high, 1 <= d <= 10; about one column in four constant."""
    shape = draw(st.integers(low, high)), draw(st.integers(1, 10))
    values = draw(hnp.arrays(np.float64, shape, elements=_VALUES, fill=st.nothing()))
    constant = draw(hnp.arrays(np.bool_, shape[1], elements=st.sampled_from([False, False, False, True])))
    values[:, constant] = values[0, constant]
    return values


_SEEDS = st.integers(0, 2**63 - 1)
_FEW = settings(max_examples=40, deadline=None)


def small_forest(seed: int, **parameters: object) -> RandomCutForest:
    """A forest that hypothesis can afford, with more than one chunk of trees."""
    return RandomCutForest(**{"trees": 6, "samples": 10, "time_decay": 20, "policy": "streaming", **parameters}, seed=seed)


def points_below(node: tuple) -> list[tuple]:
    """(point, mass) of all leaves below a node of an unfolded tree."""
    if node[0] == "leaf":
        return [(node[2], node[1])]
    return points_below(node[-2]) + points_below(node[-1])


def check_tree(node: tuple) -> None:
    """Children partition the parent's points by its cut, masses add up, and every face of a box touches a point."""
    if node[0] == "leaf":
        assert node[1] >= 1
        return
    mass, dim, value, low, high, range_sum, left, right = node
    points = points_below(node)
    assert mass == sum(count for _, count in points)
    assert all(point[dim] is None or point[dim] <= value for point, _ in points_below(left))
    assert all(point[dim] is None or point[dim] > value for point, _ in points_below(right))
    for i in range(len(low)):
        present = [point[i] for point, _ in points if point[i] is not None]
        assert low[i] == (min(present) if present else None)
        assert high[i] == (max(present) if present else None)
    lengths = [b - a for a, b in zip(low, high, strict=True) if a is not None]
    assert range_sum == pytest.approx(math.fsum(lengths), rel=1e-12)
    check_tree(left)
    check_tree(right)


@_FEW
@given(rows(), rows(1, 1), _SEEDS, st.booleans())
def test_kernels_equal_the_naive_forest(X, probe, seed, batch):
    """Same trees, node by node, and the same scores and attributions as the slow twin, after fit and after updates."""
    probe = np.resize(probe, (1, X.shape[1]))
    forest, naive = small_forest(seed), NaiveForest(6, 10, 20, seed)
    if batch:
        forest.fit(X)
        naive.fit(X)
    else:
        scores, expected = forest.update(X), naive.update(X)
        np.testing.assert_allclose(scores[2:], expected[2:], rtol=1e-9, atol=1e-12)
    second = X[::-1] if batch else X[:0]
    forest.update(second)
    naive.update(second)
    for t in range(6):
        assert unfold(forest, t) == naive.unfold(t)
    asked = np.concatenate([probe, X[:4]])
    np.testing.assert_allclose(forest.score_samples(asked), naive.score_samples(asked), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(forest.explain(asked), naive.explain(asked), rtol=1e-9, atol=1e-12)


@_FEW
@given(rows(), _SEEDS)
def test_training_scores_are_those_of_trees_without_the_row(X, seed):
    """`fit_score` equals: delete the row from each tree that sampled it, then score it."""
    naive = NaiveForest(6, 10, 20, seed)
    naive.fit(X)
    np.testing.assert_allclose(small_forest(seed).fit_score(X), naive.score_training(X), rtol=1e-9, atol=1e-12)


@_FEW
@given(rows(), _SEEDS)
def test_trees_are_sound_after_every_kind_of_change(X, seed):
    """Partition, masses and tight boxes, after a batch and after insertions with evictions."""
    forest = small_forest(seed).fit(X)
    forest.update(X)
    for t in range(forest.trees):
        check_tree(unfold(forest, t))
        slots = forest._slots[t][: forest._tree_records[t]["size"]]
        assert len(slots) == min(2 * len(X), forest.samples)
        assert unfold(forest, t)[1 if unfold(forest, t)[0] == "leaf" else 0] == len(slots)
        assert len(set(slots["row"])) == len(slots)


@_FEW
@given(rows(2), _SEEDS)
def test_attributions_add_up_to_scores_within_bounds(X, seed):
    """Sum of high and low = score to 1e-9; 0 <= score <= log2(1 + mass); nothing for what is missing, nothing negative."""
    forest = small_forest(seed).fit(X[: len(X) // 2 + 1])
    scores, (high, low) = forest.score_samples(X), forest.explain(X)
    assert abs((high + low).sum(axis=1) - scores).max() <= 1e-9
    assert scores.min() >= 0.0
    assert scores.max() <= math.log2(1 + min(forest.samples, len(X) // 2 + 1)) + 1e-12
    assert high.min() >= 0.0
    assert low.min() >= 0.0
    some = ~np.isnan(X).all(axis=1)
    assert not (high + low)[some][np.isnan(X[some])].any()


@_FEW
@given(rows(2, 10), _SEEDS)
def test_deleting_what_was_inserted_last_restores_the_tree(X, seed):
    """Insert then delete leaves the very same tree, free lists included."""
    forest = small_forest(seed, samples=12).fit(X[:-1])
    points = np.zeros((1, forest._corners.shape[2]), np.float32)
    points[0, : X.shape[1]] = X[-1]
    for t in range(forest.trees):
        arrays = forest._tree_records[t], forest._nodes[t], forest._corners[t]
        before, head = unfold(forest, t), forest._tree_records[t].copy()
        work = kernels.make_scratch(1, arrays[1].shape[0], points.shape[1])
        with np.errstate(over="ignore"):
            leaf = kernels.insert_point(*arrays, points, 0, np.uint64(kernels.random_stream(seed, t, 99)), work)
        assert unfold(forest, t) != before
        kernels.delete_leaf(*arrays, leaf)
        assert unfold(forest, t) == before
        assert forest._tree_records[t] == head


@_FEW
@given(rows(), _SEEDS, st.lists(st.integers(0, 40), max_size=4), st.sampled_from([1, 2, 3]))
def test_results_do_not_depend_on_calls_or_threads(X, seed, cuts, threads):
    """Rows in one call or in many, on one thread or several: bit for bit the same scores and state."""
    X = np.tile(X, (3, 1))
    whole, parts = small_forest(seed), small_forest(seed, threads=threads)
    expected = whole.update(X)
    bounds = sorted({0, len(X), *(cut for cut in cuts if cut < len(X))})
    found = np.concatenate([parts.update(X[a:b]) for a, b in itertools.pairwise(bounds)])
    assert found.tobytes() == expected.tobytes()
    assert parts.to_bytes() == whole.to_bytes()
    one_by_one = np.concatenate([parts.score_samples(X[i : i + 1]) for i in range(len(X))])
    assert one_by_one.tobytes() == whole.score_samples(X).tobytes()
    assert np.array(parts.explain(X)).tobytes() == np.array(whole.explain(X)).tobytes()


@_FEW
@given(rows(2), _SEEDS, st.integers(1, 39))
def test_restored_forest_is_bit_identical(X, seed, at):
    """Save and restore at any row; both go on alike, and both save the same bytes."""
    at = min(at, len(X) - 1)
    forest = small_forest(seed)
    forest.update(X[:at])
    restored = RandomCutForest.from_bytes(forest.to_bytes(), threads=2)
    assert restored.update(X[at:]).tobytes() == forest.update(X[at:]).tobytes()
    assert restored.to_bytes() == forest.to_bytes()
    assert [unfold(restored, t) for t in range(6)] == [unfold(forest, t) for t in range(6)]


@_FEW
@given(rows(1, 10), _SEEDS)
def test_a_batch_that_fits_is_a_stream(X, seed):
    """With no more rows than samples, fit and row-by-row learning build the same trees."""
    batch, stream = small_forest(seed).fit(X), small_forest(seed).partial_fit(X)
    assert [unfold(batch, t) for t in range(6)] == [unfold(stream, t) for t in range(6)]


@_FEW
@given(rows(), _SEEDS)
def test_missing_columns_are_no_evidence(X, seed):
    """A column of which nothing was ever seen, or that is not given, gets no part of any score; negative zero is zero."""
    forest = small_forest(seed).fit(np.column_stack([X, np.full(len(X), math.nan)]))
    probe = np.column_stack([X, np.arange(len(X), dtype=float)])
    same = np.column_stack([np.where(X == 0.0, -X, X), np.full(len(X), math.nan)])
    assert forest.score_samples(probe).tobytes() == forest.score_samples(same).tobytes()
    assert plain(forest._corners[0, 2 * forest.samples - 2, : X.shape[1] + 1])[-1] is None
