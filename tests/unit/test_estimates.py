"""What a forest knows besides scores: other measures, expected values, neighbours, density, forecasts, hotspots."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from scorer import RandomCutForest
from scorer.errors import BadParameter, BadRows
from scorer.hotspots import find_hotspots
from scorer.shingle import Shingler
from tests import naive_forest


def normal_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows of independent standard normal numbers, shape (n, d)."""
    return np.random.default_rng(seed).normal(size=(n, d))


def expect_insertion(node: object, x: list[float], tell, depth: int = 0, collusion: float = 0.0) -> float:
    """Expectation of tell(node, depth, collusion, seen) over where x would be split off, by the textbook recursion."""
    gap, leaf = node.gap_sum(x), node.is_leaf
    if leaf and gap == 0.0:
        return tell(node, depth, collusion, True)
    q = gap / (gap + node.range_sum())
    value = q * tell(node, depth, collusion, False)
    if leaf:
        return value
    child = node.child(x)
    beside = node.right if child is node.left else node.left
    return value + (1 - q) * expect_insertion(child, x, tell, depth + 1, max(collusion, beside.mass / (child.mass + 1)))


def test_measures_equal_their_definitions():
    """Depth, displacement and collusive displacement, against a recursion over the slow twin's trees."""
    rows = normal_rows(60, 3).round(1)
    forest, naive = RandomCutForest(trees=6, samples=20).fit(rows), naive_forest.NaiveForest(6, 20, 100_000, 0)
    naive.fit(rows)
    tells = {
        "depth": lambda total: lambda node, depth, collusion, seen: depth + (math.log2(1 + node.mass) if seen else 1),
        "displacement": lambda total: (
            lambda node, depth, collusion, seen: (
                ((1 - node.mass / (2 * total)) / (1 + node.mass) if seen else node.mass) / (1 + total)
            )
        ),
        "collusive_displacement": lambda total: (
            lambda node, depth, collusion, seen: collusion if seen else max(collusion, node.mass)
        ),
    }
    asked = np.concatenate([rows[:10], normal_rows(10, 3, 1) * 3])
    for measure, tell in tells.items():
        expected = [
            np.mean([expect_insertion(tree.root, x, tell(tree.root.mass)) for tree in naive.trees])
            for x in naive_forest.as_lists(asked)
        ]
        np.testing.assert_allclose(forest.score_samples(asked, measure), expected, rtol=1e-9)
    with pytest.raises(BadParameter, match="collusive_displacement"):
        forest.score_samples(asked, "entropy")


def test_measures_change_nothing_and_point_the_same_way():
    """An outlier is shallow, displaces many and colludes with none; the trees are what they were."""
    forest = RandomCutForest().fit(normal_rows(2000, 4))
    before = forest.to_bytes()
    pair = [[0.0] * 4, [7.0] * 4]
    assert np.diff(forest.score_samples(pair, "depth"))[0] < -5
    assert np.diff(forest.score_samples(pair, "displacement"))[0] > 0.3
    assert np.diff(forest.score_samples(pair, "collusive_displacement"))[0] > 50
    assert forest.to_bytes() == before


def test_missing_values_are_imputed_from_the_others():
    """Two columns that follow a third are filled in; what is known stays; what nobody knows stays missing."""
    x = np.random.default_rng(0).uniform(-3, 3, size=2000)
    rows = np.column_stack([x, 2 * x, -x, np.full(2000, np.nan)])
    forest = RandomCutForest(samples=1024).fit(rows)
    asked = np.array([[1.0, np.nan, np.nan, np.nan], [np.nan, -4.0, 2.0, np.nan]])
    found = forest.impute(asked)
    assert found[0, 0] == 1.0
    assert found[0, 1:3] == pytest.approx([2.0, -1.0], abs=0.3)
    assert found[1, 0] == pytest.approx(-2.0, abs=0.3)
    assert np.isnan(found[:, 3]).all()


def test_expected_values_replace_what_stands_out():
    """The column that was moved is questioned and put right; the others are the row's own."""
    x = np.random.default_rng(0).uniform(-3, 3, size=3000)
    forest = RandomCutForest(samples=512).fit(np.column_stack([x, 2 * x, -x]))
    found = forest.expect([[1.0, 9.0, -1.0]])
    assert found[0, 1] == pytest.approx(2.0, abs=0.5)
    assert found[0, [0, 2]].tolist() == [1.0, -1.0]


