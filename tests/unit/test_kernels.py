"""Compiled code: the vector sum, the random numbers, cuts between neighbours, and agreement with plain Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scorer import RandomCutForest, kernels
from tests import naive_forest

_SOURCE = Path(kernels.__file__)

_SMALL_RUN = """
import hashlib
import numpy as np
from scorer import RandomCutForest

rng = np.random.default_rng(5)
rows = rng.normal(size=(70, 9)).round(1)
rows[rng.random(rows.shape) < 0.05] = np.nan
rows[20:24] = rows[3]
forest = RandomCutForest(trees=5, samples=10, time_decay=30, seed=2**63 - 1, policy="streaming")
scores = [forest.fit_score(rows[:30]), forest.update(rows), forest.score_samples(rows), *forest.explain(rows)]
scores.append(forest.score_samples(np.tile(rows, (15, 1))))  # enough rows to go box by box
print(hashlib.sha256(forest.to_bytes()).hexdigest())
print(hashlib.sha256(b"".join(array.tobytes() for array in scores)).hexdigest())
"""


def test_gap_sum_equals_its_plain_form():
    """The vector instructions add the same numbers in the same order as numpy does, for NaN and any width too."""
    rng = np.random.default_rng(1)
    for width in (8, 24, 40):
        corners = np.sort(rng.normal(size=(2, width)), axis=0).astype(np.float32) * np.float32(rng.choice([1e-30, 1.0, 1e30]))
        points = (rng.normal(size=(4, width)) * 2).astype(np.float32)
        corners[:, rng.random(width) < 0.1] = np.nan
        points[rng.random(points.shape) < 0.1] = np.nan
        for row in range(4):
            assert kernels.gap_sum(corners, 0, 1, points, row) == kernels._gap_sum_plain(corners, 0, 1, points, row)
            expected = np.nansum(
                np.maximum(np.fmax(corners[0] - points[row].astype(float), points[row].astype(float) - corners[1]), 0)
            )
            assert kernels.gap_sum(corners, 0, 1, points, row) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_random_numbers_are_the_documented_ones(seed):
    """The stream equals its definition in whole numbers, so that a forest can be replayed by any later version."""
    for tree, row, draw in [(0, 0, 0), (99, 20_630, 7), (999, 2**40, 3)]:
        stream = kernels.random_stream(np.uint64(seed), tree, row)
        assert int(stream) == naive_forest.random_stream(seed, tree, row)
        assert kernels.uniform(np.uint64(stream), draw) == naive_forest.uniform(int(stream), draw)


def test_random_numbers_are_even_and_unrelated():
    """Numbers of neighbouring trees, rows and draws fill (0, 1) evenly and do not follow each other."""
    grid = np.array(
        [
            [[kernels.uniform(np.uint64(kernels.random_stream(np.uint64(3), t, r)), d) for d in range(6)] for r in range(60)]
            for t in range(20)
        ]
    )
    assert 0.0 < grid.min() < grid.max() < 1.0
    counts = np.histogram(grid, 20, (0.0, 1.0))[0]
    assert ((counts - grid.size / 20) ** 2 / (grid.size / 20)).sum() < 50.0  # chi-squared, 19 degrees of freedom, p = 1e-4
    for axis in range(3):
        moved = np.roll(grid, 1, axis)
        assert abs(np.corrcoef(grid.ravel(), moved.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-45, 1e30, 16_777_216.0])
def test_neighbouring_numbers_are_separated(value):
    """Two float32 numbers with nothing between them still get a cut that sends them to different sides, in either order."""
    low = np.float32(value)
    high = np.nextafter(low, np.float32(np.inf))
    for pair in ([low, high], [high, low]):
        forest = RandomCutForest(trees=20, samples=10).fit(np.array(pair, float).reshape(-1, 1))
        for t in range(20):
            mass, dim, cut, box_low, box_high, _, left, right = naive_forest.unfold(forest, t)
            assert (mass, dim, cut) == (2, 0, float(low))
            assert (left[2], right[2]) == (box_low, box_high) == ((float(low),), (float(high),))


def test_compiled_and_plain_python_agree():
    """The same run, compiled and with NUMBA_DISABLE_JIT=1, ends in the same bytes: state, scores and attributions."""
    runs = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", _SMALL_RUN],
            env={**os.environ, "NUMBA_DISABLE_JIT": flag, "PYTHONPATH": str(_SOURCE.parents[1])},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for flag in ("0", "1")
    ]
    assert len(runs[0].split()) == 2
    assert runs[0] == runs[1]


@pytest.mark.parametrize("columns", [3, 12, 24, 30, 40, 48, 60])
@pytest.mark.parametrize("holes", [False, True])
def test_a_row_scores_the_same_alone_in_a_few_and_among_many(columns, holes):
    """One by one, by fives, by hundreds, and all at once box by box: the same bits; missing, known and huge values too."""
    rng = np.random.default_rng(columns)
    rows = rng.normal(size=(1100, columns)).round(1)
    rows[100:110] = rows[:10]
    rows[300] *= 3e37
    if holes:
        rows[rng.random(rows.shape) < 0.02] = np.nan
    forest = RandomCutForest(trees=9, samples=64).fit(rows[:400])
    many = forest.score_samples(rows)
    assert np.isfinite(many).all()
    fives = np.concatenate([forest.score_samples(rows[i : i + 5]) for i in range(0, 1100, 5)])
    ones = np.concatenate([forest.score_samples(rows[i : i + 1]) for i in range(0, 1100, 7)])
    hundreds = np.concatenate([forest.score_samples(rows[i : i + 100]) for i in range(0, 1100, 100)])
    assert many.tobytes() == fives.tobytes() == hundreds.tobytes()
    assert many[::7].tobytes() == ones.tobytes()
    high, low = forest.explain(rows)
    np.testing.assert_allclose((high + low).sum(axis=1), many, rtol=1e-12)
    assert (forest.explain(rows[50:51])[0] == high[50]).all()


@pytest.mark.parametrize("columns", [8, 16, 24, 32, 40, 48])
def test_code_for_a_number_of_columns_is_the_code_for_any(columns):
    """Constant columns change nothing: with so many that no code of its own is there, scores and parts are the same."""
    rows = np.random.default_rng(columns).normal(size=(200, columns))
    padded = np.hstack([rows, np.ones((200, 64 - columns))])
    one, other = (RandomCutForest(trees=8, samples=32, seed=1).fit(each[:150]) for each in (rows, padded))
    assert kernels._WIDTHS == (8, 16, 24, 32, 40, 48)
    np.testing.assert_allclose(one.score_samples(rows), other.score_samples(padded), rtol=1e-6)
    for part, same in zip(one.explain(rows), other.explain(padded), strict=True):
        unseen = slice(150, None)  # what a tree knows is spread over all columns, and there are more of them
        np.testing.assert_allclose(part[unseen], same[unseen, :columns], atol=1e-6)


def test_nothing_is_compiled_with_reordered_arithmetic():
    """One set of options compiles everything, and it leaves NaN and the order of sums alone."""
    text = _SOURCE.read_text()
    assert re.findall(r'"fastmath": \w+', text) == ['"fastmath": False']
    assert "fastmath=" not in text
    assert set(re.findall(r"^\s*@(\w+)", text, re.MULTILINE)) == {"_compiled", "_uncounted", "_inlined", "intrinsic"}
    assert text.count("njit(") == 3


def test_numba_stays_in_one_file():
    """No other file of the package imports numba, because its cache would not notice a change there."""
    others = [path for path in _SOURCE.parent.glob("*.py") if path != _SOURCE]
    assert len(others) > 4
    assert [path.name for path in others if re.search(r"^\s*(import|from) numba", path.read_text(), re.MULTILINE)] == []
