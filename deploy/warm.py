"""Compiles the numba kernels while the image is built, so that a container's first start does not.

What is compiled is for this machine's kind of processor; on another kind a container compiles again by itself.
"""

import numpy as np

from replicator import decode
from replicator.changes import ChangeBuffer
from replicator.plan import Charsets, Plans
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


def warm_replicator() -> None:
    """Call each kernel with nothing to do: what is compiled depends on the arguments' types only."""
    plans, buffer = Plans(Charsets({}, {})), ChangeBuffer(0)
    packed = (plans.columns, plans.blob, plans.labels)
    data, none, images = np.zeros(64, np.uint8), np.zeros(0, np.int64), np.zeros(64, np.uint8)
    decode.consume(
        data, 0, buffer.state, plans.slots, plans.plans, *packed, buffer.out, buffer.keys, buffer.changes,
        buffer.transactions, buffer.digits,
    )  # fmt: skip
    decode.consume_result(data, 0, buffer.state, 0, plans.plans[0], *packed, buffer.out, buffer.changes, buffer.digits)
    decode.gather(none, buffer.changes, buffer.out, images)
    entries = np.zeros(2, decode.ENTRY)
    decode.fold(none, buffer.changes, buffer.keys, entries, np.full(4, -1, np.int64))
    decode.stage_keys(none, entries, buffer.keys, 1, images)


if __name__ == "__main__":
    warm_scorer()
    warm_replicator()