def test_neighbours_are_known_points_nearest_first():
    """Every one was sampled; the point itself comes first; the distance bounds them."""
    rows = normal_rows(400, 3)
    forest = RandomCutForest(samples=400).fit(rows)
    points, distances, trees = forest.neighbours(rows[7])
    assert points[0] == pytest.approx(rows[7], rel=1e-6)
    assert trees[0] == 100
    points, distances, trees = forest.neighbours([0.0, 0.0, 0.0], 0.8)
    known = {tuple(row) for row in rows.astype(np.float32).astype(float)}
    assert len(points) > 1
    assert {tuple(point) for point in points} <= known
    assert (np.diff(distances) >= 0).all()
    assert distances.max() <= 0.8


def test_density_follows_a_moving_cloud():
    """Where the points lie it is high; when the cloud moves on, it follows."""
    forest = RandomCutForest(time_decay=300, policy="streaming")
    for center in (0.0, 4.0, 8.0):
        forest.update(normal_rows(2000, 2, int(center)) * 0.5 + center)
        found = forest.density([[0.0, 0.0], [4.0, 4.0], [8.0, 8.0]])
        assert np.argmax(found) == center / 4.0
        assert np.sort(found)[-1] > 5 * np.sort(found)[-2]


def test_a_wave_is_continued_within_its_interval():
    """Eight steps of a noisy sine, by shingles of a period; the interval holds most true values and is ordered."""
    wave = np.sin(np.arange(3000) / 24 * 2 * np.pi) + 0.05 * np.random.default_rng(0).normal(size=3000)
    shingler = Shingler(24)
    shingles, _ = shingler.push(wave[:2900].reshape(-1, 1))
    forest = RandomCutForest(shingle=24).fit(shingles)
    values, low, high = forest.extrapolate(shingler.newest(), 8)
    truth = np.sin(np.arange(2900, 2908) / 24 * 2 * np.pi)
    assert values.shape == low.shape == high.shape == (8, 1)
    assert abs(values[:, 0] - truth).max() < 0.35
    assert (low <= values).all()
    assert (values <= high).all()
    assert np.mean((low[:, 0] - 0.1 <= truth) & (truth <= high[:, 0] + 0.1)) >= 0.7
    with pytest.raises(BadParameter, match="shingle"):
        RandomCutForest().fit(shingles).extrapolate(shingler.newest(), 1)


def test_explanation_has_the_shape_of_kinesis():
    """Column, direction, strength and score as text; the scores add up to the row's, shingles are folded."""
    forest = RandomCutForest(shingle=2).fit(normal_rows(1000, 4))
    row = [0.0, 0.0, 0.0, -8.0]
    found = forest.explanation(row, ["A", "B"])
    assert json.loads(json.dumps(found)) == found
    assert found["B"]["DIRECTION"] == "LOW"
    assert float(found["B"]["STRENGTH"]) > 0.9
    total = sum(float(part["ATTRIBUTION_SCORE"]) for part in found.values())
    assert total == pytest.approx(forest.score_samples([row])[0], abs=2e-4)
    plain = RandomCutForest(withDirectionality=False).fit(normal_rows(100, 2)).explanation([0.0, 1.0], ["A", "B"])
    assert plain["A"].keys() == {"ATTRIBUTION_SCORE"}
    with pytest.raises(BadRows, match="3 names"):
        forest.explanation(row, ["A", "B", "C"])


def test_hotspots_are_the_dense_regions_of_the_window():
    """Two clusters in noise are found with their members, densest first; old rows are out of the window."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(-10, 10, size=(1200, 2))
    rows[300:340] = rng.normal([5.0, 5.0], 0.05, size=(40, 2))
    rows[500:530] = rng.normal([-5.0, 0.0], 0.1, size=(30, 2))
    rows[50:90] = rng.normal([0.0, -5.0], 0.05, size=(40, 2))
    spots = find_hotspots(rows)
    assert len(spots) == 2
    assert spots[0].density > spots[1].density
    assert set(range(300, 340)) <= set(spots[0].members.tolist())
    assert (spots[0].low < 5.0).all()
    assert (spots[0].high > 5.0).all()
    assert 28 <= spots[1].points <= 32
    assert find_hotspots(rows[:5]) == []
    with pytest.raises(BadParameter):
        find_hotspots(rows, scan_radius=0.0)
    with pytest.raises(BadParameter, match="finite"):
        find_hotspots([[np.nan]])
