"""Compiles the numba kernels while the image is built, so that a container's first start does not.

What is compiled is for this machine's kind of processor; on another kind a container compiles again by itself.
"""

import numpy as np

from scorer.forest import RandomCutForest

rows = np.random.default_rng(0).normal(size=(64, 4))
forest = RandomCutForest(trees=2, samples=16)
forest.fit_score(rows)
forest.score_samples(rows)
forest.explain(rows[:4])
restored = RandomCutForest.from_bytes(forest.to_bytes())
restored.score_samples(rows)
restored.explain(rows[:4])
