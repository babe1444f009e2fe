"""`python -m scorer.compile`: compiles the forest's kernels into numba's cache, so that no row and no test waits for it.

Owns the calls that do so. Reads and writes nothing else.
"""

from __future__ import annotations

import numpy as np

from scorer.forest import RandomCutForest

_ROWS, _COLUMNS = 200, 3


def compile_kernels() -> None:
    """Use a small forest in every way that the scorer uses one; types, not sizes, decide what is compiled."""
    rows = np.random.default_rng(0).normal(size=(_ROWS, _COLUMNS))
    forest = RandomCutForest(trees=4, samples=32)
    forest.fit_score(rows)
    forest.update(rows)
    forest.score_samples(rows)
    forest.explain(rows)
    RandomCutForest.from_bytes(forest.to_bytes())


if __name__ == "__main__":
    compile_kernels()
