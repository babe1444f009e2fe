"""Compiles the numba kernels while the image is built, so that a container's first start does not.

What is compiled is for this machine's kind of processor; on another kind a container compiles again by itself.
"""

import numpy as np

from replicator.compile import compile_kernels
from scorer.forest import RandomCutForest


def warm_scorer() -> None:
    """Train, score, explain, and do so with a forest from a checkpoint, whose arrays may not be written to."""
    rows = np.random.default_rng(0).normal(size=(64, 4))
    forest = RandomCutForest(trees=2, samples=16)
    forest.fit_score(rows)
    restored = RandomCutForest.from_bytes(forest.to_bytes())
    for each in (forest, restored):
        each.score_samples(rows)
        each.explain(rows[:4])


if __name__ == "__main__":
    warm_scorer()
    compile_kernels()
