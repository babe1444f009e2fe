"""The forest beside AWS's own, in distribution: krcf binds the Rust of the AWS random cut forest library."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from scorer import RandomCutForest

krcf = pytest.importorskip("krcf", reason="krcf, which the development environment has, is not installed")

SEEDS = range(10)
TREES, SAMPLES = 60, 64


def make_rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(history, probes) of one data set."""
    rng = np.random.default_rng(0)
    if name == "gaussian":
        return rng.normal(size=(400, 5)), rng.normal(size=(120, 5)) * rng.uniform(0.2, 3.0, size=(120, 1))
    if name == "clusters":
        centers = rng.normal(size=(3, 8)) * 6
        rows = centers[rng.integers(0, 3, 520)] + rng.normal(size=(520, 8)) * rng.uniform(0.3, 1.5, size=(520, 1))
        rows[400::4] = rng.uniform(-10, 10, size=(30, 8))
        return rows[:400], rows[400:]
    wave = np.sin(np.arange(540) / 7) + 0.1 * rng.normal(size=540)
    wave[rng.integers(412, 540, 8)] += 2.0
    shingles = np.lib.stride_tricks.sliding_window_view(wave, 12)
    return shingles[:400], shingles[400:520]


@pytest.mark.parametrize("name", ["gaussian", "clusters", "shingles"])
def test_scores_are_distributed_as_those_of_aws(name):
    """Means over ten seeds on both sides: rank correlation at least .98, level within two sigmas of the seeds' spread."""
    history, probes = make_rows(name)
    ours, theirs = [], []
    for seed in SEEDS:
        forest = RandomCutForest(trees=TREES, samples=SAMPLES, seed=seed, time_decay=640, policy="streaming")
        ours.append(forest.partial_fit(history).score_samples(probes))
        peer = krcf.RandomCutForest(
            {
                "dimensions": history.shape[1],
                "shingle_size": 1,
                "num_trees": TREES,
                "sample_size": SAMPLES,
                "random_seed": seed + 1,
                "lambda": 1 / 640,
                "output_after": 1,
            }
        )
        for row in history.tolist():
            peer.update(row)
        theirs.append([peer.score(row) for row in probes.tolist()])
    ours, theirs = np.array(ours), np.array(theirs)
    assert spearmanr(ours.mean(axis=0), theirs.mean(axis=0)).statistic >= 0.98
    levels = ours.mean(axis=1), theirs.mean(axis=1)
    spread = np.hypot(levels[0].std(ddof=1), levels[1].std(ddof=1))
    assert abs(levels[0].mean() - levels[1].mean()) <= 2.0 * spread
